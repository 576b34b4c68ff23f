"""How long a piece of device work takes: medians of CUDA events, eager and as the replay of one graph.

The work is a list of calls over different memory, taken in turn, so that no call finds its operands in the cache.
On a CPU, which only rehearses, the wall clock stands in and there is no graph. It refuses to know what is timed.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROUND_S = 0.03
"""About how long each median is measured for."""
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
COPY_BYTES = 2**31
PRODUCT = 8192


class Timed(NamedTuple):
    """Microseconds of one call."""

    graph_us: float | None
    """As part of a replayed graph; None where it could not be captured, `uncaptured` says why."""
    eager_us: float
    spread: float
    """Relative difference of two medians, taken one after the other: less than that is noise."""
    uncaptured: str = ""

    @property
    def best_us(self) -> float:
        """The replay's, which launches do not slow down; the eager one where there is none."""
        return self.eager_us if self.graph_us is None else self.graph_us


class Ceilings(NamedTuple):
    """What this device does at most, measured."""

    bytes_per_s: float
    """Of a large copy, bytes read and written."""
    flop_per_s: float
    """Of a large bf16 product of random matrices."""

    def floor_us(self, flop: float, bytes_moved: float) -> float:
        """Least time for that many operations and bytes."""
        return 1e6 * max(flop / self.flop_per_s, bytes_moved / self.bytes_per_s)


def measure(calls: Sequence[Callable[[], object]], device: torch.device) -> Timed:
    """Time calls that do the same work on different memory."""
    if device.type != "cuda":
        return Timed(None, _wall_us(calls), 0.0, "there is no device")
    for call in [*calls, *calls]:
        call()
    torch.cuda.synchronize(device)
    eager_us = _median_us(lambda: _run_all(calls), len(calls))
    try:
        graph = capture(lambda: _run_all(calls))
    except Exception as error:  # a peer that cannot be captured is timed eagerly, and the table says so
        torch.cuda.synchronize(device)
        again_us = _median_us(lambda: _run_all(calls), len(calls))
        return Timed(None, eager_us, _spread(eager_us, again_us), f"{type(error).__name__}: {error}")
    first_us, again_us = (_median_us(graph.replay, len(calls)) for _ in range(2))
    return Timed(first_us, eager_us, _spread(first_us, again_us))


def capture(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Capture a run, after one on a stream beside the current one, as torch wants it."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure a large copy and a large product; on a CPU both small."""
    cuda = device.type == "cuda"
    source = torch.empty(COPY_BYTES // 4 if cuda else 2**18, dtype=torch.int32, device=device).random_()
    target = torch.empty_like(source)
    # A kernel's copy: one captured as a copy goes through the copy engine, which is slower.
    copy_us = measure([lambda: torch.bitwise_not(source, out=target)], device).best_us
    side = PRODUCT if cuda else 128
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product_us = measure([lambda: a @ b], device).best_us
    return Ceilings(2 * source.nbytes / copy_us * 1e6, 2 * side**3 / product_us * 1e6)


def sets_to_rotate(bytes_moved: int, device: torch.device) -> int:
    """How many batches of that size pass through the L2 cache before one comes round again; at least 4."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(4, min(24, -(-3 * cache // max(1, bytes_moved))))


def _run_all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _median_us(run: Callable[[], object], calls: int) -> float:
    """Median microseconds of one of the `calls` that a run makes."""
    one_s = max(1e-6, _events_s(run))
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(ROUND_S / one_s)))
    return 1e6 * statistics.median(_events_s(run) for _ in range(rounds)) / calls


def _events_s(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _wall_us(calls: Sequence[Callable[[], object]]) -> float:
    began = time.perf_counter()
    _run_all(calls)
    return 1e6 * max(1e-9, time.perf_counter() - began) / len(calls)


def _spread(first: float, again: float) -> float:
    return abs(first - again) / max(first, again)
