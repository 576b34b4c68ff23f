"""HeadPlan: which vectors of a batch meet which rows of the head arena, built on the host, copied as one blob.

It knows vectors, starts and counts. It refuses to know tasks, tenants, tokens and what a class means.

Shape letters: N vectors that heads read, R batch rows, Q arena rows, C classes of the widest head, K rows of one
vector, B bunches of those, Y tiles of longer rows, G groups of overlapping heads, I all of the blob.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prefixbank.kernels.plan import Capacity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Numbers = Sequence[int] | NDArray[np.integer]

TILE_VECTORS = 32
"""Vectors of a tile; the same for every batch, so that no row's bits depend on the others."""
BUNCH_VECTORS = 8
"""Rows of one vector that one program takes when their head is wide: it reads the head once for all of them."""
WIDE_HEAD = 64
"""Classes from which rows are bunched. Programs of narrow heads are few: there one row each is the faster way."""


class HeadRow(NamedTuple):
    """One batch row: its vectors, and its head."""

    first: int
    num_vectors: int
    head_start: int
    """Arena row of the first class."""
    num_classes: int


class HeadIndices(NamedTuple):
    """The index tensors, in the order in which the operators take them. All int32, sorted by where a head begins.

    With a capacity, what lies beyond `total` means nothing.
    """

    single_K: Tensor
    """The vectors of all rows that have one."""
    bunch_B4: Tensor
    """Head start, classes, first of `single`, number of them: what one program takes, times blocks of classes."""
    tile_Y4: Tensor
    """Head start, classes, first vector, number of vectors: at most `TILE_VECTORS` of one row of several."""
    group_G6: Tensor
    """Arena rows begin and end, first bunch and number, first tile and number: heads that overlap are in one group.
    Groups of no rows fill the capacity."""
    total_3: Tensor
    """Number of bunches, of tiles, and of vectors that belong to rows."""
    row_R4: Tensor
    """Every row as `HeadRow`, in the order given; always in host memory, for routes that launch from the host."""


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """The heads of one batch."""

    indices: HeadIndices
    num_classes: int
    """Columns of the logits: at least the classes of the widest head."""
    num_vectors: int
    """Vectors of all rows. x may be longer; what lies beyond belongs to no row."""
    arena_end: int
    """End of the last arena row that a head reads."""
    blob_I: Tensor
    """int32: the memory of all index tensors but the rows."""
    capacity: Capacity | None
    """The room that was asked for; None when the tables are as long as the batch needs."""

    @property
    def rows(self) -> list[HeadRow]:
        return [HeadRow(*row) for row in self.indices.row_R4.tolist()]

    @classmethod
    def build(
        cls,
        lengths: Numbers,
        starts: Numbers,
        counts: Numbers,
        *,
        device: torch.device | str = "cpu",
        num_classes: int | None = None,
        capacity: Capacity | None = None,
    ) -> HeadPlan:
        """Build the plan of rows with `lengths` vectors each, whose heads are `counts` arena rows from `starts`.

        Args:
            num_classes: columns of the logits; by default the classes of the widest head.
            capacity: `Capacity.of(vectors, rows, TILE_VECTORS)` is room for any such batch; by default what is needed.

        Raises:
            ValueError: when the sequences differ in length, an entry is negative, or columns or capacity are too few.
        """
        row_R4 = _rows(lengths, starts, counts)
        widest = int(row_R4[:, 3].max(initial=0))
        columns = widest if num_classes is None else num_classes
        if columns < widest:
            raise ValueError(f"the widest head has {widest} classes, and num_classes is {columns}")
        tables = _tables(row_R4)
        needed = Capacity(len(row_R4), len(tables.tile_Y4))
        if capacity and (capacity.rows < needed.rows or capacity.tiles < needed.tiles):
            raise ValueError(f"the batch needs {needed}, and there is room for {capacity}")
        num_vectors = int(row_R4[:, 1].sum())
        total_3 = np.array([len(tables.bunch_B4), len(tables.tile_Y4), num_vectors], dtype=np.int32)
        blob_I, parts = _blob([*tables, total_3], _lengths(tables, capacity), torch.device(device))
        arena_end = int((row_R4[:, 2] + row_R4[:, 3]).max(initial=0))
        indices = HeadIndices._make([*parts, torch.from_numpy(row_R4)])
        return cls(indices, columns, num_vectors, arena_end, blob_I, capacity)

    def overwrite(self, plan: HeadPlan) -> None:
        """Put the index tensors of `plan` where these lie, in one copy: what a captured graph reads when replayed.

        The host's own numbers (`rows`, `num_vectors`, `arena_end`) stay as they were built.

        Raises:
            ValueError: when there is no capacity, or capacity or number of columns differ.
        """
        found, wanted = ((each.capacity, each.num_classes) for each in (plan, self))
        if found != wanted or self.capacity is None:
            raise ValueError(f"the plan has capacity and columns {found}, wanted {wanted}")
        self.blob_I.copy_(plan.blob_I, non_blocking=True)


class _Tables(NamedTuple):
    single_K: NDArray[np.int32]
    bunch_B4: NDArray[np.int32]
    tile_Y4: NDArray[np.int32]
    group_G6: NDArray[np.int32]


