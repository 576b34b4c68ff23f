"""What keeping states under the lowest prompted layer brings to first and later epochs, and what memory it takes.

    python -m benchmarks.cached_states [TASKS] [--epochs N] [--threads N] [--device cuda] [--json FILE]

A trial that prompts the upper half of MiniLM's layers and one that trains a head alone, each twice: with `Pack`'s kept
states and without. The two take turns step by step over the same rows; a ratio is the median of the turns of an epoch.
It refuses to print a speed before both have taken the first epoch to parameters that are equal. It refuses to know
evaluation, which keeps states the same way.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from benchmarks.environment import commit, device_name
from benchmarks.keeping import keep
from benchmarks.packed_trials import loop_over, step
from benchmarks.training_rows import backbone_folder, read_task
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.trainer.pack import Pack

if TYPE_CHECKING:
    from benchmarks.training_rows import Task, TaskName

NUM_ROWS, BATCH_ROWS = 512, 32
EQUAL = 1e-6
"""Largest difference of a parameter after the first epoch in fp32."""
HALF, HEAD = "upper half prompted", "head alone"
MIB = 1 << 20


@dataclass(frozen=True)
class Result:
    """One task, kind of trial and dtype."""

    task: str
    kind: str
    dtype: str
    tokens: int
    """Of the training rows."""
    difference: float
    """Largest, of a parameter after the first epoch with and without kept states."""
    kept_mib: float
    """In host memory."""
    fresh_ms: float
    """Median step without kept states."""
    kept_ms: list[float]
    """Median step of each epoch with them."""
    ratio: list[float]
    """Of each epoch: median over its steps of without over with."""


def measure(task: Task, name: str, kind: str, epochs: int) -> Result:
    """Take turns, and check that both learn the same."""
    trials = [task.trial(**_fields(kind, task.backbone.ref.num_layers)) for _ in range(2)]
    packs = [Pack(task.backbone), Pack(task.backbone, keep_states=False)]
    kept, fresh = (loop_over(pack, [trial]) for pack, trial in zip(packs, trials, strict=True))
    spent: list[list[tuple[float, float]]] = []
    difference = 0.0
    for epoch in range(epochs):
        turns = []
        for number in range(trials[0].steps_per_epoch):
            if number % 2:
                turns.append((step(kept), step(fresh)))
            else:
                other = step(fresh)
                turns.append((step(kept), other))
        spent.append(turns)
        if epoch == 0:
            difference = _difference(task, kept.running[0].trained, fresh.running[0].trained)
    return Result(
        name,
        kind,
        str(task.backbone.dtype).removeprefix("torch."),
        sum(item.num_tokens for item in task.items),
        difference,
        packs[0].kept_bytes / MIB,
        1e3 * median(fresh_s for turns in spent for _, fresh_s in turns),
        [1e3 * median(kept_s for kept_s, _ in turns) for turns in spent],
        [median(fresh_s / kept_s for kept_s, fresh_s in turns) for turns in spent],
    )


def _fields(kind: str, num_layers: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"optimiser": {"batch_rows": BATCH_ROWS, "epochs": 10_000, "warmup": 0.0}}
    if kind == HEAD:
        return fields | {"method": "head"}
    return fields | {"prompt": {"layers": {"from": "top", "count": num_layers // 2}}}


def _difference(task: Task, kept: dict[str, torch.nn.Parameter], fresh: dict[str, torch.nn.Parameter]) -> float:
    """How far parameters lie apart.

    Raises:
        SystemExit: too far, in fp32.
    """
    found = max(float((tensor - fresh[key]).detach().abs().max()) for key, tensor in kept.items())
    if task.backbone.dtype == torch.float32 and not found <= EQUAL:
        raise SystemExit(f"kept states end {found:.1e} from fresh ones, wanted {EQUAL:.0e}; no times")
    return found


@dataclass
class Report:
    """What there is so far."""

    about: dict[str, str]
    results: list[Result]

    def as_json(self) -> dict[str, Any]:
        return {**self.about, "results": [asdict(result) for result in self.results]}


def show(result: Result) -> None:
    later, ratio = result.kept_ms[1:], result.ratio[1:]
    typer.echo(
        f"{result.task:8} {result.kind:20} {result.dtype:9} {result.fresh_ms:7.1f} ms  first epoch "
        f"{result.kept_ms[0]:7.1f} ms {result.ratio[0]:5.2f} x  later {mean(later):7.1f} ms {mean(ratio):6.2f} x  "
        f"{result.kept_mib:6.1f} MiB for {result.tokens:,} tokens; parameters {result.difference:.0e} apart"
    )


def main(
    tasks: Annotated[str, typer.Argument(help="of sst2, conll04")] = "sst2,conll04",
    epochs: Annotated[int, typer.Option(min=2, help="the first computes what the others find")] = 3,
    threads: Annotated[int, typer.Option(help="threads of one operator")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the figures here")] = None,
) -> None:
    """Measure training with and without kept states."""
    torch.set_num_threads(threads)
    about = f"{device_name(torch.device(device))}; {threads} threads; torch {torch.__version__}; commit {commit()}"
    with tempfile.TemporaryDirectory() as parent:
        folder, backbone_name = backbone_folder(Path(parent))
        shape = f"{NUM_ROWS} rows, {BATCH_ROWS} a step, median steps"
        report = Report({"about": about, "backbone": backbone_name, "shape": shape}, [])
        typer.echo("; ".join(report.about.values()))
        for dtype in (torch.float32, torch.bfloat16):
            backbone = load_backbone(folder, dtype=dtype, device=device)
            for name in tasks.split(","):
                chosen: TaskName = "conll04" if name == "conll04" else "sst2"
                task = read_task(chosen, backbone, Path(parent), NUM_ROWS)
                for kind in (HALF, HEAD):
                    report.results.append(measure(task, chosen, kind, epochs))
                    show(report.results[-1])
                    keep(report, json_file)


if __name__ == "__main__":
    typer.run(main)
