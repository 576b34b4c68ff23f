"""Batches of heads that hurt: in every arena what no head reads is NaN, and the last head ends the arena.

Shape letters: N vectors, M model width, Q arena rows, C classes of the widest head, R batch rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.head_plan import HeadPlan, HeadRow
from prefixbank.kernels.heads import apply_heads
from tests.kernel_cases import GRADIENT_TOLERANCE, distance, limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from prefixbank.kernels.attention import Route

EDGES = [
    HeadRow(0, vectors, start, count)
    for vectors, start, count in (
        *((1, 3, 1), (33, 3, 1), (0, 3, 1)),  # one class; no vectors
        *((1, 70, 15), (5, 100, 16), (1, 130, 17), (31, 130, 17), (32, 70, 15), (64, 100, 16)),
        *((1, 100, 16), (2, 100, 16)),  # heads shared by rows that are not neighbours
        *((1, 8, 0), (3, 8, 0), (0, 0, 0)),  # no classes
        *((4, 74, 9), (1, 80, 30), (6, 80, 30)),  # heads that overlap others, wider than both
        *((1, 200, 64), (1, 200, 64), (1, 200, 65)),  # wide heads, bunched
        *((1, 265, 4), (7, 268, 2)),  # the end of the arena
    )
]
"""Rows without regard to where their vectors lie: every kind of head meets one vector and several."""


@dataclass(frozen=True)
class HeadCase:
    """One call of `apply_heads`."""

    x_NM: Tensor
    weight_QM: Tensor
    bias_Q: Tensor
    rows: Sequence[HeadRow]
    """In the order of their vectors."""

    @property
    def plan(self) -> HeadPlan:
        return plan_of(self.rows, self.x_NM.device)

    @property
    def differentiated(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x_NM, self.weight_QM, self.bias_Q

    def with_tensors(self, tensors: Sequence[Tensor]) -> HeadCase:
        return replace(self, x_NM=tensors[0], weight_QM=tensors[1], bias_Q=tensors[2])

    def run(self, route: Route, plan: HeadPlan | None = None) -> Tensor:
        return apply_heads(*self.differentiated, plan or self.plan, route=route)

    def exact(self) -> Tensor:
        """Run the definition in fp64 on the same numbers, on the host."""
        x, weight, bias = (tensor.cpu().double() for tensor in self.differentiated)
        width = max((row.num_classes for row in self.rows), default=0)
        logits_NC = x.new_full((len(x), width), -math.inf)
        for row in laid_out(self.rows):
            own, head = _slice(row.first, row.num_vectors), _slice(row.head_start, row.num_classes)
            logits_NC[own, : row.num_classes] = x[own] @ weight[head].T + bias[head]
        return logits_NC

    def gradients(self, route: Route | None, d_logits_NC: Tensor) -> tuple[Tensor, ...]:
        """Gradients of x, weight and bias; by the definition in fp64 when `route` is None."""
        leaves = [x.detach().cpu().double() if route is None else x.detach().clone() for x in self.differentiated]
        case = self.with_tensors([leaf.requires_grad_() for leaf in leaves])
        logits_NC = case.exact() if route is None else case.run(route)
        return torch.autograd.grad(logits_NC, leaves, d_logits_NC.to(logits_NC))

    def alone(self, index: int) -> HeadCase:
        """One row of the batch, without the others."""
        row = laid_out(self.rows)[index]
        own = self.x_NM[_slice(row.first, row.num_vectors)]
        return replace(self, x_NM=own, rows=[row])

    def rows_of(self, index: int, logits_NC: Tensor) -> Tensor:
        """What one row of the batch got."""
        row = laid_out(self.rows)[index]
        return logits_NC[_slice(row.first, row.num_vectors)]

    def logits_of(self, index: int, logits_NC: Tensor) -> Tensor:
        """The same, without the columns that are not its own."""
        return self.rows_of(index, logits_NC)[:, : self.rows[index].num_classes]

    def ordered(self, order: Sequence[int]) -> HeadCase:
        """The rows in another order, each with its own vectors."""
        rows = laid_out(self.rows)
        return replace(
            self,
            x_NM=torch.cat([self.x_NM[_slice(rows[r].first, rows[r].num_vectors)] for r in order]),
            rows=[rows[r] for r in order],
        )


def make_heads(
    rows: Sequence[HeadRow] = EDGES,
    width: int = 24,
    *,
    dtype: torch.dtype = torch.float32,
    tail: int = 0,
    device: str = "cpu",
    seed: int = 0,
) -> HeadCase:
    """Draw vectors and heads for `rows`, and `tail` vectors of NaN behind them that belong to no row."""
    random = torch.Generator().manual_seed(seed)
    end = max((row.head_start + row.num_classes for row in rows), default=0)
    x_NM = torch.randn(sum(row.num_vectors for row in rows) + tail, width, generator=random)
    x_NM[len(x_NM) - tail :] = torch.nan
    weight_QM, bias_Q = torch.full((end, width), torch.nan), torch.full((end,), torch.nan)
    for row in rows:
        head = _slice(row.head_start, row.num_classes)
        weight_QM[head] = torch.randn(row.num_classes, width, generator=random)
        bias_Q[head] = torch.randn(row.num_classes, generator=random)
    return HeadCase(*(tensor.to(device, dtype) for tensor in (x_NM, weight_QM, bias_Q)), rows)


def assert_logits(found_NC: Tensor, case: HeadCase) -> None:
    """Minus infinity exactly where the definition has it, and as near to it as the dtype allows elsewhere."""
    wanted_NC = case.exact()
    is_own = wanted_NC.isfinite()
    assert found_NC.dtype == case.weight_QM.dtype
    assert torch.equal(found_NC.cpu().isneginf(), ~is_own)
    assert distance(found_NC.cpu()[is_own], wanted_NC[is_own]) <= limit(found_NC)


def assert_gradients(case: HeadCase, route: Route) -> None:
    """As near to the definition's as the dtype allows, although the gradient of minus infinity is NaN."""
    wanted_NC = case.exact()
    d_logits_NC = torch.randn(wanted_NC.shape, generator=torch.Generator().manual_seed(1)).to(case.weight_QM.dtype)
    found = case.gradients(route, d_logits_NC.masked_fill(~wanted_NC.isfinite(), torch.nan))
    for gradient, wanted in zip(found, case.gradients(None, d_logits_NC), strict=True):
        assert distance(gradient.detach().cpu(), wanted) <= limit(gradient, GRADIENT_TOLERANCE)


def laid_out(rows: Sequence[HeadRow]) -> list[HeadRow]:
    """The rows with their vectors end to end."""
    firsts = [0]
    for row in rows:
        firsts.append(firsts[-1] + row.num_vectors)
    return [row._replace(first=first) for row, first in zip(rows, firsts, strict=False)]


def plan_of(rows: Sequence[HeadRow], device: torch.device | str = "cpu", **options: object) -> HeadPlan:
    lengths, starts, counts = ([row[part] for row in rows] for part in (1, 2, 3))
    return HeadPlan.build(lengths, starts, counts, device=device, **options)  # type: ignore[arg-type]


def _slice(start: int, length: int) -> slice:
    return slice(start, start + length)
