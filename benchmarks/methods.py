"""What each method reaches in one harness: head, shallow prompt, deep prompt, multi-task prompt, full fine-tuning.

    python -m benchmarks.methods [TASK ...] [--methods head,shallow,prompt,full] [--seeds 3] [--keep FILE] [--quick]

The tasks are recipes of `examples/recipes`, which are written for the deep prompt; `methods_settings` says what other
methods change in them, and which rows a task is cut to so that a small machine gets through. Every run is kept as a
line of FILE as soon as it ends, and a run that is there with the same settings is not run again. Scores are those of
the reported split, which chose nothing. It refuses to know how anything is trained.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from benchmarks.environment import commit, device_name
from benchmarks.methods_settings import FAMILY_OF_TASKS, METHODS, QUICK, TASKS, settings_of
from prefixbank.cli_training import served_logits
from prefixbank.model_store.backbones.cpu_products import allow_every_instruction
from prefixbank.trainer.build import build_trial
from prefixbank.trainer.loop import Loop
from prefixbank.trainer.pack import Pack
from prefixbank.trainer.prepare import prepare
from prefixbank.trainer.progress import LogDisplay
from prefixbank.trainer.recipe import load
from prefixbank.trainer.run import ARTIFACT_FOLDER, backbone_for, finish, train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prefixbank.trainer.recipe import Recipe
    from prefixbank.trainer.run import Trained

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "examples" / "recipes"
FIRST_SEED = 11
KEPT = ROOT / "benchmarks" / "results" / "methods.jsonl"
REVISION = 2
"""Of the trainer; runs of an older one are run again. 2 draws a dropout mask a step, 1 had two for all steps."""


@dataclass(frozen=True, slots=True)
class Run:
    """One task, method and seed."""

    task: str
    method: str
    seed: int
    settings: list[str]
    """What was changed in the recipe."""
    recipe: str
    """Digest of every fact of the run but its seed: other facts are other runs."""
    metric: str
    score: float
    """On the reported split."""
    validation: float
    split: str
    metrics: dict[str, float]
    trained_share: float
    train_seconds: float
    tokens_per_second: float
    threads: int
    commit: str
    hardware: str
    revision: int = 1


def measure(
    task: str, method: str, seeds: Sequence[int], settings: Sequence[str], folder: Path, device: torch.device
) -> Iterator[Run]:
    """Yield the run of each seed as it ends; a prompt passes the serving check or all stops: scores can be served."""
    path = RECIPES / f"{task}.toml"
    changes = {seed: [*settings, f"seed={seed}"] for seed in seeds}
    if method == "multitask":
        for seed, start in _shared(task, seeds, settings, folder, device).items():
            changes[seed] += ['prompt.init="stored"', f'prompt.start="{start}"']
    recipes = {seed: load(path, found) for seed, found in changes.items()}
    digest = _digest(task, method, settings)
    for seed, trained in _train(recipes, lambda seed: folder / f"{task}-{method}-{seed}", device):
        yield _run(task, method, seed, settings, digest, trained.report, device_name(device))


def _run(
    task: str, method: str, seed: int, settings: Sequence[str], digest: str, report: dict[str, Any], device: str
) -> Run:
    metric, split = report["selection"]["metric"], report["reported_split"]
    return Run(
        task,
        method,
        seed,
        list(settings),
        digest,
        metric,
        report["metrics"][split][metric],
        report["metrics"]["validation"][metric],
        split,
        report["metrics"][split],
        report["trained_share"],
        report["train_seconds"],
        report["train_tokens_per_second"],
        torch.get_num_threads(),
        commit(),
        device,
        REVISION,
    )


def _train(
    recipes: dict[int, Recipe], out: Callable[[int], Path], device: torch.device
) -> Iterator[tuple[int, Trained]]:
    """Seeds packed through one backbone, as they end; a fine-tuned backbone is a seed's own."""
    first = next(iter(recipes.values()))
    if first.method == "full":
        for seed, recipe in recipes.items():
            yield seed, train(recipe, out(seed), root=RECIPES, device=device)
        return
    backbone = backbone_for(first, device)
    prepared = {seed: prepare(recipe, RECIPES, backbone) for seed, recipe in recipes.items()}
    trials = [
        build_trial(recipe, backbone, prepared[seed], root=RECIPES, folder=None, display=LogDisplay())
        for seed, recipe in recipes.items()
    ]
    pack = Pack(backbone)
    for trial in Loop(pack, most_trials=len(trials)).run(trials):
        seed = trial.recipe.seed
        if trial.state.failure:
            raise SystemExit(f"{out(seed)}: {trial.state.failure}")
        yield seed, finish(pack, trial, prepared[seed], out(seed), served_logits)


