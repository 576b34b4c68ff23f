"""Attention problems that hurt, and how near to the fp64 definition an implementation must come.

Shape letters: T packed tokens, H heads, D head dim, N pool tokens, S slots.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank.kernels.attention import Route, prefix_attention
from prefixbank.kernels.plan import BatchPlan, LayerPrefix, Mode
from prefixbank.kernels.reference import reference_attention

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 5e-3}
"""Largest relative L2 distance of an output from the definition in fp64 on the same inputs."""
GRADIENT_TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""The same for gradients, which pass two roundings more."""
FP32_ON_A_GPU = 1e-5
"""What fp32 may be off by on a GPU, where a product of fp32 is the sum of three on the matrix unit."""
DTYPES = list(TOLERANCE)

OWN_LENGTHS = (0, 1, 15, 16, 17, 63, 64, 65)
PREFIX_LENGTHS = (0, 1, 15, 16, 17, 64)
VIEWS = [(Mode.FULL, 0), (Mode.CAUSAL, 0), (Mode.PREFIX_LM, 0), (Mode.FULL, 5), (Mode.CAUSAL, 5), (Mode.PREFIX_LM, 5)]


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Make fresh memory NaN, so that whatever is read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    assert torch.ones(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Case:
    """One call of prefix attention."""

    q_THD: Tensor
    k_THD: Tensor
    v_THD: Tensor
    prefix: LayerPrefix
    plan: BatchPlan
    window: int = 0

    @property
    def scale(self) -> float:
        return float(self.q_THD.shape[-1] ** -0.5)

    @property
    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_THD, self.k_THD, self.v_THD

    def arguments(self, *, with_lse: bool, route: Route = Route.CPU) -> tuple[object, ...]:
        """What the operator takes."""
        scalars = (self.scale, int(self.plan.mode), self.window, *self.plan.tiling, with_lse, route.value)
        return (*self.packed, *self.prefix, *self.plan.indices, *scalars)

    @property
    def differentiated(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return *self.packed, self.prefix.pool_k_HND, self.prefix.pool_v_HND

    def with_tensors(self, tensors: Sequence[Tensor]) -> Case:
        prefix = self.prefix._replace(pool_k_HND=tensors[3], pool_v_HND=tensors[4])
        return replace(self, q_THD=tensors[0], k_THD=tensors[1], v_THD=tensors[2], prefix=prefix)

    def run(self, route: Route | None = None) -> Tensor:
        return prefix_attention(*self.packed, self.prefix, self.plan, scale=self.scale, window=self.window, route=route)

    def exact(self) -> Tensor:
        """Run the definition in fp64 on the same inputs."""
        exact = self.with_tensors([x.double() for x in self.differentiated])
        return reference_attention(*exact.packed, exact.prefix, exact.plan, scale=exact.scale, window=exact.window)[0]


def make_prefix(lengths: Sequence[int], heads: int, dim: int, dtype: torch.dtype = torch.float32) -> LayerPrefix:
    """Lay prefixes out in 16-token runs; what no slot holds is NaN, and the last slot ends the arena."""
    starts, end = [], 16
    for length in lengths:
        starts.append(end if length else 0)
        end += -(-length // 16) * 16
    end = starts[-1] + lengths[-1] if lengths[-1] else end
    pool_k, pool_v = torch.full((2, heads, end, dim), torch.nan).to(dtype).unbind()
    for start, length in zip(starts, lengths, strict=True):
        pool_k[:, start : start + length] = torch.randn(heads, length, dim)
        pool_v[:, start : start + length] = torch.randn(heads, length, dim)
    return LayerPrefix(pool_k, pool_v, int32(starts), int32(lengths))


def make_case(
    lengths: Sequence[int],
    slots: Sequence[int],
    prefix_lengths: Sequence[int] = PREFIX_LENGTHS,
    *,
    heads: int = 3,
    dim: int = 16,
    dtype: torch.dtype = torch.float32,
    mode: Mode = Mode.FULL,
    window: int = 0,
    seed: int = 0,
) -> Case:
    """Build a batch whose q, k, v are the non-contiguous slices of one projection, as models make them."""
    torch.manual_seed(seed)
    plan = BatchPlan.build(lengths, slots, mode=mode, context=[length // 2 for length in lengths])
    qkv = torch.randn(sum(lengths), 3, heads, dim).to(dtype)
    prefix = make_prefix(prefix_lengths, heads, dim, dtype)
    return Case(qkv[:, 0], qkv[:, 1], qkv[:, 2], prefix, plan, window)


def every_edge(seed: int = 0) -> tuple[list[int], list[int]]:
    """Return lengths and slots that pair every own length with every prefix length twice, in random order."""
    rows = [(length, slot) for length in OWN_LENGTHS for slot in range(len(PREFIX_LENGTHS))] * 2
    random.Random(seed).shuffle(rows)
    return [length for length, _ in rows], [slot for _, slot in rows]


def int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def limit(found: Tensor, table: dict[torch.dtype, float] = TOLERANCE) -> float:
    """Return how far from the definition a tensor may be, by its dtype and the device that computed it."""
    return FP32_ON_A_GPU if found.is_cuda and found.dtype == torch.float32 else table[found.dtype]


def distance(found: Tensor, wanted: Tensor) -> float:
    """Return the relative L2 distance; NaN anywhere makes it NaN, which no tolerance passes."""
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
