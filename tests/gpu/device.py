"""The device that these tests run on, and what only a device has: graphs, waits that are errors, compilations.

On a CPU, where these tests only rehearse, a graph is the call again, waiting is no error, and nothing is compiled.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import triton

from prefixbank.kernels.attention import Route
from prefixbank.kernels.disentangled_positions import Positions, clamped_distances, log_bucket_distances
from prefixbank.kernels.plan import BatchPlan, Capacity, Mode, Tiling
from tests.disentangled_cases import TERMS, DisentangledCase
from tests.kernel_cases import GRADIENT_TOLERANCE, PREFIX_LENGTHS, Case, limit, make_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

REHEARSAL = "REHEARSE"
"""Set in the environment, these tests run on a CPU in Triton's interpreter, at small shapes."""
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

HEADS = 16 if ON_GPU else 2
"""On a GPU as many as the declared configurations are for: what the compile gate built is then in Triton's cache."""
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LIMIT = {dtype: limit(torch.empty(0, dtype=dtype, device=DEVICE)) for dtype in DTYPES}
GRADIENT_LIMIT = {dtype: limit(torch.empty(0, dtype=dtype, device=DEVICE), GRADIENT_TOLERANCE) for dtype in DTYPES}
"""The largest distances from the definition that pass on this device."""


def why_not() -> str | None:
    """Why these tests cannot run here; None when they can."""
    if ON_GPU or os.environ.get(REHEARSAL):
        return None
    return f"no CUDA device is here; {REHEARSAL}=1 rehearses on the CPU"


def on_gpu(everything: Sequence[Any], *, rehearsed: Sequence[Any]) -> list[Any]:
    """Parameters: everything on a GPU, some in a rehearsal."""
    return list(everything if ON_GPU else rehearsed)


def make_case(
    lengths: Sequence[int],
    slots: Sequence[int],
    prefix_lengths: Sequence[int] = PREFIX_LENGTHS,
    *,
    heads: int = HEADS,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    mode: Mode = Mode.FULL,
    window: int = 0,
    tiling: Tiling | None = None,
    capacity: Capacity | None = None,
    tail: int = 0,
    seed: int = 0,
) -> Case:
    """A batch on the device, its numbers drawn on the host; `tail` tokens of NaN behind it belong to no row."""
    torch.manual_seed(seed)
    context = [length // 2 for length in lengths]
    plan = BatchPlan.build(lengths, slots, mode=mode, context=context, device=DEVICE, tiling=tiling, capacity=capacity)
    qkv = torch.full((sum(lengths) + tail, 3, heads, dim), torch.nan)
    qkv[: sum(lengths)] = torch.randn(sum(lengths), 3, heads, dim)
    qkv = qkv.to(DEVICE, dtype)
    prefix = make_prefix(prefix_lengths, heads, dim, dtype)
    return Case(
        qkv[:, 0], qkv[:, 1], qkv[:, 2], prefix._make(x if x is None else x.to(DEVICE) for x in prefix), plan, window
    )


def make_disentangled(
    lengths: Sequence[int],
    slots: Sequence[int],
    *,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    terms: Sequence[str] = TERMS[0],
    buckets: bool = True,
    tiling: Tiling | None = None,
) -> DisentangledCase:
    """A batch on the device with position tables, beyond which rows of the larger edge lengths reach."""
    case = make_case(lengths, slots, dim=dim, dtype=dtype, tiling=tiling)
    distance_W = log_bucket_distances(32, 64, DEVICE) if buckets else clamped_distances(24, DEVICE)
    entries = int(distance_W.max()) + 1
    key, query = torch.randn(entries, 2, HEADS, dim).to(DEVICE, dtype).unbind(1)
    positions = Positions(key if "c2p" in terms else None, query if "p2c" in terms else None, distance_W)
    return DisentangledCase(case, positions)


def rows_of(case: Case) -> list[tuple[int, int, int, int]]:
    """First token, length, slot and context of each row."""
    bounds = case.plan.row_start_R1.tolist()
    slots, context = case.plan.slot_R.tolist(), case.plan.context_R.tolist()
    return [(bounds[r], bounds[r + 1] - bounds[r], slots[r], context[r]) for r in range(len(slots))]


def chosen(case: Case, rows: Sequence[int]) -> tuple[Case, Tensor]:
    """These rows as a batch of their own with the same tiling, and their tokens in the batch they come from."""
    found = [rows_of(case)[row] for row in rows]
    plan = BatchPlan.build(
        [length for _, length, _, _ in found],
        [slot for _, _, slot, _ in found],
        mode=case.plan.mode,
        context=[context for *_, context in found],
        device=DEVICE,
        tiling=case.plan.tiling,
    )
    tokens = torch.cat([torch.arange(begin, begin + length) for begin, length, _, _ in found]).to(DEVICE)
    q, k, v = (x[tokens] for x in case.packed)
    return Case(q, k, v, case.prefix, plan, case.window), tokens


def run(case: Case) -> Tensor:
    """Attend through the kernels under test, into memory that was NaN."""
    with poisoned():
        return case.run(Route.TRITON)


def gradients(case: Case, projection: Tensor) -> list[Tensor]:
    """Gradients of q, k, v and the pools through the kernels under test."""
    leaves = [x.detach().requires_grad_() for x in case.differentiated]
    with poisoned():
        return list(torch.autograd.grad(case.with_tensors(leaves).run(Route.TRITON), leaves, projection))


def exact_gradients(case: Case, projection: Tensor) -> list[Tensor]:
    leaves = [x.detach().double().requires_grad_() for x in case.differentiated]
    return list(torch.autograd.grad(case.with_tensors(leaves).exact(), leaves, projection.double()))


@contextmanager
def poisoned() -> Iterator[None]:
    """Make fresh memory NaN, so that whatever is read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Recorded:
    """A call in a graph: `replay` puts the answer for what its operands now hold into `out`."""

    def __init__(self, call: Callable[[], Tensor]) -> None:
        self._call = call
        self._graph: torch.cuda.CUDAGraph | None = None
        self.out = call()
        if ON_GPU:
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self.out = call()

    def replay(self) -> Tensor:
        if self._graph is None:
            self.out.copy_(self._call())
        else:
            self._graph.replay()
        return self.out


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Raise where the host would wait for the device."""
    if not ON_GPU:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def counted_compilations() -> Iterator[list[str]]:
    """Name the kernels that are compiled meanwhile, from whatever cache."""
    names: list[str] = []

    def note(*, fn: Any, **_: Any) -> None:
        names.append(fn.name)

    triton.knobs.runtime.jit_cache_hook = note
    try:
        yield names
    finally:
        triton.knobs.runtime.jit_cache_hook = None
