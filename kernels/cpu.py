"""The grouped-bmm route: packed rows, one scratch of keys and values per group, two bmm and one softmax.

No padded batch and no concatenation per row: each prefix is written once into the scratch of a group, and each
row only overwrites the tail. Plain torch, so it serves any device and dtype; made for CPUs.
It refuses to know autograd, validation, and why the rows were put into these buckets.

Every bmm takes whole rows with all their heads, and how a row is cut into blocks of queries depends on its own
shape only, so a row's numbers do not depend on the rows it shares a batch with.

Shape letters: T packed tokens, S slots, H heads, N pool tokens, P prefix tokens, L own tokens of each row of a
bucket, J = P + L keys, I queries of a block, G rows computed at once, D head dim, B buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.kernels.operands import Needs, Operands, View, softmax_dtype
from prefixbank.kernels.plan import Bucket, Mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

BLOCK_SCORES = 1 << 18
"""Scores of one block: 1 MiB in fp32, about what stays in a core's own cache between the two bmm."""
LEAST_QUERIES = 64
"""A block of a long row has at least this many queries, so that its bmm is not all overhead."""


class Group(NamedTuple):
    """What one bmm takes: a bucket, or several that lie end to end and differ in nothing but the slot."""

    bucket: Bucket
    """Of a joined group, the rows of all its buckets; its slot is the first one's."""
    starts: tuple[int, ...]
    """Where in this layer's pool the prefix of each row lies."""
    prefix: int
    """P of this layer."""

    @property
    def keys(self) -> int:
        return self.prefix + self.bucket.length

    def can_join(self, after: Group) -> bool:
        """Whether `after` follows at once and its rows are like these, whatever prefix they read."""
        own, other = self.bucket, after.bucket
        return (own.length, own.context, self.prefix) == (
            other.length,
            other.context,
            after.prefix,
        ) and own.begin + own.num_rows * own.length == other.begin

    def join(self, after: Group) -> Group:
        """Both as one; `can_join` has been asked."""
        num_rows = self.bucket.num_rows + after.bucket.num_rows
        return Group(self.bucket._replace(num_rows=num_rows), self.starts + after.starts, self.prefix)


class Rows(NamedTuple):
    """Some rows of a group, computed at once."""

    first: int
    """Number of the first one in its group."""
    begin: int
    length: int
    num_rows: int

    def heads_first(self, x_THD: Tensor) -> Tensor:
        """View [T, H, D] as [G, H, L, D], or [T, H] as [G, H, L]."""
        token, head, *dim = x_THD.stride()
        shape = (self.num_rows, x_THD.shape[1], self.length, *x_THD.shape[2:])
        return x_THD.as_strided(
            shape, (self.length * token, head, token, *dim), x_THD.storage_offset() + self.begin * token
        )


@dataclass(frozen=True, slots=True)
class Scratch:
    """The keys (or values) of the rows at hand, contiguous: bf16 bmm loses a third of its speed to gaps."""

    pool_HND: Tensor
    own_THD: Tensor
    flat: Tensor

    @classmethod
    def over(cls, pool_HND: Tensor, own_THD: Tensor, groups: Sequence[Group]) -> Scratch:
        heads, _, dim = pool_HND.shape
        most = max((g.keys * rows_at_once(g, heads) for g in groups), default=0)
        return cls(pool_HND, own_THD, own_THD.new_empty(most * heads * dim, dtype=compute_dtype(own_THD)))

    def filled(self, group: Group, runs: Sequence[Rows]) -> Iterator[Tensor]:
        """Yield [G * H, J, D] for each run; a prefix that the scratch still holds is not written again."""
        heads, _, dim = self.pool_HND.shape
        shape = (runs[0].num_rows, heads, group.keys, dim)
        whole_GHJD = self.flat.as_strided(shape, (heads * group.keys * dim, group.keys * dim, dim, 1))
        held: tuple[int, ...] = ()
        for rows in runs:
            starts = group.starts[rows.first : rows.first + rows.num_rows]
            if starts != held[: len(starts)]:
                self._write_prefixes(whole_GHJD, starts, group.prefix)
                held = starts
            part_GHJD = whole_GHJD.narrow(0, 0, rows.num_rows)
            part_GHJD.narrow(2, group.prefix, rows.length).copy_(rows.heads_first(self.own_THD))
            yield part_GHJD.view(-1, group.keys, dim)

    def _write_prefixes(self, whole_GHJD: Tensor, starts: Sequence[int], prefix: int) -> None:
        row = 0
        for start, same in groupby(starts):
            count = len(list(same))
            part_GHPD = whole_GHJD.narrow(0, row, count).narrow(2, 0, prefix)
            part_GHPD.copy_(self.pool_HND.narrow(1, start, prefix))
            row += count


