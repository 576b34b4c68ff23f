"""What stands beside the forward: gradients, heads of many tasks, and disentangled attention, on a GPU.

    python -m benchmarks.kernel_parts [--json FILE] [--rehearse]

Each is compared with its definition in fp64 before it is timed. Ends with 1 when one is wrong or fails, with 3
without a GPU. It refuses to know peers, but for the plain torch of heads and of disentangled attention.
"""

from __future__ import annotations

import importlib
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from benchmarks.environment import commit, device_name
from benchmarks.keeping import keep
from benchmarks.kernel import NO_DEVICE, rehearse
from benchmarks.kernel_clock import measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from benchmarks.kernel_goals import Goal


@dataclass(frozen=True)
class Part:
    """Something to compare, then to time."""

    name: str
    calls: Sequence[Callable[[], object]]
    """The same work over different memory."""
    distance: Callable[[], float]
    """From the definition, relative."""
    limit: float
    flop: float = 0.0
    """Useful operations of one call; 0 where they are not what counts."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A peer that is not here, which is no fault."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What a part showed."""

    name: str
    graph_us: float | None
    eager_us: float
    tflops: float
    distance: float
    note: str = ""

    @property
    def best_us(self) -> float:
        return self.eager_us if self.graph_us is None else self.graph_us


@dataclass(slots=True)
class Report:
    """One run."""

    device: str
    commit: str
    rehearsed: bool
    measured: list[Measured] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Part, and the traceback."""
    absent: dict[str, str] = field(default_factory=dict)

    def us(self, name: str) -> float | None:
        found = [each.best_us for each in self.measured if each.name == name]
        return found[0] if found else None

    def goals(self) -> list[Goal]:
        """How far the goals of these parts are met."""
        from benchmarks.kernel_goals import part_goals

        return [] if self.rehearsed else list(part_goals({each.name: each for each in self.measured}))

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        if self.rehearsed:
            found["measured"] = [{"name": each.name, "distance": each.distance} for each in self.measured]
        return {**found, "goals": [goal._asdict() for goal in self.goals()]}


class WrongAnswer(Exception):
    """A part is further from its definition than its dtype allows."""


FAMILIES = {
    "gradients": ("benchmarks.kernel_part_families", "gradient_parts"),
    "heads": ("benchmarks.kernel_part_families", "head_parts"),
    "disentangled": ("benchmarks.kernel_part_disentangled", "disentangled_parts"),
}
"""Module and function of each; imported when its turn comes, so that one that fails takes no other with it."""


def parts_of(family: str, device: torch.device) -> Iterator[Part | Missing]:
    """What there is to measure of one family."""
    module, function = FAMILIES[family]
    found: Iterator[Part | Missing] = getattr(importlib.import_module(module), function)(device)
    return found


def run(device: torch.device, families: Iterable[str] = tuple(FAMILIES), file: Path | None = None) -> Report:
    """Measure every part of some families; a file is written after each."""
    report = Report(device_name(device), commit(), device.type != "cuda")
    for family in families:
        try:
            for part in parts_of(family, device):
                if isinstance(part, Missing):
                    report.absent[part.name] = part.reason
                else:
                    _measure(part, device, report)
        except Exception:  # kept, and held against the run
            report.failed[family] = traceback.format_exc()
        keep(report, file)
    return report


def _measure(part: Part, device: torch.device, report: Report) -> None:
    try:
        found = part.distance()
        if not found <= part.limit:
            raise WrongAnswer(f"{found:.1e} from the definition, wanted {part.limit:.0e}")
        with torch.no_grad():
            timed = measure(part.calls, device)
    except Exception:  # kept, and held against the run
        report.failed[part.name] = traceback.format_exc()
        return
    tflops = part.flop / timed.best_us / 1e6
    report.measured.append(Measured(part.name, timed.graph_us, timed.eager_us, tflops, found, timed.uncaptured))


def show(report: Report) -> None:
    typer.echo(f"{report.device}; torch {torch.__version__}; commit {report.commit}")
    for name, trace in report.failed.items():
        typer.echo(f"{name} failed: {trace.strip().splitlines()[-1]}")
    for name, reason in report.absent.items():
        typer.echo(f"{name} is absent: {reason}")
    if report.rehearsed:
        typer.echo(f"rehearsal: no speeds; {len(report.measured)} comparisons")
        return
    typer.echo("| part | us | eager us | TFLOP/s | from the definition |\n|---|---|---|---|---|")
    for each in report.measured:
        rate = f"{each.tflops:.0f}" if each.tflops else "-"
        typer.echo(f"| {each.name} | {each.best_us:.1f} | {each.eager_us:.1f} | {rate} | {each.distance:.1e} |")
    from benchmarks.kernel_goals import table

    typer.echo(f"\n{table(report.goals())}")


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="also write everything here")] = None,
    rehearsed: Annotated[bool, typer.Option("--rehearse", help="on a CPU, interpreted, small, without speeds")] = False,
) -> None:
    """Measure gradients, heads and disentangled attention."""
    if rehearsed:
        rehearse()
    elif not torch.cuda.is_available():
        typer.echo("no CUDA device is here: nothing was measured; --rehearse runs the same code on a CPU")
        raise SystemExit(NO_DEVICE)
    report = run(torch.device("cpu" if rehearsed else "cuda"), file=json_file)
    show(report)
    raise SystemExit(bool(report.failed))


if __name__ == "__main__":
    typer.run(main)
