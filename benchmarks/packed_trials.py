"""What training several prompts in the same packed batches brings, against the same trials one after the other.

    python -m benchmarks.packed_trials [TASKS] [--rows 4,8] [--turns N] [--threads N] [--device cuda] [--json FILE]

Trials of one task on MiniLM as a sweep would have them: prefix lengths, rates, starts and seeds differ, each takes its
own batches in its own order. It refuses to print a speed before eight trials have taken 50 steps packed and ended where
the same eight ended alone. A turn is one step of everything: of packs of 1, 2, 4, 8 and 16 trials, and of each trial
alone, over the same rows; a ratio is the median of the turns'. It refuses to know evaluation and what is learned.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
import typer

from benchmarks.environment import commit, device_name
from benchmarks.keeping import keep
from benchmarks.training_rows import backbone_folder, read_task
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.trainer.loop import Loop
from prefixbank.trainer.pack import Pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.training_rows import Task, TaskName
    from prefixbank.trainer.trial import Trial

COUNTS = (1, 2, 4, 8, 16)
GATE_TRIALS, GATE_STEPS = 8, 50
EQUAL = 1e-5
"""Largest difference of a parameter after the gate's steps in fp32."""
LENGTHS: dict[str, tuple[int, ...]] = {"sst2": (8, 16, 20, 32), "conll04": (16, 32, 64, 64)}
"""Prefix tokens, in turn."""
RATES, STARTS = (5e-3, 1e-2, 2e-2), ("text", "text", "random")
NUM_ROWS = {"sst2": 4096, "conll04": 900}
WARM_UP = 3


def make_trials(task: Task, name: str, count: int, batch_rows: int) -> list[Trial]:
    """Trials that differ as a sweep's do; the same ones for the same arguments."""
    lengths = LENGTHS[name]
    return [
        task.trial(
            seed=number,
            prompt={"length": lengths[number % len(lengths)], "init": STARTS[number % 3], "dropout": 0.1},
            optimiser={"prompt_rate": RATES[number % 3], "batch_rows": batch_rows, "epochs": 10_000, "warmup": 0.0},
        )
        for number in range(count)
    ]


def loop_over(pack: Pack, trials: Sequence[Trial]) -> Loop:
    loop = Loop(pack, most_trials=len(trials))
    loop.running = list(trials)
    return loop


def step(loop: Loop) -> float:
    """Take one step of every trial; return how many seconds it took."""
    began = time.perf_counter()
    loop.step()
    if loop.pack.backbone.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    for trial in loop.running:
        if trial.is_at_end_of_epoch:
            trial.close_epoch({trial.metric: 0.0})
    return seconds


def largest_difference(task: Task, name: str, batch_rows: int, steps: int) -> float:
    """Train the gate's trials packed and alone; return how far a parameter lies from itself.

    Raises:
        SystemExit: farther than `EQUAL` in fp32.
    """
    pack = Pack(task.backbone)
    packed, alone = (make_trials(task, name, GATE_TRIALS, batch_rows) for _ in range(2))
    together = loop_over(pack, packed)
    for _ in range(steps):
        step(together)
    for trial in alone:
        loop = loop_over(pack, [trial])
        for _ in range(steps):
            step(loop)
    found = max(
        float((tensor - other.trained[key]).detach().abs().max())
        for one, other in zip(packed, alone, strict=True)
        for key, tensor in one.trained.items()
    )
    if task.backbone.dtype == torch.float32 and not found <= EQUAL:
        raise SystemExit(f"{name}: packed trials end {found:.1e} from trials alone, wanted {EQUAL:.0e}; no times")
    return found


@dataclass(frozen=True)
class Result:
    """One task, batch size and dtype."""

    task: str
    dtype: str
    batch_rows: int
    tokens: float
    """Of a trial's step, on average."""
    difference: float
    """Largest, of a parameter after the gate's steps packed and alone."""
    alone_tokens_per_s: float
    packed_tokens_per_s: dict[int, float]
    """By trials in the pack; medians."""
    ratio: dict[int, float]
    """Median over the turns of the same trials' seconds one after the other over those of the pack."""


