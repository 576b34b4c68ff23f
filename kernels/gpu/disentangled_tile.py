"""What every kernel of disentangled attention does with a tile of queries and one of own keys: score their distances.

All pairs at one distance share position table entries, so two tiles of M tokens meet one window of W = 2 M distances.
With the keys in reversed order, query i and key x are at distance `nearest + i + x`: their score is on a diagonal of
`G = Q PK_window^T`, column i + x of row i. A program stores G with rows of W numbers into scratch of its own, and
reads it back with rows of W + 1: the skew is in the addresses, and no table [T, H, Q] is made. As i + x is the same
from both sides, queries and keys may change roles everywhere here: rows of one tile, columns of the other.

The scratch is global memory that stays in the cache. Threads read what others wrote, so there are barriers, and no loop
with such a barrier may be pipelined by the compiler. It refuses to know launch constants, prefixes and softmax.

Shape letters in comments: M tokens of either tile, W distances, D head dim.
"""

import triton
import triton.language as tl

from prefixbank.kernels.gpu.tile import PRECISION, load_rows


@triton.jit
def tokens_of(first, KEYS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Numbers of a tile's tokens within the row, those of keys in reversed order."""
    if KEYS:
        index = first + BLOCK_M - 1 - tl.arange(0, BLOCK_M)
    else:
        index = first + tl.arange(0, BLOCK_M)
    return index


@triton.jit
def load_both_ways(base, token, index, length, offs_d, D: tl.constexpr, BLOCK_M: tl.constexpr, UPCAST: tl.constexpr):
    """Rows of a packed tensor as rows [M, D] and as columns [D, M]; zeros beyond length.

    Large tiles are multiplied from shared memory, where one copy serves both ways; small ones from registers.
    """
    rows = load_rows(base, token, index, length, offs_d, D, UPCAST)
    if BLOCK_M >= 64:
        columns = rows.T
    else:
        at = base + (index * token)[None, :] + offs_d[:, None]
        columns = tl.load(at, mask=(index < length)[None, :] & (offs_d < D)[:, None], other=0.0).to(rows.dtype)
    return rows, columns


@triton.jit
def entries_of(distance, reach, nearest, BLOCK_M: tl.constexpr):
    """Position table entries of the distances nearest .. nearest + M - 1."""
    away = tl.minimum(tl.maximum(nearest + tl.arange(0, BLOCK_M), -reach), reach)
    return tl.load(distance + reach + away)


@triton.jit
def load_entries(table, entry, offs_d, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
    """Entries of a head's position table, as columns or as rows: one of `entry` (offsets) and `offs_d` is a column."""
    if D < BLOCK_D:
        entries = tl.load(table + entry + offs_d, mask=offs_d < D, other=0.0)
    else:
        entries = tl.load(table + entry + offs_d)
    if UPCAST:
        entries = entries.to(tl.float32)
    return entries


@triton.jit
def positional_scores(
    x_MD, y_MD, x_table, y_table, x_entry, y_entry, distance, reach, nearest, scratch, scale, offs_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    OF_X: tl.constexpr, OF_Y: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Scores [M, M], unscaled, that rows x and columns y gain from their position tables; scaled in between.

    `nearest` is the distance of row 0 and column 0. Needs 4 M M numbers of scratch.
    """
    row = tl.arange(0, BLOCK_M)[:, None]
    column = tl.arange(0, BLOCK_M)[None, :]
    tl.debug_barrier()  # all have read what the step before left in the scratch
    if OF_X:
        store_window(
            x_MD, x_table, x_entry, distance, reach, nearest, scratch, scale, offs_d, D, BLOCK_D, BLOCK_M, UPCAST
        )
    if OF_Y:
        y_scratch = scratch + 2 * BLOCK_M * BLOCK_M
        store_window(
            y_MD, y_table, y_entry, distance, reach, nearest, y_scratch, scale, offs_d, D, BLOCK_D, BLOCK_M, UPCAST
        )
    tl.debug_barrier()
    scores = tl.zeros([BLOCK_M, BLOCK_M], tl.float32)
    if OF_X:
        scores += tl.load(scratch + row * (2 * BLOCK_M + 1) + column).to(tl.float32)
    if OF_Y:
        scores += tl.load(scratch + 2 * BLOCK_M * BLOCK_M + column * (2 * BLOCK_M + 1) + row).to(tl.float32)
    return scores * (1.0 / scale)


@triton.jit
def store_window(
    x_MD, table, entry_stride, distance, reach, nearest, scratch, scale, offs_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Store x times its window [M, W], or as much of it, in runs of eight numbers, as is on the diagonals."""
    row = tl.arange(0, BLOCK_M)[:, None]
    column = tl.arange(0, BLOCK_M)[None, :]
    run = column // 8 * 8
    for half in tl.range(0, 2, num_stages=1):
        entry = entries_of(distance, reach, nearest + half * BLOCK_M, BLOCK_M)
        window_DM = load_entries(table, (entry * entry_stride)[None, :], offs_d[:, None], D, BLOCK_D, UPCAST)
        products = tl.dot(x_MD, window_DM, input_precision=PRECISION) * scale
        needed = tl.where(half == 0, run + 8 > row, run < row)
        at = scratch + row * (2 * BLOCK_M) + half * BLOCK_M + column
        tl.store(at, products.to(scratch.dtype.element_ty), mask=needed)


@triton.jit
def store_diagonals(d_scores, scratch, BLOCK_M: tl.constexpr):
    """Leave gradients of scores [M, M] where `load_band` finds them by distance. Needs 2 M M numbers of scratch."""
    row = tl.arange(0, BLOCK_M)[:, None]
    column = tl.arange(0, BLOCK_M)[None, :]
    tl.debug_barrier()  # all have read what the step before left in the scratch
    tl.store(scratch + row * (2 * BLOCK_M + 1) + column, d_scores.to(scratch.dtype.element_ty))
    tl.debug_barrier()


@triton.jit
def load_band(scratch, half, TRANSPOSED: tl.constexpr, BLOCK_M: tl.constexpr, UPCAST: tl.constexpr):
    """Gradients [M, M] of rows by distance, for one half of the window: zero where a row has no such distance."""
    row = tl.arange(0, BLOCK_M)[:, None]
    column = tl.arange(0, BLOCK_M)[None, :]
    if TRANSPOSED:
        row = tl.arange(0, BLOCK_M)[None, :]
        column = tl.arange(0, BLOCK_M)[:, None]
    there = (column < row) == (half == 1)
    band = tl.load(scratch + row * (2 * BLOCK_M) + half * BLOCK_M + column, mask=there, other=0.0)
    if UPCAST:
        band = band.to(tl.float32)
    return band


@triton.jit
def score_gradients(x_MD, y_DM, positional, d_weights, lse, delta, query, length, seen, scale_log2, KEYS: tl.constexpr):
    """Softmax weights [M, M] of rows x and columns y, and the gradients of their scores, both zero where not `seen`.

    `lse` and `delta` point to the statistics of the row's queries, which are the columns when the rows are keys.
    """
    lse_M = tl.load(lse + query, mask=query < length, other=0.0)
    delta_M = tl.load(delta + query, mask=query < length, other=0.0)
    if KEYS:
        lse_M, delta_M = lse_M[None, :], delta_M[None, :]
    else:
        lse_M, delta_M = lse_M[:, None], delta_M[:, None]
    scores = tl.dot(x_MD, y_DM, positional, input_precision=PRECISION) * scale_log2
    weights = tl.where(seen, tl.exp2(scores - lse_M), 0.0)
    return weights, weights * (d_weights - delta_M)
