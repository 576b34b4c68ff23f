"""Which rows of a batch meet in one product on a CPU, and how large rows are cut: arithmetic on the host.

It refuses to know values, dtypes and what is computed. Rows are joined whole, and how a row is cut depends on its own
shape only, so a row's numbers do not depend on the rows it shares a batch with.

Shape letters: T packed tokens, P prefix tokens, L own tokens of each row of a run, J = P + L keys, G rows of a run,
H heads (of a block: some of them), I queries of a block, E = H * G entries of a product, D head dim, X any dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prefixbank.kernels.plan import Bucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
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


class Loan(NamedTuple):
    """Neighbouring rows that read one slot."""

    slot: int
    num_rows: int


class Group(NamedTuple):
    """A bucket, or neighbouring ones that differ in nothing but the slot."""

    length: int
    context: int
    prefix: int
    loans: tuple[Loan, ...]
    """Of all rows, in turn."""

    @property
    def num_rows(self) -> int:
        return sum(loan.num_rows for loan in self.loans)

    def can_join(self, after: Group) -> bool:
        """Whether the rows of `after` are like these, whatever prefix they read."""
        return self[:3] == after[:3]

    def join(self, after: Group) -> Group:
        """Both as one; `can_join` has been asked."""
        return self._replace(loans=self.loans + after.loans)

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


@dataclass(frozen=True, eq=False)
class Run:
    """Rows of a group that are computed at once."""

    length: int
    num_rows: int
    context: int
    prefix: int
    loans: tuple[Loan, ...]
    """Of all rows, in turn; none without prefix."""
    heads: int
    dim: int
    cut: Cut

    @cached_property
    def num_tokens(self) -> int:
        return self.num_rows * self.length

    @cached_property
    def keys(self) -> int:
        """J of each row."""
        return self.prefix + self.length

    @cached_property
    def entries(self) -> int:
        return self.heads * self.num_rows

    @cached_property
    def most_scores(self) -> int:
        """Of a block."""
        return self.num_rows * self.cut.heads * self.cut.queries * self.keys

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Cut between heads, then between queries."""
        heads, queries = range(0, self.heads, self.cut.heads), range(0, self.length, self.cut.queries)
        return tuple(
            Block(self, head, min(heads.step, heads.stop - head), query, min(queries.step, queries.stop - query))
            for head in heads
            for query in queries
        )


class Block(NamedTuple):
    """Some heads and queries of a run: what one product takes. Of several rows, all heads and queries."""

    run: Run
    head: int
    num_heads: int
    query: int
    num_queries: int

    def keys_of(self, all_EJX: Tensor) -> Tensor:
        """Its heads of what is there for each key."""
        if self.num_heads == self.run.heads:
            return all_EJX
        return all_EJX.narrow(0, self.head, self.num_heads)

    def queries_of(self, all_ELX: Tensor) -> Tensor:
        """Its heads and queries of what is there for each query."""
        own_ELX = self.keys_of(all_ELX)
        return own_ELX if self.num_queries == self.run.length else own_ELX.narrow(1, self.query, self.num_queries)


class Runs(NamedTuple):
    """A batch, cut up: the runs lie end to end, the first from token 0."""

    each: tuple[Run, ...]
    num_tokens: tuple[int, ...]
    """Of each run."""
    all_tokens: int

    @classmethod
    def of(cls, groups: Iterable[Group], width: Width) -> Runs:
        runs = tuple(_runs(groups, width))
        num_tokens = tuple(run.num_tokens for run in runs)
        return cls(runs, num_tokens, sum(num_tokens))

    def split(self, x_THX: Tensor) -> tuple[Tensor, ...]:
        """View [T, H, X] as [H, G * L, X] of each run."""
        beyond = x_THX.shape[0] - self.all_tokens
        return x_THX.transpose(0, 1).split_with_sizes([*self.num_tokens, beyond], 1)

    def split_flat(self, x: Tensor, heads: int) -> tuple[Tensor, ...]:
        """Cut [H * T] into the [E * L] of each run."""
        return x.split_with_sizes([heads * tokens for tokens in self.num_tokens])

    @property
    def most_tokens(self) -> int:
        """Of all heads of a run."""
        return max((run.entries * run.length for run in self.each), default=0)

    @property
    def most_keys(self) -> int:
        """Of all heads of a run."""
        return max((run.entries * run.keys for run in self.each), default=0)

    @property
    def most_scores(self) -> int:
        """Of a block."""
        return max((run.most_scores for run in self.each), default=0)


