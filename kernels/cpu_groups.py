"""Which rows of a batch meet in one product on a CPU, and how large rows are cut: arithmetic on the host.

It refuses to know values, dtypes and what is computed. Rows are joined whole, and how a row is cut depends on its own
shape only, so a row's numbers do not depend on the rows it shares a batch with.

Shape letters: T packed tokens, P prefix tokens, L own tokens of each row of a run, J = P + L keys, G rows of a run,
H heads (of a block: some of them), I queries of a block, E = H * G entries of a product, D head dim, X any dims.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefixbank.kernels.plan import Bucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from prefixbank.kernels.operands import Operands

RUN_BYTES = 2 << 20
"""Rows are computed together while their keys, values, queries and scores take no more than this."""
BLOCK_BYTES = 3 << 19
"""A single row is cut where its scores take more: between heads, then between queries.
At least half of `RUN_BYTES`: so rows that are computed together are never cut."""
QUERY_STEP = 64
"""Queries of a block are a multiple of this, but for the last block of a row."""


class Loan(NamedTuple):
    """Where in this layer's pool the prefix of a row lies."""

    slot: int
    start: int


class Group(NamedTuple):
    """A bucket, or several that lie end to end and differ in nothing but the slot."""

    bucket: Bucket
    """Of a joined group, the rows of all its buckets; its slot is the first one's."""
    loans: tuple[Loan, ...]
    """Of each row; empty without prefix."""
    prefix: int
    """P of this layer."""

    def can_join(self, after: Group) -> bool:
        """Whether `after` follows at once and its rows are like these, whatever prefix they read."""
        own, other = self.bucket, after.bucket
        alike = (own.length, own.context, self.prefix) == (other.length, other.context, after.prefix)
        return alike and own.begin + own.num_rows * own.length == other.begin

    def join(self, after: Group) -> Group:
        """Both as one; `can_join` has been asked."""
        num_rows = self.bucket.num_rows + after.bucket.num_rows
        return Group(self.bucket._replace(num_rows=num_rows), self.loans + after.loans, self.prefix)


class Run(NamedTuple):
    """Rows of a group that are computed at once, and how they are cut."""

    begin: int
    """First token of the first row."""
    length: int
    num_rows: int
    context: int
    loans: tuple[Loan, ...]
    """Of each row; empty without prefix."""
    prefix: int
    keys: int
    """J of each row."""
    heads_at_once: int
    queries_at_once: int

    @property
    def most_scores(self) -> int:
        """Of a block."""
        return self.num_rows * self.heads_at_once * self.queries_at_once * self.keys

    def of(self, x_HTX: Tensor) -> Tensor:
        """View these rows' tokens as [H, L, ...] of one row, [H, G, L, ...] of several."""
        own = x_HTX.narrow(1, self.begin, self.num_rows * self.length)
        return own if self.num_rows == 1 else own.view(-1, self.num_rows, self.length, *x_HTX.shape[2:])

    def blocks(self, heads: int) -> Iterator[Block]:
        if self.heads_at_once == heads and self.queries_at_once == self.length:
            yield Block(self, 0, heads, 0, self.length)
            return
        for head in range(0, heads, self.heads_at_once):
            num_heads = min(self.heads_at_once, heads - head)
            for query in range(0, self.length, self.queries_at_once):
                yield Block(self, head, num_heads, query, min(self.queries_at_once, self.length - query))


class Block(NamedTuple):
    """Some heads and queries of a run: what one product takes."""

    run: Run
    head: int
    num_heads: int
    query: int
    num_queries: int

    def of(self, x_HTX: Tensor) -> Tensor:
        """View the block's tokens as [H, I, ...] of one row, [H, G, L, ...] of several."""
        if self.run.num_rows > 1:
            return self.run.of(x_HTX)
        own = x_HTX.narrow(1, self.run.begin + self.query, self.num_queries)
        return own if self.num_heads == len(x_HTX) else own.narrow(0, self.head, self.num_heads)

    def entries(self, x_HTD: Tensor) -> Tensor:
        """The block's tokens as a product takes them: [E, I, D]."""
        own = self.of(x_HTD)
        return own if self.run.num_rows == 1 else own.flatten(0, 1)

    def part(self, all_EJD: Tensor) -> Tensor:
        """The block's part of the keys or values of all heads."""
        return all_EJD.narrow(0, self.head, self.num_heads * self.run.num_rows)


class Width(NamedTuple):
    """How much each token of a row weighs."""

    heads: int
    dim: int
    item_bytes: int

    def runs(self, groups: Iterable[Group]) -> list[Run]:
        """Cut groups into rows that are computed at once."""
        return [run for group in groups for run in self._runs(group)]

    def _runs(self, group: Group) -> Iterator[Run]:
        (_, length, context, begin, num_rows), loans, prefix = group
        keys = prefix + length
        heads, queries, step = self._heads(length, keys), self._queries(length, keys), self._rows(length, keys)
        for first in range(0, num_rows, step):
            count, start = min(step, num_rows - first), begin + first * length
            yield Run(start, length, count, context, loans[first : first + count], prefix, keys, heads, queries)

    def _rows(self, length: int, keys: int) -> int:
        row_bytes = self.item_bytes * self.heads * (2 * keys * self.dim + length * keys + 2 * length * self.dim)
        return max(RUN_BYTES // row_bytes, 1)

    def _heads(self, length: int, keys: int) -> int:
        """Cut as evenly as fits."""
        fit = max(BLOCK_BYTES // (self.item_bytes * length * keys), 1)
        return -(-self.heads // -(-self.heads // fit))

    def _queries(self, length: int, keys: int) -> int:
        fit = BLOCK_BYTES // (self.item_bytes * keys) // QUERY_STEP * QUERY_STEP
        return min(max(fit, QUERY_STEP), length)


def read_groups(operands: Operands) -> list[Group]:
    """Join the buckets with this layer's slot table.

    Raises:
        ValueError: when a slot reaches beyond the pool.
    """
    slots, pool_tokens = operands.bucket_B5[:, 0].to(operands.slot_start_S.device), operands.pool_k_HND.shape[1]
    starts = operands.slot_start_S.index_select(0, slots).tolist()
    lengths = operands.slot_length_S.index_select(0, slots).tolist()
    groups = []
    for bucket, start, length in zip(map(Bucket._make, operands.bucket_B5.tolist()), starts, lengths, strict=True):
        if start + length > pool_tokens:
            raise ValueError(f"slot {bucket.slot} is pool tokens {start} to {start + length} of {pool_tokens}")
        groups.append(Group(bucket, (Loan(bucket.slot, start),) * bucket.num_rows if length else (), length))
    return groups


def joined(groups: Sequence[Group]) -> list[Group]:
    """Join what lies end to end and differs in the slot alone, so that many tasks cost what one does."""
    whole: list[Group] = []
    for group in groups:
        if whole and whole[-1].can_join(group):
            whole[-1] = whole[-1].join(group)
        else:
            whole.append(group)
    return whole