def forward(
    operands: Operands,
    view: View,
    *,
    with_lse: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] and, `with_lse`, the log-sum-exp [T, H] (else [0, H])."""
    q_THD, k_THD, v_THD, pool_k_HND, pool_v_HND = operands.differentiable
    groups = joined(read_groups(operands))
    tokens, heads, _ = q_THD.shape
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    lse_TH = q_THD.new_empty((tokens if with_lse else 0, heads), dtype=softmax_dtype(q_THD))
    if sum(g.bucket.length * g.bucket.num_rows for g in groups) < tokens:
        out_THD.zero_()
        lse_TH.fill_(-math.inf)
    room = room_for_scores(q_THD, groups)
    keys, values = Scratch.over(pool_k_HND, k_THD, groups), Scratch.over(pool_v_HND, v_THD, groups)
    for group in groups:
        runs = list(chunks(group, heads))
        for rows, k_GHJD, v_GHJD in zip(runs, keys.filled(group, runs), values.filled(group, runs), strict=True):
            q_GHLD, o_GHLD = rows.heads_first(q_THD), rows.heads_first(out_THD)
            for block in query_blocks(group, heads):
                s = scores(q_GHLD[:, :, block], k_GHJD, group, block, view, room)
                p = torch.softmax(s, -1, dtype=lse_TH.dtype)
                o_GHID = o_GHLD[:, :, block]
                o_GHID.copy_(torch.bmm(p.to(v_GHJD.dtype), v_GHJD).view(o_GHID.shape))
                if with_lse:
                    # The largest probability is 1 / (the softmax's denominator relative to the largest score).
                    lse = s.amax(-1).to(p.dtype) - p.amax(-1).log()
                    rows.heads_first(lse_TH)[:, :, block] = lse.view(o_GHID.shape[:-1])
    return out_THD, lse_TH


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
        groups.append(Group(bucket, (start,) * bucket.num_rows if length else (), length))
    return groups


def joined(groups: Sequence[Group]) -> list[Group]:
    """Join what lies end to end and differs in the slot alone, so that many tasks cost what one does."""
    whole: list[Group] = []
    for group in sorted(groups, key=lambda each: each.bucket.begin):
        if whole and whole[-1].can_join(group):
            whole[-1] = whole[-1].join(group)
        else:
            whole.append(group)
    return whole


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the bmm: CPUs have no fast fp16, so fp32 there is both faster and closer."""
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype


def rows_at_once(group: Group, heads: int) -> int:
    fit = BLOCK_SCORES // (heads * group.bucket.length * group.keys)
    return min(max(fit, 1), group.bucket.num_rows)


def chunks(group: Group, heads: int) -> Iterator[Rows]:
    """Cut a group into runs of rows whose scores fit a block."""
    step, bucket = rows_at_once(group, heads), group.bucket
    for first in range(0, bucket.num_rows, step):
        count = min(step, bucket.num_rows - first)
        yield Rows(first, bucket.begin + first * bucket.length, bucket.length, count)


def queries_at_once(group: Group, heads: int) -> int:
    fit = BLOCK_SCORES // (heads * group.keys) // LEAST_QUERIES * LEAST_QUERIES
    return min(max(fit, LEAST_QUERIES), group.bucket.length)


def query_blocks(group: Group, heads: int) -> Iterator[slice]:
    """Cut the queries of a row; depends on the row's own shape only."""
    step, length = queries_at_once(group, heads), group.bucket.length
    for first in range(0, length, step):
        yield slice(first, min(first + step, length))


def scores(q_GHID: Tensor, k_GHJD: Tensor, group: Group, block: slice, view: View, room: Tensor) -> Tensor:
    """Write the masked, scaled scores [G * H, I, J] into the room, and return them."""
    q = q_GHID.flatten(0, 1).to(k_GHJD.dtype)
    entries, queries, keys = q.shape[0], q.shape[1], group.keys
    s = room.as_strided((entries, queries, keys), (queries * keys, keys, 1))
    torch.baddbmm(s, q, k_GHJD.mT, beta=0, alpha=view.scale, out=s)
    if view.mode != Mode.FULL or view.window:
        s[:, :, group.prefix :].masked_fill_(hidden_own(group.bucket, block, view, s.device), -math.inf)
    return s


def room_for_scores(q_THD: Tensor, groups: Sequence[Group]) -> Tensor:
    """Allocate the scores of the largest block once: fresh memory for each would cost a sixth of the bmm."""
    heads = q_THD.shape[1]
    most = max((rows_at_once(g, heads) * heads * queries_at_once(g, heads) * g.keys for g in groups), default=0)
    return q_THD.new_empty(most, dtype=compute_dtype(q_THD))


