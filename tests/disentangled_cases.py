"""Problems for disentangled attention: those of `kernel_cases`, with position tables.

Shape letters: T packed tokens, H heads, D head dim, Q entries of the position table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.disentangled import disentangled_attention
from prefixbank.kernels.disentangled_positions import Positions, log_bucket_distances
from prefixbank.kernels.operands import QUANTISED
from prefixbank.kernels.plan import BatchPlan, Tiling
from tests.kernel_cases import PREFIX_LENGTHS, Case, make_case

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from prefixbank.kernels.attention import Route

NAMES = ("q", "k", "v", "pos_key", "pos_query", "pool_k", "pool_v")
TERMS = [("c2p", "p2c"), ("c2p",), ("p2c",)]
BUCKETS, LONGEST = 8, 20
"""A table so small that rows of the edge lengths reach beyond it: log buckets from distance 5, one from 19 on."""


@dataclass(frozen=True)
class DisentangledCase:
    """One call of disentangled attention."""

    case: Case
    positions: Positions

    @property
    def scale(self) -> float:
        return float((3 * self.case.q_THD.shape[2]) ** -0.5)

    @property
    def plan(self) -> BatchPlan:
        return self.case.plan

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What may be differentiated and is there."""
        q, k, v, *pools = self.case.differentiated
        tensors = (q, k, v, *self.positions[:2], *pools)
        return {name: x for name, x in zip(NAMES, tensors, strict=True) if x is not None}

    def with_leaves(self, leaves: dict[str, Tensor]) -> DisentangledCase:
        case = self.case.with_tensors([leaves[name] for name in ("q", "k", "v", "pool_k", "pool_v")])
        positions = self.positions._replace(pos_key_QHD=leaves.get("pos_key"), pos_query_QHD=leaves.get("pos_query"))
        return DisentangledCase(case, positions)

    def with_plan(self, plan: BatchPlan) -> DisentangledCase:
        return replace(self, case=replace(self.case, plan=plan))

    def run(self, route: Route | None = None) -> Tensor:
        arguments = (*self.case.packed, *self.positions, self.case.prefix, self.plan)
        return disentangled_attention(*arguments, scale=self.scale, route=route)

    def gradients(self, route: Route | None = None, names: Sequence[str] = NAMES) -> dict[str, Tensor]:
        """Differentiate a random projection of the output; the projection depends on the shape alone."""
        leaves = {name: x.detach().requires_grad_(name in names) for name, x in self.leaves.items()}
        wanted = [name for name in leaves if name in names]
        out = self.with_leaves(leaves).run(route)
        grads = torch.autograd.grad(out, [leaves[name] for name in wanted], _projection(out))
        return dict(zip(wanted, grads, strict=True))

    def wide(self) -> DisentangledCase:
        """The same inputs in fp64; a pool of one byte per number stays as it is."""
        return self.with_leaves({name: x if x.dtype in QUANTISED else x.double() for name, x in self.leaves.items()})

    def rows(self, chosen: Sequence[int]) -> tuple[DisentangledCase, Tensor]:
        """Return the batch of these rows alone, in this order, and their tokens in this batch."""
        bounds, slots = self.plan.row_start_R1.tolist(), self.plan.slot_R.tolist()
        tokens = torch.cat([torch.arange(bounds[row], bounds[row + 1]) for row in chosen])
        lengths = [bounds[row + 1] - bounds[row] for row in chosen]
        plan = BatchPlan.build(lengths, [slots[row] for row in chosen], tiling=self.plan.tiling)
        own = {name: x[tokens] if name in ("q", "k", "v") else x for name, x in self.leaves.items()}
        return self.with_leaves(own).with_plan(plan), tokens


def _projection(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)


def make_disentangled(
    lengths: Sequence[int],
    slots: Sequence[int],
    prefix_lengths: Sequence[int] = PREFIX_LENGTHS,
    *,
    heads: int = 2,
    dim: int = 16,
    dtype: torch.dtype = torch.float32,
    terms: Sequence[str] = TERMS[0],
    tiling: Tiling | None = None,
) -> DisentangledCase:
    """Build a batch whose position tables are the non-contiguous slices of one projection."""
    case = make_case(lengths, slots, prefix_lengths, heads=heads, dim=dim, dtype=dtype)
    if tiling:
        case = replace(case, plan=BatchPlan.build(lengths, slots, tiling=tiling))
    key, query = torch.randn(2 * BUCKETS, 2, heads, dim).to(dtype).unbind(1)
    positions = Positions(
        key if "c2p" in terms else None, query if "p2c" in terms else None, log_bucket_distances(BUCKETS, LONGEST)
    )
    return DisentangledCase(case, positions)
