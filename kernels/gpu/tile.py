"""What every attention kernel does with a tile: find it, find its keys, say what is visible, take a softmax step.

A row's keys are numbered 0 .. P + L: first its prefix, read from the pool, then those of its own keys that a tile
can see at all. One loop runs over both; where a key lies is decided per key, by choosing between two pointers.
It refuses to know launch constants and gradients.

Where a row begins is a 64-bit offset; within a row or a prefix, offsets fit 32 bits (700,000 tokens of 3,072 numbers).

Shape letters in comments: M queries of a tile, N keys of a step, D head dim.
"""

import triton
import triton.language as tl

FULL: tl.constexpr = tl.constexpr(0)
CAUSAL: tl.constexpr = tl.constexpr(1)
PREFIX_LM: tl.constexpr = tl.constexpr(2)
NOWHERE: tl.constexpr = tl.constexpr(2**30)
"""A token that no row has."""
PRECISION: tl.constexpr = tl.constexpr("tf32x3")
"""Of products of fp32: three tensor-core passes, an error like that of fp32 itself. "ieee" spills kilobytes."""


@triton.jit
def find_tile(tile, row_start, y, SUB: tl.constexpr, BLOCK_M: tl.constexpr):
    """Row, first query, first token and length of the row of part y of the tile map; each tile has SUB parts."""
    row = tl.load(tile + (y // SUB) * 2)
    first = tl.load(tile + (y // SUB) * 2 + 1) + (y % SUB) * BLOCK_M
    begin = tl.load(row_start + row)
    length = tl.load(row_start + row + 1) - begin
    return row, first, begin.to(tl.int64), length


@triton.jit
def find_tile_if_any(tile, num_tiles, row_start, y, SUB: tl.constexpr, BLOCK_M: tl.constexpr):
    """`find_tile` for a part that may lie beyond the tiles: the first query then lies beyond every row.

    Row 0 stands in for what garbage would name. Nothing is branched on, so that further indices are on their way
    before the number of tiles has come: a program of few steps waits for little else.
    """
    there = y < tl.load(num_tiles) * SUB
    row = tl.where(there, tl.load(tile + (y // SUB) * 2), 0)
    first = tl.where(there, tl.load(tile + (y // SUB) * 2 + 1) + (y % SUB) * BLOCK_M, NOWHERE)
    begin = tl.load(row_start + row)
    length = tl.load(row_start + row + 1) - begin
    return row, first, begin.to(tl.int64), length


@triton.jit
def own_range(first, length, context, window, BLOCK_M: tl.constexpr, MODE: tl.constexpr, WINDOWED: tl.constexpr):
    """The own keys [low, high) that any of the queries first .. first + BLOCK_M sees."""
    low = 0
    high = length
    if MODE == CAUSAL:
        high = tl.minimum(high, first + BLOCK_M)
    if MODE == PREFIX_LM:
        high = tl.minimum(high, tl.maximum(first + BLOCK_M, context))
    if WINDOWED:
        low = tl.maximum(low, first - window)
        high = tl.minimum(high, first + BLOCK_M + window)
    return low, high


@triton.jit
def unmasked_keys(prefix, first, high, context, MODE: tl.constexpr, WINDOWED: tl.constexpr):
    """How many leading keys every query of the tile sees: they need no mask."""
    keys = prefix + high
    if MODE == CAUSAL:
        keys = tl.minimum(keys, prefix + first + 1)
    if MODE == PREFIX_LM:
        keys = tl.minimum(keys, prefix + tl.maximum(first + 1, context))
    if WINDOWED:
        keys = prefix
    return keys


@triton.jit
def is_visible(query, own_key, context, window, MODE: tl.constexpr, WINDOWED: tl.constexpr):
    """Whether query (column of indices) sees own key (row of indices); a negative own key is a prefix key."""
    ahead = own_key - query
    seen = own_key >= own_key
    if MODE == CAUSAL:
        seen = ahead <= 0
    if MODE == PREFIX_LM:
        seen = (ahead <= 0) | (own_key < context)
    if WINDOWED:
        seen = seen & (tl.abs(ahead) <= window)
    return seen | (own_key < 0)


@triton.jit
def load_keys(
    lent, own, key, prefix, num_keys, own_token, lent_token, offs_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr, QUANTISED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Keys (or values) [N, D] of a step, zeros beyond num_keys.

    `lent` points to the first of the prefix, `own` to where key number 0 would lie if own keys began at 0.
    """
    of_prefix = key < prefix
    lent_N = lent + key * lent_token
    own_N = own + key * own_token
    wanted = (offs_d < D)[None, :]
    if MASKED:
        wanted = wanted & (key < num_keys)[:, None]
    if QUANTISED:
        from_pool = tl.load(lent_N[:, None] + offs_d[None, :], mask=wanted & of_prefix[:, None], other=0.0)
        rows = tl.load(own_N[:, None] + offs_d[None, :], mask=wanted & (key >= prefix)[:, None], other=0.0)
        compute = tl.float32 if UPCAST else rows.dtype
        rows = tl.where(of_prefix[:, None], from_pool.to(compute), rows.to(compute))
    else:
        at = tl.where(of_prefix, lent_N, own_N)[:, None] + offs_d[None, :]
        if MASKED or D < BLOCK_D:
            rows = tl.load(at, mask=wanted, other=0.0)
        else:
            rows = tl.load(at)
        if UPCAST:
            rows = rows.to(tl.float32)
    return rows


@triton.jit
def load_rows(base, token, index, length, offs_d, D: tl.constexpr, UPCAST: tl.constexpr):
    """Rows [M, D] of a packed tensor; zeros beyond length."""
    at = base + (index * token)[:, None] + offs_d[None, :]
    rows = tl.load(at, mask=(index < length)[:, None] & (offs_d < D)[None, :], other=0.0)
    if UPCAST:
        rows = rows.to(tl.float32)
    return rows


@triton.jit
def softmax_step(scores, values, acc, top, total, scale_log2, times_v, QUANTISED: tl.constexpr, MASKED: tl.constexpr):
    """Fold the scores [M, N] of a step and its values [N, D] into the running softmax.

    `top` is the largest raw score so far, `total` the sum of exp2(scale_log2 * (score - top)); scale_log2 > 0.
    """
    new_top = tl.maximum(top, tl.max(scores, 1))
    if MASKED:
        anchor = tl.where(new_top == float("-inf"), 0.0, new_top) * scale_log2
    else:
        anchor = new_top * scale_log2
    shrink = tl.exp2(top * scale_log2 - anchor)
    weights = tl.exp2(scores * scale_log2 - anchor[:, None])
    total = total * shrink + tl.sum(weights, 1)
    if QUANTISED:
        weights = weights * times_v[None, :]
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
    return acc, new_top, total


@triton.jit
def zero_tail(out, lse, begin, end, out_token, lse_token, offs_d, D: tl.constexpr, BLOCK: tl.constexpr):
    """Tokens that belong to no row: output 0, log-sum-exp -inf."""
    for token in range(begin, end, BLOCK):
        index = token + tl.arange(0, BLOCK)
        at = out + index.to(tl.int64)[:, None] * out_token + offs_d[None, :]
        inside = (index < end)[:, None] & (offs_d < D)[None, :]
        tl.store(at, tl.zeros([BLOCK, offs_d.shape[0]], out.dtype.element_ty), mask=inside)
        nothing = tl.full([BLOCK], float("-inf"), tl.float32)
        tl.store(lse + index.to(tl.int64) * lse_token, nothing, mask=index < end)
