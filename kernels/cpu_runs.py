"""Which rows of a batch meet in one product on a CPU, and how large rows are cut: arithmetic on the host.

It refuses to know values, dtypes and what is computed. Rows are joined whole, and how a row is cut depends on its own
shape only, so a row's numbers do not depend on the rows it shares a batch with.

Shape letters: T packed tokens, P prefix tokens, L own tokens of each row of a run, J = P + L keys, G rows of a run,
H heads (of a block: some of them), I queries of a block, E = H * G entries of a product, D head dim, X any dimensions.
"""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prefixbank.kernels.plan import Bucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from torch import Tensor

    from prefixbank.kernels.operands import Operands

RUN_BYTES = 2 << 20
"""Rows are computed together while their keys, values, queries and scores take no more than this."""
BLOCK_BYTES = 3 << 19
"""A single row is cut where its scores take more: between heads, then between queries.
At least half of `RUN_BYTES`: so rows that are computed together are never cut."""
QUERY_STEP = 64
"""Queries of a block are a multiple of this, but for the last block of a row."""


class Slot(NamedTuple):
    """A slot in this layer."""

    start: int
    length: int


class Width(NamedTuple):
    """What a token consists of."""

    heads: int
    dim: int
    item_bytes: int


class Layout(NamedTuple):
    """All that decides how a batch is computed. Layers share one while their prefixes are equally long."""

    buckets: bytes
    """int32 [B, 5]."""
    prefix_B: tuple[int, ...]
    """P of each bucket in this layer."""
    width: Width


class Loan(NamedTuple):
    """Neighbouring rows that read one slot."""

    slot: int
    num_rows: int


class Group(NamedTuple):
    """A bucket, or several that lie end to end and differ in nothing but the slot."""

    bucket: Bucket
    """Of a joined group, the rows of all its buckets; its slot is the first one's."""
    prefix: int
    loans: tuple[Loan, ...]
    """Of all rows, in turn."""

    def can_join(self, after: Group) -> bool:
        """Whether `after` follows at once and its rows are like these, whatever prefix they read."""
        own, other = self.bucket, after.bucket
        alike = (own.length, own.context, self.prefix) == (other.length, other.context, after.prefix)
        return alike and own.begin + own.num_rows * own.length == other.begin

    def join(self, after: Group) -> Group:
        """Both as one; `can_join` has been asked."""
        num_rows = self.bucket.num_rows + after.bucket.num_rows
        return Group(self.bucket._replace(num_rows=num_rows), self.prefix, self.loans + after.loans)

    def loans_of(self, first: int, count: int) -> tuple[Loan, ...]:
        """The loans of some of the rows; none without prefix."""
        ends = list(accumulate(loan.num_rows for loan in self.loans)) if self.prefix else []
        shares = (
            Loan(loan.slot, min(end, first + count) - max(end - loan.num_rows, first))
            for loan, end in zip(self.loans, ends, strict=False)
        )
        return tuple(loan for loan in shares if loan.num_rows > 0)