def _shared(
    task: str, seeds: Sequence[int], settings: Sequence[str], folder: Path, device: torch.device
) -> dict[int, Path]:
    """The artifacts of prompts that were trained on the whole family of data sets first, once for all of them."""
    name = FAMILY_OF_TASKS[task]
    common = _common(settings)
    artifacts = {seed: folder / f"{name}-{seed}" / task / ARTIFACT_FOLDER for seed in seeds}
    missing = [seed for seed in seeds if not artifacts[seed].exists()]
    if missing:
        recipes = {seed: load(RECIPES / f"{name}.toml", [*common, f"seed={seed}"]) for seed in missing}
        list(_train(recipes, lambda seed: folder / f"{name}-{seed}", device))
    return {seed: path.resolve() for seed, path in artifacts.items()}


def _digest(task: str, method: str, settings: Sequence[str]) -> str:
    """Of the resolved recipes, defaults left out: fields that are new do not make old runs others, nor do the prompt's
    settings those that have none."""
    paths = [RECIPES / f"{task}.toml"]
    if method == "multitask":
        paths.append(RECIPES / f"{FAMILY_OF_TASKS[task]}.toml")
    facts = []
    for path in paths:
        recipe = load(path, _common(settings) if path != paths[0] else settings)
        fields = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"seed", "report", "sweep"})
        if method in ("head", "full"):
            fields.pop("prompt", None)
            fields.get("optimiser", {}).pop("prompt_rate", None)
        facts.append(fields)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _common(settings: Sequence[str]) -> list[str]:
    """Those that the recipe of a family of tasks takes too."""
    return [setting for setting in settings if setting.startswith(("prompt.", "optimiser.epoch_rows"))]


def kept(file: Path) -> list[Run]:
    """The runs of a file."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [Run(**json.loads(line)) for line in lines]


def _seeds_done(runs: Sequence[Run], task: str, method: str, settings: Sequence[str]) -> set[int]:
    wanted = (task, method, _digest(task, method, settings), REVISION)
    return {run.seed for run in runs if (run.task, run.method, run.recipe, run.revision) == wanted}


def table(runs: Sequence[Run]) -> Iterator[str]:
    """Markdown: a line per task, a column per method, mean and deviation over seeds; the newest settings alone.

    Cells of an older revision are marked.
    """
    methods = [method for method in METHODS if any(run.method == method for run in runs)]
    yield f"| task | metric | {' | '.join(methods)} |"
    yield f"|{'---|' * (len(methods) + 2)}"
    for task in TASKS:
        of_task = [run for run in runs if run.task == task]
        if of_task:
            cells = [_cell([run for run in of_task if run.method == method]) for method in methods]
            yield f"| {task} | {of_task[0].metric} | {' | '.join(cells)} |"


def _cell(runs: Sequence[Run]) -> str:
    newest = [run for run in runs if (run.recipe, run.revision) == (runs[-1].recipe, runs[-1].revision)]
    if not newest:
        return "-"
    old = "" if newest[0].revision == REVISION else "; old"
    scores = [100 * run.score for run in newest]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.1f}{spread} ({newest[0].trained_share:.2%}, {len(scores)}{old})"


def main(
    tasks: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(TASKS)}; all by default")] = None,
    methods: Annotated[str, typer.Option(help=f"of {', '.join(METHODS)}")] = ",".join(METHODS),
    seeds: Annotated[int, typer.Option(help="runs of each, from seed 11 on")] = 3,
    keep: Annotated[Path, typer.Option(help="where runs are kept, a line each")] = KEPT,
    runs: Annotated[
        Path | None, typer.Option(help="a folder for artifacts and reports; else they are not kept")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    threads: Annotated[int, typer.Option(help="of torch; 1 where another benchmark has the other core")] = 1,
    show: Annotated[bool, typer.Option("--show", help="only print what is kept")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="a few rows, one epoch: only whether it runs")] = False,
) -> None:
    """Run what is not kept yet, seeds packed together, and print the table: mean ± deviation (trained share, seeds)."""
    allow_every_instruction()  # as `prefixbank train` does
    torch.set_num_threads(threads)
    wanted = () if show else itertools.product(tasks or TASKS, methods.split(","))
    every_seed = range(FIRST_SEED, FIRST_SEED + seeds)
    with tempfile.TemporaryDirectory() as temporary:
        for task, method in wanted:
            settings = settings_of(task, method)
            if settings is None:
                continue
            done = set() if quick else _seeds_done(kept(keep), task, method, settings)
            missing = [seed for seed in every_seed if seed not in done]
            changes = [*settings, *(QUICK if quick else ())]
            folder = runs or Path(temporary)
            found = measure(task, method, missing, changes, folder, torch.device(device))
            for run in found if missing else ():
                with keep.open("a") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
                spent = f"{run.train_seconds:.0f} s"
                typer.echo(f"{task} {method} {run.seed}: {run.metric} {run.score:.4f}, {spent}", err=True)
    typer.echo("\n".join(table(kept(keep))))


if __name__ == "__main__":
    typer.run(main)
