"""BatchPlan: the int32 index tensors of one batch, built on the host, copied to the device as one blob.

It knows lengths and slot numbers. It refuses to know tasks, tenants, token ids and models.

Shape letters: T packed tokens of all rows, R rows, Y tiles of queries, G groups of tiles that read one slot,
S slots, H heads, N pool tokens, D head dim, B buckets, I all of the blob.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

NO_PROMPT_SLOT = 0
"""Slot 0 of every pool has length 0 in every layer: the slot of a row without a prompt."""


class Mode(enum.IntEnum):
    """Which of a row's own tokens a query may see. Prefix tokens are visible in every mode."""

    FULL = 0
    CAUSAL = 1
    PREFIX_LM = 2


class LayerPrefix(NamedTuple):
    """One layer's view of the prefix memory: slot `s` is `pool[:, start[s] : start[s] + length[s]]`.

    `length[s] == 0` says that slot `s` has no prompt in this layer. The pool may be shared by all layers.
    """

    pool_k_HND: Tensor
    pool_v_HND: Tensor
    slot_start_S: Tensor
    """int32, pool token index."""
    slot_length_S: Tensor
    """int32, prefix tokens P of this layer."""
    slot_scale_S2H: Tensor | None = None
    """float32, for pools of int8 or float8_e4m3fn: what the stored keys (0) and values (1) of a slot are times."""


class Bucket(NamedTuple):
    """Rows that lie end to end, read one slot and are equally long: what one bmm takes."""

    slot: int
    length: int
    """own tokens of each row, at least 1."""
    context: int
    begin: int
    """first token of the first row."""
    num_rows: int


class Tiling(NamedTuple):
    """How queries and keys are cut among programs: one of a few. Of a batch, a row's bits depend on this alone."""

    block_m: int
    """Queries of a tile: 16, 32, 64 or 128. No tile spans two rows."""
    num_splits: int = 1
    """Programs that share the keys of one tile: 1, 2 or 4."""

    @classmethod
    def choose(cls, lengths: Sequence[int] | NDArray[np.int32], longest_prefix: int = 0) -> Tiling:
        """Choose from the mean length of the rows; split long prefixes of batches too small to fill a device."""
        rows, tokens = len(lengths), int(np.sum(lengths, dtype=np.int64))
        mean = tokens / rows if rows else 0
        block_m = 16 if mean <= 16 else 32 if mean <= 48 else 64
        if tokens > SMALL_BATCH or longest_prefix < LONG_PREFIX:
            return cls(block_m)
        return cls(block_m, 4 if longest_prefix >= 2 * LONG_PREFIX else 2)


SMALL_BATCH = 256
"""Tokens up to which a batch has too few tiles to occupy a large GPU."""
LONG_PREFIX = 256
"""Prefix tokens from which a small batch shares the keys of a tile among programs."""