def hidden_own(bucket: Bucket, block: slice, view: View, device: torch.device) -> Tensor:
    """Say which own key (column) is hidden from which query of the block (row): bool [I, L]."""
    key = torch.arange(bucket.length, dtype=torch.int32, device=device)
    ahead = key - key[block, None]
    hidden = ahead > (bucket.length if view.mode == Mode.FULL else 0)
    if view.mode == Mode.PREFIX_LM:
        hidden &= key >= bucket.context
    return hidden | (ahead.abs() > view.window) if view.window else hidden


def backward(
    d_out_THD: Tensor,
    d_lse_TH: Tensor,
    out_THD: Tensor,
    operands: Operands,
    view: View,
    needs: Needs,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, pool_k, pool_v; one that is not needed is an empty tensor.

    The rows of a slot are summed in the order of the buckets, so the same batch gives the same bits.
    """
    q_THD, k_THD, v_THD, pool_k_HND, pool_v_HND = operands.differentiable
    groups = read_groups(operands)
    heads, wide = q_THD.shape[1], softmax_dtype(q_THD)
    delta_TH = (d_out_THD.to(wide) * out_THD.to(wide)).sum(-1)
    if d_lse_TH.numel():
        delta_TH -= d_lse_TH
    d_q, d_k, d_v = (
        torch.zeros_like(x, memory_format=torch.contiguous_format) if need else x.new_empty(0)
        for x, need in zip((q_THD, k_THD, v_THD), needs[:3], strict=True)
    )
    d_pool_k, d_pool_v = (
        torch.zeros_like(x, dtype=wide, memory_format=torch.contiguous_format) if need else x.new_empty(0, dtype=wide)
        for x, need in zip((pool_k_HND, pool_v_HND), needs[3:], strict=True)
    )
    room = room_for_scores(q_THD, groups)
    keys, values = Scratch.over(pool_k_HND, k_THD, groups), Scratch.over(pool_v_HND, v_THD, groups)
    into_keys, into_values = Sums(d_k, d_pool_k), Sums(d_v, d_pool_v)
    for group in groups:
        runs = list(chunks(group, heads))
        for rows, k_GHJD, v_GHJD in zip(runs, keys.filled(group, runs), values.filled(group, runs), strict=True):
            q_GHLD, do_GHLD, delta_GHL = (rows.heads_first(x) for x in (q_THD, d_out_THD, delta_TH))
            for block in query_blocks(group, heads):
                p = torch.softmax(scores(q_GHLD[:, :, block], k_GHJD, group, block, view, room), -1, dtype=wide)
                do = do_GHLD[:, :, block].flatten(0, 1).to(v_GHJD.dtype)
                into_values.add(group, rows, p.to(do.dtype), do)
                if not (needs.q or needs.k or needs.pool_k):
                    continue
                dp = torch.bmm(do, v_GHJD.mT).to(wide)
                ds = (dp - delta_GHL[:, :, block].flatten(0, 1)[..., None]).mul_(p).mul_(view.scale).to(do.dtype)
                into_keys.add(group, rows, ds, q_GHLD[:, :, block].flatten(0, 1).to(do.dtype))
                if needs.q:
                    d_q_GHID = rows.heads_first(d_q)[:, :, block]
                    d_q_GHID.copy_(torch.bmm(ds, k_GHJD).view(d_q_GHID.shape))
    return d_q, d_k, d_v, d_pool_k.to(pool_k_HND.dtype), d_pool_v.to(pool_v_HND.dtype)


class Sums(NamedTuple):
    """Where the gradient of the keys (or of the values) is summed: own tokens apart from the pool.

    The rows of a group read one prefix: the backward joins no buckets.
    """

    own_THD: Tensor
    """[0] when not needed."""
    pool_HND: Tensor
    """[0] when not needed."""

    def add(self, group: Group, rows: Rows, weights_GHIJ: Tensor, x_GHID: Tensor) -> None:
        """Add weights^T x, computing only the columns of keys that are needed."""
        first = 0 if self.pool_HND.numel() else group.prefix
        stop = group.keys if self.own_THD.numel() else group.prefix
        if first >= stop:
            return
        sums_GHJD = torch.bmm(weights_GHIJ[:, :, first:stop].mT, x_GHID).view(
            rows.num_rows, -1, stop - first, x_GHID.shape[-1]
        )
        if self.own_THD.numel():
            rows.heads_first(self.own_THD).add_(sums_GHJD[:, :, group.prefix - first :])
        if self.pool_HND.numel() and group.prefix:
            lent = slice(group.starts[0], group.starts[0] + group.prefix)
            self.pool_HND[:, lent] += sums_GHJD[:, :, : group.prefix].sum(0, dtype=self.pool_HND.dtype)
