"""How fast one training step of a deep prompt is, against the original implementation, PEFT and full fine-tuning.

    python -m benchmarks.train_step [--turns N] [--threads N] [--alike] [--device cuda] [--compiled] [--no-memory]
        [--json FILE]

Batches of 32 SST-2 rows, 20 prefix tokens in every layer of MiniLM, frozen; dropouts off. Ours is what the trainer's
loop does with one trial; `train_routes` tells the others. It refuses to print a time before the gradients of every
route agree with those in fp64. Routes take turns over the same batches; a ratio is the median of the turns'. Memory is
that of a fresh process for each route (`train_memory`). It refuses to know data loading, schedules and evaluation.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import peft
import torch
import transformers
import typer

from benchmarks import train_memory
from benchmarks.environment import commit, device_name
from benchmarks.train_routes import (
    COMPILED,
    FULL,
    LONGEST,
    MOST_TOKENS,
    OURS,
    PEFT,
    PREFIX,
    PUBLISHED,
    SDPA,
    SETTINGS,
    Workshop,
)
from benchmarks.training_rows import backbone_folder, read_task
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.trainer.batches import epoch_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from benchmarks.train_routes import Gradients, Route
    from prefixbank.trainer.families import Item

BATCH_ROWS = 32
WARM_UP = 4
"""Turns until a process has the memory it needs, and takes no more page faults."""
ROUTES = (OURS, LONGEST, PUBLISHED, SDPA, PEFT, FULL)
FAR = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Largest relative distance of a gradient from the one in fp64 that the gate lets pass."""


@dataclass(frozen=True)
class Bench:
    """The rows, and every route to a step."""

    workshop: Workshop
    batches: list[list[Item]]
    """Of one training epoch, shortest row first in each, as our trainer has them."""
    routes: dict[str, Route]

    @property
    def dtype(self) -> torch.dtype:
        return self.workshop.task.backbone.dtype

    @property
    def device(self) -> torch.device:
        return self.workshop.task.backbone.device


def make_bench(
    folder: str,
    dtype: torch.dtype,
    num_batches: int,
    *,
    alike: bool,
    device: str = "cpu",
    names: Sequence[str] = ROUTES,
) -> Bench:
    """Build routes over one set of weights.

    Args:
        folder: of the backbone, or `minilm`.
        alike: put rows of like length together, as our trainer does; else at random, as the original does.
    """
    backbone = load_backbone(folder, dtype=dtype, device=device)
    with tempfile.TemporaryDirectory() as made:
        task = read_task("sst2", backbone, Path(made), num_batches * BATCH_ROWS, SETTINGS)
    workshop = Workshop(task, folder)
    return Bench(workshop, batches_of(task.items, alike=alike), {name: workshop.make(name) for name in names})


def batches_of(rows: Sequence[Item], *, alike: bool) -> list[list[Item]]:
    lengths = [row.num_tokens for row in rows]
    if alike:
        order = epoch_order(lengths, BATCH_ROWS, seed=0, epoch=0)
    else:
        shuffled = np.random.default_rng(1).permutation(len(rows)).reshape(-1, BATCH_ROWS)
        order = [sorted(batch.tolist(), key=lengths.__getitem__) for batch in shuffled]
    return [[rows[index] for index in batch] for batch in order]


def distances(bench: Bench) -> dict[str, float]:
    """Compare the gradients of every route with the exact ones, over the first batch.

    Raises:
        SystemExit: when one is too far off.
    """
    limit, rows = FAR[bench.dtype], bench.batches[0]
    exact = {kind: _gradients(bench.workshop.exact(kind), rows) for kind in (OURS, FULL)}
    found: dict[str, float] = {}
    for name, route in bench.routes.items():
        wanted = exact[FULL if name == FULL else OURS]
        found[name] = max(map(_distance, _gradients(route, rows), wanted))
        if not found[name] <= limit:
            raise SystemExit(f"{name}: gradients {found[name]:.1e} from those in fp64, wanted {limit:.0e}; no times")
    return found


def _gradients(route: Route, rows: Sequence[Item]) -> list[Tensor]:
    torch.autograd.backward(route.loss(rows))
    found: Gradients = route.gradients()
    copies = [grad.clone() for grad in found]
    for parameter in route.trained():
        parameter.grad = None
    return copies


def _distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@dataclass(frozen=True)
class Report:
    """What came of one dtype."""

    dtype: str
    backbone: str
    batches: str
    tokens: float
    """Real tokens of a batch, on average."""
    padded_tokens: float
    """Tokens of a batch that is padded to its longest row, on average."""
    gradient_distances: dict[str, float]
    step_ms: dict[str, float]
    """Median: forward, backward, gradient of prompt and head."""
    step_with_optimiser_ms: dict[str, float]
    ratio: dict[str, float]
    """Median over the turns of a route's step over ours."""
    ratio_with_optimiser: dict[str, float]
    tokens_per_s: dict[str, float]
    """Real tokens, with the optimiser: trained tokens per second."""
    compile_s: float | None = None
    """Until a compiled route has taken its first step; None without one."""
    memory: dict[str, train_memory.Memory] = field(default_factory=dict)
    """Of a process for each route; empty when it was not asked for."""