class Turn(NamedTuple):
    """Seconds of one step."""

    alone: list[float]
    """Of each trial."""
    packed: dict[int, float]
    """Of a pack of so many."""


def measure(task: Task, name: str, batch_rows: int, turns: int, gate_steps: int = GATE_STEPS) -> Result:
    """Check that packing changes nothing, then take turns."""
    difference = largest_difference(task, name, batch_rows, gate_steps)
    pack, most = Pack(task.backbone), max(COUNTS)
    alone = [loop_over(pack, [trial]) for trial in make_trials(task, name, most, batch_rows)]
    packs = {count: loop_over(pack, make_trials(task, name, count, batch_rows)) for count in COUNTS}
    spent: list[Turn] = []
    for turn in range(-WARM_UP, turns):
        both = [lambda: [step(loop) for loop in alone], lambda: [step(loop) for loop in packs.values()]]
        order = (0, 1) if turn % 2 else (1, 0)
        took = {which: both[which]() for which in order}
        if turn >= 0:
            spent.append(Turn(took[0], dict(zip(packs, took[1], strict=True))))
    trained = [loop.running[0].state.trained_tokens / (turns + WARM_UP) for loop in alone]
    packed_s = {count: median(one.packed[count] for one in spent) for count in COUNTS}
    return Result(
        name,
        str(task.backbone.dtype).removeprefix("torch."),
        batch_rows,
        sum(trained) / most,
        difference,
        sum(trained) / median(sum(one.alone) for one in spent),
        {count: sum(trained[:count]) / seconds for count, seconds in packed_s.items()},
        {count: median(sum(one.alone[:count]) / one.packed[count] for one in spent) for count in COUNTS},
    )


@dataclass
class Report:
    """What there is so far."""

    about: dict[str, str]
    results: list[Result]

    def as_json(self) -> dict[str, Any]:
        return {**self.about, "results": [asdict(result) for result in self.results]}


def show(result: Result) -> None:
    typer.echo(
        f"\n{result.task}, {result.dtype}, {result.batch_rows} rows a step of each trial ({result.tokens:.0f} tokens): "
        f"{GATE_TRIALS} packed end {result.difference:.1e} from alone after {GATE_STEPS} steps"
    )
    typer.echo(f"  one after the other {result.alone_tokens_per_s:15.0f} tokens/s")
    for count, ratio in result.ratio.items():
        typer.echo(f"  {count:2} packed {result.packed_tokens_per_s[count]:26.0f} tokens/s {ratio:6.2f} x")


def main(
    tasks: Annotated[str, typer.Argument(help="of sst2, conll04")] = "sst2,conll04",
    rows: Annotated[str, typer.Option(help="rows of a trial's step")] = "4,8",
    dtypes: Annotated[str, typer.Option(help="of the backbone")] = "float32,bfloat16",
    turns: Annotated[int, typer.Option(help="steps of everything")] = 15,
    threads: Annotated[int, typer.Option(help="threads of one operator")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the figures here")] = None,
) -> None:
    """Measure packed trials against trials one after the other."""
    torch.set_num_threads(threads)
    about = f"{device_name(torch.device(device))}; {threads} threads; torch {torch.__version__}; commit {commit()}"
    with tempfile.TemporaryDirectory() as parent:
        folder, backbone_name = backbone_folder(Path(parent))
        report = Report({"about": about, "backbone": backbone_name}, [])
        typer.echo("; ".join(report.about.values()))
        for dtype in dtypes.split(","):
            backbone = load_backbone(folder, dtype=getattr(torch, dtype), device=device)
            for name in tasks.split(","):
                chosen: TaskName = "conll04" if name == "conll04" else "sst2"
                task = read_task(chosen, backbone, Path(parent), NUM_ROWS[chosen])
                report.about[f"{name} rows"] = "of the data set" if task.is_real else "random words"
                for batch_rows in map(int, rows.split(",")):
                    report.results.append(measure(task, chosen, batch_rows, turns))
                    show(report.results[-1])
                    keep(report, json_file)


if __name__ == "__main__":
    typer.run(main)
