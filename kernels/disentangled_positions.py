"""Relative positions of disentangled attention: the projected position embeddings, and which one a distance takes.

A model's buckets, logarithms and clamps are all one int32 table over distances, built once per model and device. The
distance of query `i` and own key `j` is `i - j`. It refuses to know queries, keys and rows.

The rules are those of the published DeBERTa code (He et al., "DeBERTa", 2021; "DeBERTaV3", 2023), number for number.
Content to position takes the entry of `i - j`. Position to content takes that of minus the bucket of `j - i`; since
buckets are odd, that is the entry of `i - j` as well, and one table serves both.

Shape letters: Q entries of the position table (twice the span), W distances -reach .. reach, H heads, D head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.kernels.operands import Needs

if TYPE_CHECKING:
    from torch import Tensor


class Positions(NamedTuple):
    """What a layer adds to the scores of own keys: q_i . pos_key[entry(i - j)] + k_j . pos_query[entry(i - j)]."""

    pos_key_QHD: Tensor | None
    """Content to position ("c2p"); None when the model has no such term."""
    pos_query_QHD: Tensor | None
    """Position to content ("p2c"); None when the model has no such term."""
    distance_W: Tensor
    """int32 [2 * reach + 1]: the entry of each distance; what is farther than reach is as far as reach."""


class DisentangledNeeds(NamedTuple):
    """Which gradients are asked for."""

    q: bool
    k: bool
    v: bool
    pos_key: bool
    pos_query: bool
    pool_k: bool
    pool_v: bool

    @property
    def plain(self) -> Needs:
        """Those that attention without positions has as well."""
        return Needs(self.q, self.k, self.v, self.pool_k, self.pool_v)


def clamped_distances(span: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the table of a model without buckets (v1, and v2 with `position_buckets` < 1): one entry per distance.

    Args:
        span: `max_relative_positions`, or `max_position_embeddings` when that is below 1.
    """
    if span < 1:
        raise ValueError(f"the span is {span}, wanted at least 1")
    return _entries(torch.arange(-span, span + 1), span).to(device)


def log_bucket_distances(num_buckets: int, max_position: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the table of a model with `position_buckets` (v2, v3): near distances apart, far ones by logarithm.

    Args:
        num_buckets: `position_buckets`, which is the span of the position table.
        max_position: `max_relative_positions`, or `max_position_embeddings` when that is below 1.
    """
    if num_buckets < 2 or max_position - 1 <= num_buckets // 2:
        raise ValueError(f"{num_buckets} buckets up to {max_position}, wanted at least 2 that do not reach so far")
    reach = 2 * max_position
    while True:
        entries_W = _entries(_log_bucket(torch.arange(-reach, reach + 1), num_buckets, max_position), num_buckets)
        # With one bucket near and one far there is nothing farther that could still change.
        if num_buckets < 4 or (entries_W[0] == 0 and entries_W[-1] == 2 * num_buckets - 1):
            return entries_W.to(device)
        reach *= 2


def _log_bucket(distance_W: Tensor, num_buckets: int, max_position: int) -> Tensor:
    """Near distances are their own bucket; `max_position - 1` is the last. In fp32, as the models were trained."""
    near = num_buckets // 2
    far_W = distance_W.abs().clamp_min(near)
    octave = torch.log(torch.tensor((max_position - 1) / near))
    bucket_W = torch.ceil(torch.log(far_W / near) / octave * (near - 1)) + near
    return torch.where(distance_W.abs() <= near, distance_W, (bucket_W * distance_W.sign()).long())


def _entries(bucket_W: Tensor, span: int) -> Tensor:
    return (bucket_W + span).clamp(0, 2 * span - 1).to(torch.int32)


def distances_between(distance_W: Tensor, nearest: int, farthest: int) -> Tensor:
    """Return the entries of the distances nearest .. farthest, both included."""
    reach = len(distance_W) // 2
    asked = torch.arange(nearest, farthest + 1, device=distance_W.device)
    return distance_W[asked.clamp(-reach, reach) + reach].long()


def check_positions(q: Tensor, positions: Positions) -> None:
    """Raise ValueError when shapes, dtypes or devices do not fit q. Entries themselves are the builder's matter."""
    pos_key, pos_query, distance = positions
    tables = [x for x in (pos_key, pos_query) if x is not None]
    if not tables:
        raise ValueError("neither pos_key nor pos_query is given: that is prefix_attention")
    for x in tables:
        if x.shape != tables[0].shape or x.dim() != 3 or x.shape[1:] != q.shape[1:]:
            heads, dim = q.shape[1:]
            raise ValueError(f"the position tables are {[[*t.shape] for t in tables]}, wanted [Q, {heads}, {dim}]")
        if x.dtype != q.dtype:
            raise ValueError(f"the position tables are {[t.dtype for t in tables]}, wanted {q.dtype} as q")
    if distance.dtype != torch.int32 or distance.dim() != 1 or len(distance) % 2 == 0:
        raise ValueError(f"the distances are {distance.dtype} {[*distance.shape]}, wanted int32 [2 * reach + 1]")
    if {x.device for x in (*tables, distance)} != {q.device}:
        devices = tuple(str(x.device) for x in (*tables, distance))
        raise ValueError(f"the position tables and distances are on {devices}, wanted {q.device}")
