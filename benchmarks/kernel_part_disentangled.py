"""The parts that `kernel_parts` measures of disentangled attention, at DeBERTa-v3-base's shape, and its two peers.

One peer is what transformers does, in plain torch: tables of positional scores, gathered per pair. The other is the
wheel `disentangled-flash`, whose kernel gathers from such tables too: the products that make them are its own cost.

Shape letters: T packed tokens, R rows, L own tokens of a row, H heads, D head dim, Q entries of the position table,
W distances, E entries that a row of L tokens uses.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kernel_parts import Missing, Part
from benchmarks.kernel_workloads import Batch, Shape, make_batches
from prefixbank.kernels.attention import Route
from prefixbank.kernels.disentangled import disentangled_attention
from prefixbank.kernels.disentangled_positions import Positions, log_bucket_distances
from prefixbank.kernels.disentangled_reference import reference_disentangled
from tests.kernel_cases import TOLERANCE, distance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

BUCKETS, LONGEST = 256, 512
LOG2_E = 1.4426950408889634
WHEEL = "disentangled-flash"


@dataclass(frozen=True)
class Problem:
    """One batch with position tables."""

    batch: Batch
    positions: Positions

    @property
    def scale(self) -> float:
        return float((3 * self.batch.shape.dim) ** -0.5)

    @property
    def length(self) -> int:
        assert self.batch.shape.length is not None
        return self.batch.shape.length

    def entries(self) -> Tensor:
        """The entry of every distance of a row, from 1 - L to L - 1."""
        reach = len(self.positions.distance_W) // 2
        far = torch.arange(1 - self.length, self.length, device=self.batch.device).clamp(-reach, reach)
        return self.positions.distance_W[far + reach].long()

    def exact(self) -> Tensor:
        case = self.batch.case.with_tensors([x.double() for x in self.batch.case.differentiated])
        key, query, distances = self.positions
        assert key is not None
        assert query is not None
        wide = Positions(key.double(), query.double(), distances)
        return reference_disentangled(*case.packed, wide, case.prefix, case.plan, scale=self.scale)[0]


def make_problems(shape: Shape, device: torch.device, count: int) -> list[Problem]:
    """Batches that share position tables, as they share a layer."""
    tables = torch.randn(2, 2 * BUCKETS, shape.heads, shape.dim, device=device, dtype=shape.dtype)
    positions = Positions(tables[0], tables[1], log_bucket_distances(BUCKETS, LONGEST, device))
    return [Problem(batch, positions) for batch in make_batches(shape, device, count)]


def disentangled_parts(device: torch.device) -> Iterator[Part | Missing]:
    """Ours at four shapes; the peers where there is no prefix, which they cannot have."""
    large = device.type == "cuda"
    for length in (128, 512) if large else (16,):
        for prefix in (0, 128) if large else (0, 5):
            if large:
                shape = Shape(16384, length, prefix, heads=12)
            else:
                shape = Shape(2 * length, length, prefix, heads=2, dim=16, dtype=torch.float32)
            problems = make_problems(shape, device, 4 if large else 1)
            name = f"disentangled, T={shape.tokens} L={length} P={prefix}"
            yield _part(name, problems, ours)
            if not prefix:
                yield _part(f"{name}, padded torch", problems, padded)
                yield _wheel_part(f"{name}, {WHEEL}", problems)


def _part(name: str, problems: list[Problem], prepare: Callable[[Problem], Callable[[], Tensor]]) -> Part:
    calls = [prepare(problem) for problem in problems]
    first = problems[0]
    limit = TOLERANCE[first.batch.shape.dtype]
    return Part(name, list(calls), lambda: distance(calls[0](), first.exact()), limit, first.batch.flop)


def ours(problem: Problem) -> Callable[[], Tensor]:
    case, positions = problem.batch.case, problem.positions
    arguments = (*case.packed, *positions, case.prefix, case.plan)
    return lambda: disentangled_attention(*arguments, scale=problem.scale, route=Route.TRITON)


def padded(problem: Problem) -> Callable[[], Tensor]:
    """As transformers computes it; no row is shorter than another, so there is no mask."""
    length, entries = problem.length, problem.entries()
    token = torch.arange(length, device=problem.batch.device)
    entry_LL = entries[token[:, None] - token[None, :] + length - 1]
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in problem.batch.case.packed)
    pos_key, pos_query = (x.permute(1, 2, 0) for x in problem.positions[:2] if x is not None)
    index = entry_LL.expand(*q.shape[:2], -1, -1)

    def run() -> Tensor:
        scores = q @ k.mT + (q @ pos_key).gather(-1, index)
        scores = scores + (k @ pos_query).gather(-1, index.mT).mT
        weights = (scores * problem.scale).softmax(-1, dtype=torch.float32).to(v.dtype)
        out_THD: Tensor = (weights @ v).transpose(1, 2).flatten(0, 1)
        return out_THD

    return run


def _wheel_part(name: str, problems: list[Problem]) -> Part | Missing:
    if importlib.util.find_spec("disentangled_flash") is None:
        return Missing(name, f"the wheel {WHEEL} is not installed")
    if problems[0].batch.device.type != "cuda":
        return Missing(name, "it runs on a GPU alone")
    return _part(name, problems, wheel)


def wheel(problem: Problem) -> Callable[[], Tensor]:
    """The packed kernel of disentangled-flash 1.1, with the products that make its tables."""
    kernel: Any = importlib.import_module("disentangled_flash.kernel")
    case, length = problem.batch.case, problem.length
    used_E, delta_to_local = problem.entries().unique(return_inverse=True)
    missing = -len(used_E) % 8  # it wants rows of 16 bytes
    tables = [
        torch.nn.functional.pad(x[used_E].permute(1, 2, 0), (0, missing))
        for x in problem.positions[:2]
        if x is not None
    ]
    q, k, v = (x.transpose(0, 1) for x in case.packed)
    starts, width = case.plan.row_start_R1, len(used_E) + missing
    is_bf16, is_fp32 = (problem.batch.shape.dtype == dtype for dtype in (torch.bfloat16, torch.float32))
    sizes = (length, length, width, length - 1, problem.scale * LOG2_E, True, True, is_bf16, is_fp32, True)

    def run() -> Tensor:
        c2p, p2c = torch.bmm(q, tables[0]), torch.bmm(k, tables[1])
        out = kernel._deberta_attention_packed_op(q, k, v, c2p, p2c, delta_to_local.int(), starts, *sizes)
        packed: Tensor = out.view(len(case.q_THD), *case.q_THD.shape[1:])
        return packed

    return run