def take_turns(bench: Bench, turns: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each turn, before and after the optimiser has stepped, after some turns that are not timed."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in bench.routes}
    for turn in range(-WARM_UP, turns):
        rows = bench.batches[turn % len(bench.batches)]
        for name in sorted(bench.routes, reverse=turn % 2 == 1):
            spent = _step(bench.routes[name], rows, bench.device)
            if turn >= 0:
                seconds[name].append(spent)
    return seconds


def _step(route: Route, rows: Sequence[Item], device: torch.device) -> tuple[float, float]:
    began = time.perf_counter()
    loss = route.loss(rows)
    torch.autograd.backward(loss)
    _wait(device)
    differentiated = time.perf_counter()
    route.move(rows, loss.detach())
    _wait(device)
    return differentiated - began, time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(bench: Bench, turns: int, backbone: str, batches: str) -> Report:
    """Check the gradients, then time the steps."""
    compile_s = _compile(bench)
    far = distances(bench)
    seconds = take_turns(bench, turns)
    bare, whole = ({name: [one[i] for one in spent] for name, spent in seconds.items()} for i in (0, 1))
    used = bench.batches[:turns]
    tokens = mean(sum(row.num_tokens for row in batch) for batch in used)
    return Report(
        dtype=str(bench.dtype).removeprefix("torch."),
        backbone=backbone,
        batches=batches,
        tokens=tokens,
        padded_tokens=mean(len(batch) * max(row.num_tokens for row in batch) for batch in used),
        gradient_distances=far,
        step_ms={name: 1e3 * median(spent) for name, spent in bare.items()},
        step_with_optimiser_ms={name: 1e3 * median(spent) for name, spent in whole.items()},
        ratio=_ratios(bare),
        ratio_with_optimiser=_ratios(whole),
        tokens_per_s={name: tokens / median(spent) for name, spent in whole.items()},
        compile_s=compile_s,
    )


def _compile(bench: Bench) -> float | None:
    if COMPILED not in bench.routes:
        return None
    began = time.perf_counter()
    _gradients(bench.routes[COMPILED], bench.batches[0])
    return time.perf_counter() - began


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {
        name: median(x / own for x, own in zip(spent, seconds[OURS], strict=True)) for name, spent in seconds.items()
    }


def show(report: Report) -> None:
    typer.echo(
        f"\n{report.dtype}, {report.backbone}: {BATCH_ROWS} rows {report.batches}, {report.tokens:.0f} tokens, "
        f"{report.padded_tokens:.0f} padded to the longest, {BATCH_ROWS * MOST_TOKENS} to {MOST_TOKENS}; P={PREFIX}"
    )
    typer.echo(
        f"  {'':29} {'step':>9} {'/ ours':>7} {'+ AdamW':>12} {'/ ours':>7} {'tokens/s':>9}   gradients differ by"
    )
    for name, ms in report.step_ms.items():
        typer.echo(
            f"  {name:29} {ms:6.1f} ms {report.ratio[name]:7.2f} {report.step_with_optimiser_ms[name]:9.1f} ms "
            f"{report.ratio_with_optimiser[name]:7.2f} {report.tokens_per_s[name]:9.0f}   "
            f"{report.gradient_distances[name]:.1e}"
        )
    if report.compile_s is not None:
        typer.echo(f"  {COMPILED}: {report.compile_s:.0f} s until its first step was done")


def show_memory(found: dict[str, train_memory.Memory]) -> None:
    typer.echo(f"  {'':29} {'trained':>12} {'most in tensors':>15} {'/ full':>7} {'process grows':>15}")
    whole = found[FULL].tensors_mib
    for name, one in found.items():
        grown = "" if one.resident_mib is None else f"{one.resident_mib:11.0f} MiB"
        share = one.tensors_mib / whole
        typer.echo(f"  {name:29} {one.trained_mib:8.1f} MiB {one.tensors_mib:11.0f} MiB {share:7.2f} {grown}")


def main(
    turns: Annotated[int, typer.Option(help="turns that each route takes, each over another batch")] = 16,
    threads: Annotated[int, typer.Option(help="threads of one operator")] = 1,
    alike: Annotated[
        bool, typer.Option("--alike", help="rows of like length together, as our trainer has them")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    compiled: Annotated[bool, typer.Option("--compiled", help="also ours with torch.compile")] = False,
    memory: Annotated[bool, typer.Option(help="also measure the memory of each route in a process of its own")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the figures here")] = None,
) -> None:
    """Measure one training step against the original implementation, PEFT and fine-tuning, in fp32 and bf16."""
    torch.set_num_threads(threads)
    about = f"{device_name(torch.device(device))}; {threads} threads; torch {torch.__version__}; commit {commit()}"
    said: dict[str, Any] = {"about": about, "libraries": f"transformers {transformers.__version__}"}
    said["libraries"] += f", peft {peft.__version__}"
    reports: list[Report] = []
    with tempfile.TemporaryDirectory() as parent:
        folder, name = backbone_folder(Path(parent))
        for dtype in (torch.float32, torch.bfloat16):
            names = (*ROUTES, COMPILED) if compiled else ROUTES
            bench = make_bench(folder, dtype, turns, alike=alike, device=device, names=names)
            if not reports:
                said["rows"] = "SST-2 train" if bench.workshop.task.is_real else "random words, log-normal lengths"
                typer.echo("; ".join(said.values()))
            reports.append(measure(bench, turns, name, "of like length" if alike else "at random"))
            show(reports[-1])
            del bench
            if memory:
                asked = train_memory.Asked(folder, reports[-1].dtype, device, alike, threads)
                reports[-1].memory.update({name: train_memory.in_a_process(name, asked) for name in ROUTES})
                show_memory(reports[-1].memory)
    if json_file:
        json_file.write_text(json.dumps({**said, "reports": [asdict(report) for report in reports]}, indent=1))


if __name__ == "__main__":
    typer.run(main)