def _rows(lengths: Numbers, starts: Numbers, counts: Numbers) -> NDArray[np.int32]:
    """The rows as [R, 4], in the order given."""
    if not len(lengths) == len(starts) == len(counts):
        found = f"{len(lengths)}, {len(starts)}, {len(counts)}"
        raise ValueError(f"lengths, starts and counts differ in length: {found}")
    row_R4 = np.empty((len(lengths), len(HeadRow._fields)), dtype=np.int32)
    row_R4[:, 1], row_R4[:, 2], row_R4[:, 3] = lengths, starts, counts
    row_R4[:, 0] = np.cumsum(row_R4[:, 1]) - row_R4[:, 1]
    if row_R4.min(initial=0) < 0:
        raise ValueError("lengths, starts and counts must not be negative")
    return row_R4


def _tables(row_R4: NDArray[np.int32]) -> _Tables:
    """What the kernels read, in the order of heads."""
    order_R = np.lexsort((row_R4[:, 3], row_R4[:, 2]))
    row_R4 = row_R4[order_R]
    is_single_R = row_R4[:, 1] == 1
    single_K4 = row_R4[is_single_R]
    bunch_B4, tile_Y4 = _bunches(single_K4), _tiles(row_R4[~is_single_R])
    return _Tables(single_K4[:, 0], bunch_B4, tile_Y4, _groups(row_R4, bunch_B4[:, 0], tile_Y4[:, 0]))


def _bunches(single_K4: NDArray[np.int32]) -> NDArray[np.int32]:
    """Neighbours of one head, `BUNCH_VECTORS` at most where the head is wide, one by one where not."""
    count_K = single_K4[:, 3]
    first_B = index_K = np.arange(len(count_K))
    if count_K.max(initial=0) >= WIDE_HEAD:
        differs_K = np.ones(len(count_K), dtype=bool)
        differs_K[1:] = (single_K4[1:, 2:] != single_K4[:-1, 2:]).any(1)
        first_of_head_K = np.maximum.accumulate(index_K * differs_K)
        first_B = np.flatnonzero((count_K < WIDE_HEAD) | ((index_K - first_of_head_K) % BUNCH_VECTORS == 0))
    bunch_B4 = np.empty((len(first_B), 4), dtype=np.int32)
    bunch_B4[:, :2] = single_K4[first_B, 2:]
    bunch_B4[:, 2], bunch_B4[:, 3] = first_B, _sizes(first_B, len(count_K))
    return bunch_B4


def _tiles(row_R4: NDArray[np.int32]) -> NDArray[np.int32]:
    """Rows of several vectors, cut into tiles."""
    tiles_R = -(-row_R4[:, 1] // TILE_VECTORS)
    begin_R = np.cumsum(tiles_R) - tiles_R
    row_Y = np.repeat(np.arange(len(row_R4)), tiles_R)
    offset_Y = (np.arange(len(row_Y)) - begin_R[row_Y]) * TILE_VECTORS
    row_Y4 = row_R4[row_Y]
    tile_Y4 = np.empty_like(row_Y4)
    tile_Y4[:, :2] = row_Y4[:, 2:]
    tile_Y4[:, 2] = row_Y4[:, 0] + offset_Y
    tile_Y4[:, 3] = np.minimum(row_Y4[:, 1] - offset_Y, TILE_VECTORS)
    return tile_Y4


def _groups(
    row_R4: NDArray[np.int32], bunch_start_B: NDArray[np.int32], tile_start_Y: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Runs of arena rows whose heads overlap; no arena row is in two, so each gradient has one writer."""
    row_R4 = row_R4[(row_R4[:, 1] > 0) & (row_R4[:, 3] > 0)]
    start_R = row_R4[:, 2]
    end_R = np.maximum.accumulate(start_R + row_R4[:, 3])
    opens_R = np.ones(len(row_R4), dtype=bool)
    opens_R[1:] = start_R[1:] >= end_R[:-1]
    first_G = np.flatnonzero(opens_R)
    group_G6 = np.empty((len(first_G), 6), dtype=np.int32)
    group_G6[:, 0] = start_R[first_G]
    group_G6[:, 1] = end_R[first_G + _sizes(first_G, len(row_R4)) - 1]
    for column, start in ((2, bunch_start_B), (4, tile_start_Y)):
        first = np.searchsorted(start, group_G6[:, 0])
        group_G6[:, column], group_G6[:, column + 1] = first, _sizes(first, len(start))
    return group_G6


def _sizes(first: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """How long each run is, when the next begins where one ends."""
    return np.concatenate((first[1:], [end]))[: len(first)] - first


def _lengths(tables: _Tables, capacity: Capacity | None) -> list[int]:
    """First dimension of each table in the blob."""
    if capacity is None:
        return [*map(len, tables), 3]
    return [capacity.rows, capacity.rows, capacity.tiles, capacity.rows, 3]


def _blob(
    parts: Sequence[NDArray[np.int32]], lengths: Sequence[int], device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """One tensor on the device, and the views of it that hold the parts, as long as `lengths` says."""
    sizes = [length * math.prod(part.shape[1:]) for part, length in zip(parts, lengths, strict=True)]
    host_I = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
    flat_I, begin = host_I.numpy(), 0
    for part, size in zip(parts, sizes, strict=True):
        flat_I[begin : begin + part.size] = part.ravel()
        begin += size
    blob_I = host_I.to(device, non_blocking=True)
    views = zip(torch.split(blob_I, sizes), parts, strict=True)
    return blob_I, [view if part.ndim == 1 else view.view(-1, part.shape[1]) for view, part in views]