class Layout(NamedTuple):
    """All that decides how a batch is computed. Layers share one while their prefixes are equally long."""

    buckets: bytes
    """int32 [B, 5]."""
    prefixes: tuple[int, ...]
    """P in this layer of each slot of `slots_of(buckets)`."""
    width: Width


def read_slots(operands: Operands, item_bytes: int) -> tuple[dict[int, Slot], Layout]:
    """Look the slots of a batch up in this layer's tables, and say how it is laid out.

    Raises:
        ValueError: when a slot reaches beyond the pool.
    """
    buckets = operands.bucket_B5.numpy().tobytes()
    numbers = slots_of(buckets)
    starts, lengths = (
        table.cpu().numpy()[numbers].tolist() for table in (operands.slot_start_S, operands.slot_length_S)
    )
    slots = dict(zip(numbers.tolist(), map(Slot, starts, lengths), strict=True))
    _, heads, dim = operands.q_THD.shape
    pool_tokens = operands.pool_k_HND.shape[1]
    for number, (start, length) in slots.items():
        if start + length > pool_tokens:
            raise ValueError(f"slot {number} is pool tokens {start} to {start + length} of {pool_tokens}")
    return slots, Layout(buckets, tuple(lengths), Width(heads, dim, item_bytes))


@lru_cache(maxsize=64)
def slots_of(buckets: bytes) -> NDArray[np.int64]:
    """The distinct slots of a batch, ascending."""
    return np.unique(_bucket_B5(buckets)[:, 0]).astype(np.int64)


@lru_cache(maxsize=64)
def runs_of_slots(layout: Layout) -> Runs:
    """Cut the batch into runs of which each reads one slot."""
    return Runs.of(_groups(layout), layout.width)


@lru_cache(maxsize=64)
def joined_runs(layout: Layout) -> Runs:
    """Cut the batch into runs whose rows may read different slots, so that many tasks cost what one does."""
    whole: list[Group] = []
    for group in _groups(layout):
        if whole and whole[-1].can_join(group):
            whole[-1] = whole[-1].join(group)
        else:
            whole.append(group)
    return Runs.of(whole, layout.width)


def _groups(layout: Layout) -> list[Group]:
    prefix_of = dict(zip(slots_of(layout.buckets).tolist(), layout.prefixes, strict=True))
    groups, end = [], 0
    for slot, length, context, begin, num_rows in _bucket_B5(layout.buckets).tolist():
        assert begin == end, f"a bucket begins at token {begin}, and the one before ends at {end}. This is a bug."
        groups.append(Group(length, context, prefix_of[slot], (Loan(slot, num_rows),)))
        end += length * num_rows
    return groups


def _bucket_B5(buckets: bytes) -> NDArray[np.int32]:
    return np.frombuffer(buckets, dtype=np.int32).reshape(-1, len(Bucket._fields))


def _runs(groups: Iterable[Group], width: Width) -> Iterator[Run]:
    for group in groups:
        cut = Cut.of(width, group.length, group.prefix + group.length)
        for first in range(0, group.num_rows, cut.rows):
            count = min(cut.rows, group.num_rows - first)
            loans = group.loans_of(first, count)
            yield Run(group.length, count, group.context, group.prefix, loans, width.heads, width.dim, cut)
