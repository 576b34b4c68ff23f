"""Our kernel and its peers over one shape: each compared with the definition in fp64, then timed.

It refuses to print, and to keep quiet about anything that failed.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from benchmarks.kernel_clock import Ceilings, measure, sets_to_rotate
from benchmarks.kernel_peers import flex, gathered, padded, sglang_extend, two_calls, wheels
from benchmarks.kernel_peers.prepared import Absent, Peer, Prepared
from benchmarks.kernel_workloads import Shape, make_batches
from prefixbank.kernels.attention import Route
from tests.kernel_cases import TOLERANCE, distance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.kernel_workloads import Batch

OURS = "ours"
SETS_BYTES = 16 * 2**30
"""Most memory that the batches of one shape may take."""


def prepare_ours(batch: Batch) -> Prepared:
    """One launch; the plan is part of the batch."""
    return Prepared(lambda: batch.case.run(Route.TRITON))


PEERS: dict[str, Peer] = {
    "A gather, concatenate, FA2": gathered.prepare,
    "B two FA2, merge": two_calls.prepare,
    "C padded SDPA": padded.prepare,
    "D FlexAttention": flex.prepare,
    "E SGLang extend": sglang_extend.prepare,
    "F two FA4, merge": wheels.prepare_flash_attention_4,
    "G FlashInfer": wheels.prepare_flashinfer,
}
SLOW_TO_PREPARE = ("D FlexAttention", "F two FA4, merge", "G FlashInfer")
"""Peers that compile for seconds at each new shape: they get `FEW_SHAPES`."""
FEW_SHAPES = (Shape(16384, 512, 0), Shape(16384, 128, 128))
GPU_ONLY = ("F two FA4, merge", "G FlashInfer")
HALF_ONLY = ("A gather, concatenate, FA2", "B two FA2, merge", "F two FA4, merge", "G FlashInfer")
"""Peers without fp32 kernels on a GPU."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One route over one shape."""

    shape: str
    route: str
    graph_us: float | None
    eager_us: float
    spread: float
    distance: float
    """From the definition in fp64."""
    tflops: float
    gbytes_per_s: float
    share_of_roofline: float
    prepare_ms: float
    """Once per batch, wall clock."""
    note: str = ""

    @property
    def best_us(self) -> float:
        return self.eager_us if self.graph_us is None else self.graph_us


@dataclass(frozen=True, slots=True)
class Failed:
    """A route that gave no number, and why."""

    shape: str
    route: str
    reason: str
    traceback: str = ""
    """Empty when it is absent, which is no fault."""


@dataclass(slots=True)
class Findings:
    """All that came of a run."""

    measured: list[Measured] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    """Shapes that the time did not suffice for."""

    @property
    def wrong(self) -> list[Failed]:
        """What is held against our own kernel: no speed may be printed beside it."""
        return [each for each in self.failed if each.route == OURS]

    @property
    def faults(self) -> list[Failed]:
        return [each for each in self.failed if each.traceback]

    def of(self, shape: Shape, route: str = OURS) -> Measured | None:
        """What one route showed at one shape."""
        found = [each for each in self.measured if (each.shape, each.route) == (shape.name, route)]
        return found[0] if found else None


def measure_shape(shape: Shape, device: torch.device, ceilings: Ceilings, findings: Findings) -> None:
    """Add what every route shows at one shape."""
    batches = _batches(shape, device)
    exact = batches[0].case.exact()
    routes: dict[str, Peer] = {
        OURS: prepare_ours,
        **{name: peer for name, peer in PEERS.items() if _fits(name, shape, device)},
    }
    for name, prepare in routes.items():
        try:
            findings.measured.append(_measure_route(name, prepare, batches, exact, ceilings))
        except Absent as absence:
            findings.failed.append(Failed(shape.name, name, f"absent: {absence}"))
        except Exception as error:  # recorded, and held against the run by whoever reads `faults`
            text = str(error).strip().splitlines()
            said = f"{type(error).__name__}: {text[0] if text else ''}"
            findings.failed.append(Failed(shape.name, name, said, traceback.format_exc()))
            _drop_graph_errors(device)


class WrongAnswer(Exception):
    """A route is further from the definition than its dtype allows."""


def _measure_route(
    name: str, prepare: Peer, batches: Sequence[Batch], exact: torch.Tensor, ceilings: Ceilings
) -> Measured:
    batch, device = batches[0], batches[0].device
    began = time.perf_counter()
    first = prepare(batch)
    prepare_ms = 1e3 * (time.perf_counter() - began)
    found = distance(first.packed(first.run()), exact)
    if not found <= TOLERANCE[batch.shape.dtype]:
        raise WrongAnswer(f"{found:.1e} from the definition, wanted {TOLERANCE[batch.shape.dtype]:.0e}")
    timed = measure([first.run, *(prepare(other).run for other in batches[1:])], device)
    seconds, floor_us = timed.best_us / 1e6, ceilings.floor_us(batch.flop, batch.bytes_moved)
    return Measured(
        batch.shape.name,
        name,
        timed.graph_us,
        timed.eager_us,
        timed.spread,
        found,
        batch.flop / seconds / 1e12,
        batch.bytes_moved / seconds / 1e9,
        floor_us / timed.best_us,
        prepare_ms,
        timed.uncaptured,
    )


def _batches(shape: Shape, device: torch.device) -> list[Batch]:
    """As many as pass through the cache before one comes round again, if they fit in memory."""
    first = make_batches(shape, device, 1)[0]
    held = sum(x.nbytes for x in (*first.case.prefix[:2], *first.case.packed))
    count = min(sets_to_rotate(first.bytes_moved, device), max(1, SETS_BYTES // max(1, held)))
    return make_batches(shape, device, count)


def _fits(name: str, shape: Shape, device: torch.device) -> bool:
    if name in SLOW_TO_PREPARE and device.type == "cuda" and shape not in FEW_SHAPES:
        return False
    if device.type != "cuda":
        return name not in GPU_ONLY
    return name not in HALF_ONLY or shape.dtype != torch.float32


def _drop_graph_errors(device: torch.device) -> None:
    """Free what the failed route holds; a device that is broken for good says so here, and ends the run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
