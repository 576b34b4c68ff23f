"""The goals of the attention kernel, and how far each measured run is from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from benchmarks.kernel_routes import OURS
from benchmarks.kernel_workloads import Shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.kernel_parts import Measured as PartMeasured
    from benchmarks.kernel_routes import Findings

LONG = Shape(16384, 512, 0)
PLAIN = Shape(16384, 128, 0)
DISTINCT = Shape(16384, 128, 128, "distinct")
ONE_TASK = Shape(16384, 128, 128, "identical")
SHORT_PREFIX = Shape(16384, 128, 20)


DISENTANGLED = 110.0
"""Twice the 50 to 60 that the fastest public kernel's own profile of an H200 shows."""


class Goal(NamedTuple):
    """A number to reach: met when `found` is at most `wanted`, or at least, as `at_least` says."""

    what: str
    wanted: float
    unit: str
    at_least: bool
    found: float | None
    """None when it was not measured."""

    @property
    def is_met(self) -> bool | None:
        if self.found is None:
            return None
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        share = self.found / self.wanted if self.at_least else self.wanted / self.found if self.found else 1.0
        return "met" if self.is_met else f"missed, at {share:.0%} of it"

    def line(self) -> str:
        """One line of a Markdown table."""
        found = "-" if self.found is None else f"{self.found:.4g}"
        bound = "at least" if self.at_least else "at most"
        return f"| {self.what} | {bound} {self.wanted:g} {self.unit} | {found} | {self.verdict} |"


def kernel_goals(findings: Findings) -> Iterator[Goal]:
    """The goals that the kernel benchmark alone can judge."""

    def us(shape: Shape, route: str = OURS) -> float | None:
        measured = findings.of(shape, route)
        return None if measured is None else measured.best_us

    long = findings.of(LONG)
    yield Goal("P=0, L=512, T=16k", 340, "TFLOP/s", True, None if long is None else long.tflops)
    yield Goal("P=0, L=512, T=16k, stretch", 380, "TFLOP/s", True, None if long is None else long.tflops)
    yield Goal("P=0, L=128, T=16k", 39, "us per layer", False, us(PLAIN))
    yield Goal("L=P=128, 128 distinct tasks", 70, "us per layer", False, us(DISTINCT))
    yield Goal("L=P=128, 128 distinct tasks, stretch", 58, "us per layer", False, us(DISTINCT))
    for route in sorted({each.route for each in findings.measured} - {OURS}):
        yield Goal(f"L=P=128, distinct: {route} over ours", 1.4, "x", True, _ratio(us(DISTINCT, route), us(DISTINCT)))
    yield Goal("128 distinct tasks over one", 1.15, "x", False, _ratio(us(DISTINCT), us(ONE_TASK)))
    yield Goal("P=20 over P=0, L=128", 1.12, "x", False, _ratio(us(SHORT_PREFIX), us(PLAIN)))


def part_goals(measured: Mapping[str, PartMeasured]) -> Iterator[Goal]:
    """The goals of what stands beside the forward."""

    def us(name: str) -> float | None:
        return measured[name].best_us if name in measured else None

    for mix in ("identical", "distinct"):
        row = f"T=16384 L=128 P=128 {mix}"
        forward, whole = us(f"forward for training, {row}"), us(f"all gradients, {row}")
        without = us(f"gradients without the prefix's, {row}")
        share = None if forward is None or whole is None or without is None else (whole - without) / (forward + whole)
        yield Goal(f"the prefix's gradients in forward and backward, {mix}", 0.15, "of the time", False, share)
    for what in ("128 pooled rows, 3 classes", "128 token rows, 9 classes"):
        flat = _ratio(us(f"heads, {what}, distinct"), us(f"heads, {what}, identical"))
        yield Goal(f"heads, {what}: 128 tasks over one", 1.25, "x", False, flat)
    for length in (128, 512):
        part = measured.get(f"disentangled, T=16384 L={length} P=0")
        rate = None if part is None else part.tflops
        yield Goal(f"disentangled attention, L={length}, counted 4 L L D H", DISENTANGLED, "TFLOP/s", True, rate)


def table(goals: list[Goal]) -> str:
    """Markdown."""
    return "\n".join(["| goal | wanted | found | |", "|---|---|---|---|", *(goal.line() for goal in goals)])


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or under is None else over / under
