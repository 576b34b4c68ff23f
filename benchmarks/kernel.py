"""How fast the Triton kernel is on a GPU, against all that could be had instead of it, and against the device itself.

    python -m benchmarks.kernel [--quick] [--budget 150] [--json FILE] [--rehearse]

Every route is compared with the definition in fp64 before it is timed, at every shape; where ours is wrong no speed is
printed. Useful operations are counted, 4 L (P + L) D H of each row, and bytes once each. The device's ceilings are
measured in the same run. With `--rehearse` the same code runs on a CPU in Triton's interpreter, at small shapes, and
prints no speeds. Ends with 1 when a route failed that should not have, with 3 without a GPU.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from benchmarks.environment import commit, device_name
from benchmarks.keeping import keep
from benchmarks.kernel_clock import Ceilings, measure_ceilings
from benchmarks.kernel_workloads import grid, rehearsal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.kernel_routes import Findings, Measured
    from benchmarks.kernel_workloads import Shape

NO_DEVICE = 3
"""Exit status when there is no GPU and no rehearsal was asked for."""
INTERPRET = "TRITON_INTERPRET"
PLAN_ROWS, PLAN_GOAL_US = 128, 100.0


@dataclass(frozen=True)
class Report:
    """One run of the benchmark."""

    device: str
    commit: str
    rehearsed: bool
    ceilings: Ceilings
    plan_us: float
    """Building and sending the plan of 128 rows, median, without waiting for the copy."""
    findings: Findings

    @property
    def is_red(self) -> bool:
        """Something failed that should not have."""
        return bool(self.findings.faults)

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file; no speeds of a rehearsal, nor beside a wrong answer."""
        findings = asdict(self.findings)
        if self.rehearsed or self.findings.wrong:
            found = [(each["shape"], each["route"], each["distance"]) for each in findings.pop("measured")]
            findings["checked"] = found
        setting = {
            "device": self.device,
            "commit": self.commit,
            "torch": torch.__version__,
            "rehearsed": self.rehearsed,
        }
        ceilings = {} if self.rehearsed else {"ceilings": self.ceilings._asdict(), "plan_us": self.plan_us}
        return {**setting, **ceilings, **findings, "goals": [goal._asdict() for goal in self.goals()]}

    def goals(self) -> list[Any]:
        from benchmarks.kernel_goals import Goal, kernel_goals

        if self.rehearsed or self.findings.wrong:
            return []
        plan = Goal(f"plan of {PLAN_ROWS} rows, built and sent", PLAN_GOAL_US, "us", False, self.plan_us)
        return [*kernel_goals(self.findings), plan]


def run(shapes: Iterable[Shape], device: torch.device, budget_s: float, file: Path | None = None) -> Report:
    """Measure shapes until the time is up; those left over are named. a file is written after each."""
    from benchmarks.kernel_routes import Findings, measure_shape  # imports Triton

    ends = time.monotonic() + budget_s
    ceilings = measure_ceilings(device)
    plan_us = measure_plan(device)
    findings = Findings()
    report = Report(device_name(device), commit(), device.type != "cuda", ceilings, plan_us, findings)
    for shape in shapes:
        if time.monotonic() > ends:
            findings.not_run.append(shape.name)
            continue
        with torch.inference_mode():
            measure_shape(shape, device, ceilings, findings)
        keep(report, file)
    return report


def measure_plan(device: torch.device) -> float:
    """Median microseconds to build a plan and start its copy; on a GPU, a wait for it would be an error."""
    from prefixbank.kernels.plan import BatchPlan

    spent = []
    lengths, slots = [128] * PLAN_ROWS, list(range(PLAN_ROWS))
    before = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(200 if device.type == "cuda" else 3):
            began = time.perf_counter()
            BatchPlan.build(lengths, slots, device=device)
            spent.append(time.perf_counter() - began)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode(before)
    return 1e6 * statistics.median(spent)


def rehearse() -> None:
    """Begin this program anew with Triton's interpreter on, unless it is: Triton looks when it is imported."""
    if not os.environ.get(INTERPRET):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, INTERPRET: "1"})


def show(report: Report) -> None:
    """Print failures, then speeds if there may be any."""
    typer.echo(f"{report.device}; torch {torch.__version__}; commit {report.commit}")
    for failed in report.findings.failed:
        typer.echo(f"{failed.route}, {failed.shape}: {failed.reason}")
    if report.findings.wrong:
        typer.echo("our kernel is at fault: no speeds are printed")
        return
    if report.rehearsed:
        routes = sorted({each.route for each in report.findings.measured})
        typer.echo(f"rehearsal: no speeds; {len(report.findings.measured)} comparisons, routes: {', '.join(routes)}")
        return
    copy, product = report.ceilings.bytes_per_s / 1e12, report.ceilings.flop_per_s / 1e12
    typer.echo(f"copy {copy:.2f} TB/s; bf16 product {product:.0f} TFLOP/s; plan {report.plan_us:.0f} us\n")
    typer.echo(speed_table(report.findings))
    from benchmarks.kernel_goals import table

    typer.echo(f"\n{table(report.goals())}")
    if report.findings.not_run:
        typer.echo(
            f"\nno time was left for {len(report.findings.not_run)} shapes: {'; '.join(report.findings.not_run)}"
        )


def speed_table(findings: Findings) -> str:
    """Markdown: a line per shape; microseconds per layer as replayed, and each peer's time over ours."""
    from benchmarks.kernel_routes import OURS

    peers = list(dict.fromkeys(each.route for each in findings.measured if each.route != OURS))
    head = ["shape", "us", "eager us", "TFLOP/s", "GB/s", "roofline", *peers]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    by_shape: dict[str, dict[str, Measured]] = {}
    for each in findings.measured:
        by_shape.setdefault(each.shape, {})[each.route] = each
    for shape, routes in by_shape.items():
        ours = routes.get(OURS)
        if ours is None:
            continue
        mine = [f"{ours.best_us:.1f}", f"{ours.eager_us:.1f}", f"{ours.tflops:.0f}", f"{ours.gbytes_per_s:.0f}"]
        others = [f"{routes[peer].best_us / ours.best_us:.2f}x" if peer in routes else "-" for peer in peers]
        lines.append(f"| {' | '.join([shape, *mine, f'{ours.share_of_roofline:.0%}', *others])} |")
    return "\n".join(lines)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="the goals' shapes and a few more")] = False,
    budget: Annotated[float, typer.Option(help="seconds after which no further shape is begun")] = 150.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write everything here")] = None,
    rehearsed: Annotated[bool, typer.Option("--rehearse", help="on a CPU, interpreted, small, without speeds")] = False,
) -> None:
    """Measure the kernel and its peers."""
    if rehearsed:
        rehearse()
    elif not torch.cuda.is_available():
        typer.echo("no CUDA device is here: nothing was measured; --rehearse runs the same code on a CPU")
        raise SystemExit(NO_DEVICE)
    shapes = rehearsal() if rehearsed else grid(quick=quick)
    report = run(shapes, torch.device("cpu" if rehearsed else "cuda"), budget, json_file)
    show(report)
    raise SystemExit(report.is_red)


if __name__ == "__main__":
    typer.run(main)