class Cut(NamedTuple):
    """How much of equal rows is computed at once."""

    rows: int
    heads: int
    queries: int

    @classmethod
    def of(cls, width: Width, length: int, keys: int) -> Cut:
        heads, dim, item_bytes = width
        row_bytes = item_bytes * heads * (2 * keys * dim + length * keys + 2 * length * dim)
        heads_that_fit = max(BLOCK_BYTES // (item_bytes * length * keys), 1)
        queries_that_fit = BLOCK_BYTES // (item_bytes * keys) // QUERY_STEP * QUERY_STEP
        return cls(
            rows=max(RUN_BYTES // row_bytes, 1),
            heads=-(-heads // -(-heads // heads_that_fit)),
            queries=min(max(queries_that_fit, QUERY_STEP), length),
        )


class Run(NamedTuple):
    """Rows of a group that are computed at once."""

    begin: int
    """First token of the first row."""
    length: int
    num_rows: int
    context: int
    prefix: int
    loans: tuple[Loan, ...]
    """Of all rows, in turn; none without prefix."""
    heads: int
    dim: int
    cut: Cut

    @property
    def keys(self) -> int:
        """J of each row."""
        return self.prefix + self.length

    @property
    def entries(self) -> int:
        return self.heads * self.num_rows

    @property
    def most_scores(self) -> int:
        """Of a block."""
        return self.num_rows * self.cut.heads * self.cut.queries * self.keys

    def blocks(self) -> Iterator[Block]:
        """Cut between heads, then between queries."""
        for head in range(0, self.heads, self.cut.heads):
            num_heads = min(self.cut.heads, self.heads - head)
            for query in range(0, self.length, self.cut.queries):
                yield Block(self, head, num_heads, query, min(self.cut.queries, self.length - query))


class Block(NamedTuple):
    """Some heads and queries of a run: what one product takes. Of several rows, all heads and queries."""

    run: Run
    head: int
    num_heads: int
    query: int
    num_queries: int

    def keys_of(self, all_EJX: Tensor) -> Tensor:
        """Its heads of what is there for each key."""
        num_entries = self.num_heads * self.run.num_rows
        return all_EJX if num_entries == all_EJX.shape[0] else all_EJX.narrow(0, self.head, num_entries)

    def queries_of(self, all_ELX: Tensor) -> Tensor:
        """Its heads and queries of what is there for each query."""
        own_ELX = self.keys_of(all_ELX)
        return own_ELX if self.num_queries == self.run.length else own_ELX.narrow(1, self.query, self.num_queries)


class Packed(NamedTuple):
    """A tensor [T, H, X] beside its strides, so that a view of rows costs a single call."""

    x_THX: Tensor
    first: int
    token: int
    head: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def over(cls, x_THX: Tensor) -> Packed:
        (token, head, *strides), (_, _, *sizes) = x_THX.stride(), x_THX.shape
        return cls(x_THX, int(x_THX.storage_offset()), token, head, tuple(sizes), tuple(strides))

    def of(self, run: Run) -> Tensor:
        """View the rows as [H, G, L, X]."""
        shape = (run.heads, run.num_rows, run.length, *self.sizes)
        strides = (self.head, run.length * self.token, self.token, *self.strides)
        return self.x_THX.as_strided(shape, strides, self.first + run.begin * self.token)

    def entries(self, run: Run, dtype: torch.dtype) -> Tensor:
        """Return the rows as [E, L, X], as a product takes them: of one row, a view."""
        if run.num_rows > 1:
            entries = self.of(run).flatten(0, 1)
        else:
            shape, strides = (run.heads, run.length, *self.sizes), (self.head, self.token, *self.strides)
            entries = self.x_THX.as_strided(shape, strides, self.first + run.begin * self.token)
        return entries if entries.dtype == dtype else entries.to(dtype)


def read_slots(operands: Operands) -> dict[int, Slot]:
    """Look the slots of a batch up in this layer's tables.

    Raises:
        ValueError: when one reaches beyond the pool.
    """
    slot_B, pool_tokens = operands.bucket_B5[:, 0], operands.pool_k_HND.shape[1]
    start_B, length_B = (
        table.index_select(0, slot_B.to(table.device)).tolist()
        for table in (operands.slot_start_S, operands.slot_length_S)
    )
    slots = dict(zip(slot_B.tolist(), map(Slot, start_B, length_B), strict=True))
    for number, (start, length) in slots.items():
        if start + length > pool_tokens:
            raise ValueError(f"slot {number} is pool tokens {start} to {start + length} of {pool_tokens}")
    return slots


def layout_of(operands: Operands, slots: dict[int, Slot], item_bytes: int) -> Layout:
    prefix_B = tuple(slots[slot].length for slot in operands.bucket_B5[:, 0].tolist())
    _, heads, dim = operands.q_THD.shape
    return Layout(operands.bucket_B5.numpy().tobytes(), prefix_B, Width(heads, dim, item_bytes))


@functools.lru_cache(maxsize=64)
def runs_of_slots(layout: Layout) -> tuple[Run, ...]:
    """Cut the batch into runs of which each reads one slot."""
    return tuple(_runs(_groups(layout), layout.width))


@functools.lru_cache(maxsize=64)
def joined_runs(layout: Layout) -> tuple[Run, ...]:
    """Cut the batch into runs whose rows may read different slots, so that many tasks cost what one does."""
    whole: list[Group] = []
    for group in _groups(layout):
        if whole and whole[-1].can_join(group):
            whole[-1] = whole[-1].join(group)
        else:
            whole.append(group)
    return tuple(_runs(whole, layout.width))


def _groups(layout: Layout) -> list[Group]:
    bucket_B5 = np.frombuffer(layout.buckets, dtype=np.int32).reshape(-1, len(Bucket._fields))
    buckets = map(Bucket._make, bucket_B5.tolist())
    return [
        Group(bucket, prefix, (Loan(bucket.slot, bucket.num_rows),))
        for bucket, prefix in zip(buckets, layout.prefix_B, strict=True)
    ]


def _runs(groups: Iterable[Group], width: Width) -> Iterator[Run]:
    for group in groups:
        _, length, context, begin, num_rows = group.bucket
        cut = Cut.of(width, length, group.prefix + length)
        for first in range(0, num_rows, cut.rows):
            count = min(cut.rows, num_rows - first)
            loans = group.loans_of(first, count)
            yield Run(begin + first * length, length, count, context, group.prefix, loans, width.heads, width.dim, cut)