class Capacity(NamedTuple):
    """Room for index tensors of a fixed size and address, as a captured CUDA graph needs them."""

    rows: int
    tiles: int

    @classmethod
    def of(cls, tokens: int, rows: int, block_m: int) -> Capacity:
        """Enough for any batch of at most `tokens` in at most `rows`."""
        return cls(rows, tokens // block_m + rows)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Where each row of a packed batch begins, which slot it reads, and what it may see.

    With a capacity, rows beyond the batch are empty rows of slot 0, and tiles beyond `num_tiles` mean nothing.
    """

    row_start_R1: Tensor
    """int32 [R + 1]: row r is tokens `row_start[r] : row_start[r + 1]`; the last entry is the end of all rows."""
    slot_R: Tensor
    """int32 [R]: index into the slot tables of `LayerPrefix`; `NO_PROMPT_SLOT` for none."""
    context_R: Tensor
    """int32 [R]: in `PREFIX_LM`, how many leading own tokens every query of the row sees; else 0, whatever is given."""
    tile_Y2: Tensor
    """int32 [Y, 2]: row, and first query in it, of each tile of `tiling.block_m` queries. Sorted by slot, so that
    neighbours read one prefix; rows themselves may come in any order."""
    num_tiles_1: Tensor
    """int32 [1]: how many of the tiles there are."""
    group_G3: Tensor
    """int32 [G, 3]: slot, first tile, number of tiles; a slot is in one group. Groups of 0 tiles fill the capacity."""
    bucket_B5: Tensor
    """int32 [B, 5], always in host memory: the rows as `Bucket`s, for routes that launch from the host."""
    mode: Mode
    tiling: Tiling
    num_tokens: int
    """Tokens of all rows. Packed tensors may be longer; what lies beyond belongs to no row."""
    blob_I: Tensor
    """int32: the memory of all index tensors but the buckets."""

    @property
    def num_rows(self) -> int:
        return self.slot_R.numel()

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.num_rows, len(self.tile_Y2))

    @property
    def indices(self) -> tuple[Tensor, ...]:
        """The index tensors, in the order in which the operators take them."""
        return (
            self.row_start_R1,
            self.slot_R,
            self.context_R,
            self.tile_Y2,
            self.num_tiles_1,
            self.group_G3,
            self.bucket_B5,
        )

    @classmethod
    def build(
        cls,
        lengths: Sequence[int] | NDArray[np.int32],
        slots: Sequence[int] | NDArray[np.int32],
        *,
        mode: Mode = Mode.FULL,
        context: Sequence[int] | NDArray[np.int32] | None = None,
        device: torch.device | str = "cpu",
        tiling: Tiling | None = None,
        capacity: Capacity | None = None,
        longest_prefix: int = 0,
    ) -> BatchPlan:
        """Build the plan of rows with `lengths` tokens that read `slots`, in that order.

        Args:
            tiling: by default chosen from the lengths and the `longest_prefix` that any row reads in any layer.
            capacity: by default exactly what the batch needs.

        Raises:
            ValueError: when the sequences differ in length, an entry is negative, or the capacity is too small.
        """
        rows_3R = _rows(lengths, slots, context if mode == Mode.PREFIX_LM else None)
        tiling = tiling or Tiling.choose(rows_3R[0], longest_prefix)
        tile_Y2, group_G3 = _tiles(rows_3R[0], rows_3R[1], tiling.block_m)
        num_rows, needed = rows_3R.shape[1], Capacity(rows_3R.shape[1], len(tile_Y2))
        room = capacity or needed
        if room.rows < needed.rows or room.tiles < needed.tiles:
            raise ValueError(f"the batch has {needed.rows} rows and {needed.tiles} tiles, and there is room for {room}")
        ends_R = np.cumsum(rows_3R[0])
        num_tokens = int(ends_R[-1]) if num_rows else 0
        num_groups = min(room.rows, room.tiles) if capacity else len(group_G3)
        sizes = [room.rows + 1, room.rows, room.rows, 2 * room.tiles, 3 * num_groups, 1]
        host_I = torch.zeros(
            sum(map(_aligned, sizes)), dtype=torch.int32, pin_memory=torch.device(device).type == "cuda"
        )
        parts = [part.numpy() for part in _parts(host_I, sizes)]
        row_start, slot, own_context, tile, group, num_tiles = parts
        row_start[1 : num_rows + 1], row_start[num_rows + 1 :] = ends_R, num_tokens
        slot[:num_rows], own_context[:num_rows] = rows_3R[1], rows_3R[2]
        tile[: tile_Y2.size], group[: group_G3.size] = tile_Y2.ravel(), group_G3.ravel()
        num_tiles[0] = needed.tiles
        return cls._over(
            host_I.to(device, non_blocking=True),
            sizes,
            bucket_B5=_buckets(rows_3R, ends_R),
            mode=mode,
            tiling=tiling,
            num_tokens=num_tokens,
        )

    @classmethod
    def _over(
        cls, blob_I: Tensor, sizes: Sequence[int], *, bucket_B5: Tensor, mode: Mode, tiling: Tiling, num_tokens: int
    ) -> BatchPlan:
        """View the parts of a blob."""
        row_start, slot, context, tile, group, num_tiles = _parts(blob_I, sizes)
        tile_Y2, group_G3 = tile.view(-1, 2), group.view(-1, 3)
        return cls(row_start, slot, context, tile_Y2, num_tiles, group_G3, bucket_B5, mode, tiling, num_tokens, blob_I)

    def overwrite(self, plan: BatchPlan) -> None:
        """Put the index tensors of `plan` where these lie, in one copy: what a captured graph reads when replayed.

        The host's own numbers (`num_tokens`, the buckets) stay as they were built.

        Raises:
            ValueError: when capacity, mode or tiling differ.
        """
        found, wanted = ((each.capacity, each.mode, each.tiling) for each in (plan, self))
        if found != wanted:
            raise ValueError(f"the plan is for {found}, wanted {wanted}")
        self.blob_I.copy_(plan.blob_I, non_blocking=True)


def _rows(
    lengths: Sequence[int] | NDArray[np.int32],
    slots: Sequence[int] | NDArray[np.int32],
    context: Sequence[int] | NDArray[np.int32] | None,
) -> NDArray[np.int32]:
    """Lengths, slots and contexts as [3, R]."""
    num_rows = len(lengths)
    if len(slots) != num_rows or (context is not None and len(context) != num_rows):
        found = (num_rows, len(slots), num_rows if context is None else len(context))
        raise ValueError(f"lengths, slots and context differ in length: {found[0]}, {found[1]}, {found[2]}")
    rows_3R = np.zeros((3, num_rows), dtype=np.int32)
    rows_3R[0], rows_3R[1] = lengths, slots
    if context is not None:
        rows_3R[2] = context
    if num_rows and rows_3R.min() < 0:
        raise ValueError("lengths, slots and context must not be negative")
    return rows_3R


def _tiles(
    length_R: NDArray[np.int32], slot_R: NDArray[np.int32], block_m: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tiles [Y, 2] in the order of slots, and the groups [G, 3] of those that share one."""
    order_R = np.argsort(slot_R, kind="stable")
    tiles_R = -(-length_R[order_R] // block_m)
    end_R = np.cumsum(tiles_R)
    num_tiles = int(end_R[-1]) if len(end_R) else 0
    tile_Y2 = np.empty((num_tiles, 2), dtype=np.int32)
    tile_Y2[:, 0] = np.repeat(order_R, tiles_R)
    tile_Y2[:, 1] = (np.arange(num_tiles) - np.repeat(end_R - tiles_R, tiles_R)) * block_m
    slot_Y = slot_R[tile_Y2[:, 0]]
    first_G = np.flatnonzero(np.diff(slot_Y, prepend=-1))
    group_G3 = np.empty((len(first_G), 3), dtype=np.int32)
    group_G3[:, 0], group_G3[:, 1] = slot_Y[first_G], first_G
    group_G3[:, 2] = np.diff(first_G, append=num_tiles)
    return tile_Y2, group_G3


def _buckets(rows_3R: NDArray[np.int32], ends_R: NDArray[np.int64]) -> Tensor:
    """Buckets [B, 5] of neighbours that are equal in length, slot and context; a row without tokens is in none."""
    present_R = np.flatnonzero(rows_3R[0])
    rows_3R = rows_3R[:, present_R]
    changes = (rows_3R[:, 1:] != rows_3R[:, :-1]).any(0)
    first_B = np.concatenate([[0], np.flatnonzero(changes) + 1]) if len(present_R) else present_R
    bucket_B5 = np.empty((len(first_B), len(Bucket._fields)), dtype=np.int32)
    length_B, slot_B, context_B = rows_3R[:, first_B]
    bucket_B5[:, 0], bucket_B5[:, 1], bucket_B5[:, 2] = slot_B, length_B, context_B
    bucket_B5[:, 3] = ends_R[present_R[first_B]] - length_B
    bucket_B5[:, 4] = np.diff(first_B, append=len(present_R))
    return torch.from_numpy(bucket_B5)


def _parts(blob_I: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """View the parts of a blob. Each begins at a multiple of 16 bytes, as a kernel wants its pointers."""
    ends = np.cumsum([_aligned(size) for size in sizes]).tolist()
    return [blob_I[end - _aligned(size) :][:size] for size, end in zip(sizes, ends, strict=True)]


def _aligned(size: int) -> int:
    return -(-size // 4) * 4
