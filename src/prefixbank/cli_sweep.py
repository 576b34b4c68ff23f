"""`prefixbank sweep`: recipes to their best settings, each run once per seed, checked by the serving engine.

The folders of the artifacts go to stdout, all else to stderr. It refuses to know how settings are chosen and trained.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefixbank import cli_training as training
from prefixbank.cli_common import DEFAULT_STORE, remark
from prefixbank.model_store.backbones.cpu_products import allow_every_instruction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefixbank.trainer.sweep import Job, Result
    from prefixbank.trainer.sweep_display import SweepDisplay


def sweep(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="TOML files. Several share one backbone and all steps.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for all of it; of several recipes, one in it for each.", show_default="runs/RECIPE-sweep"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted sweep where it was.")] = False,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Settings to try.", show_default="16, or the recipe's")
    ] = None,
    together: Annotated[
        int | None, typer.Option(min=1, help="Trials that share every step.", show_default="8, or the recipe's")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of the best settings.", show_default="3, or the recipe's")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Be done in 90s, 20m, 1h30m; on --resume, what trials took counts. Without --trials, time decides.",
        ),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="tpe, random or grid.", show_default="tpe")] = None,
    pruner: Annotated[str | None, typer.Option(help="median, halving or none.", show_default="median")] = None,
    seed: training.SeedOption = None,
    settings: training.SetOption = None,
    strict: training.StrictOption = False,
    device: training.DeviceOption = "auto",
    publish: training.PublishOption = None,
    store: training.StoreOption = DEFAULT_STORE,
    promote: training.PromoteOption = False,
) -> None:
    """Find settings: trials packed through one backbone, the weak ones ended early, the best run once per seed.

    The recipe's table `sweep` says what varies; without one it is length, rates and start of the recipe's method.

    Example: `prefixbank sweep examples/recipes/intents.toml --budget 10m`
    """
    began = time.monotonic()
    from prefixbank.model_store.backbones.devices import device_named
    from prefixbank.trainer.run import backbone_for
    from prefixbank.trainer.sweep import TimeLimit, seconds_of
    from prefixbank.trainer.sweep import sweep as run_sweep

    training.need_serving()
    allow_every_instruction()
    training.need_sweeps()
    limit = None if budget is None else TimeLimit(seconds_of(budget), began)
    said = {"trials": trials, "together": together, "seeds": seeds, "sampler": sampler, "pruner": pruner}
    overrides = [*(settings or []), *(f"sweep.{name}={value}" for name, value in said.items() if value is not None)]
    overrides += [] if seed is None else [f"seed={seed}"]
    timed = limit is not None and trials is None
    jobs = [_job(path, overrides, _folder(path, out, len(recipes)), strict, timed=timed) for path in recipes]
    publication = _publication(training.Asked(publish, store, promote), jobs)
    training.log_to_stderr(always=len(jobs) > 1)
    with training.interruptible():
        results = run_sweep(
            jobs,
            backbone_for(jobs[0].recipe, device_named(device)),
            show=display_for(len(jobs)),
            limit=limit,
            resume=resume,
            verify=training.served_logits,
        )
    for job, result in zip(jobs, results, strict=True):
        conclude(job, result, publication)


def conclude(job: Job, result: Result, publication: training.Publication) -> None:
    """Say what the best settings are and reached, and publish what is to be published."""
    settings = ", ".join(f"{name} = {value}" for name, value in result.settings.items())
    remark(f"{job.name}: best of all: {settings}")
    training.summarise(result.trained)
    if len(result.reported) > 1:
        mean = "mean " if len(result.trained.reports) > 1 else ""
        metric = mean + result.trained.report["selection"]["metric"]
        scores = f"{result.mean:.4f} +- {result.std:.4f}"
        remark(f"{job.name}: {result.split} {metric} {scores} over {len(result.reported)} seeds")
    remark(f"{job.name}: recipe {job.out / job.best_file}, page {job.out / 'sweep.html'}")
    for part, folder in result.trained.folders.items():
        typer.echo(folder)
        publication.publish(part or job.name, folder)


def display_for(num_recipes: int) -> Callable[[str], SweepDisplay]:
    """A live table for one recipe; lines for several, whose scores do not compare."""
    from prefixbank.trainer.sweep_display import LogSweepDisplay, sweep_display_for_terminal

    return lambda name: sweep_display_for_terminal() if num_recipes == 1 else LogSweepDisplay()


def _job(path: Path, overrides: Sequence[str], folder: Path, strict: bool, *, timed: bool) -> Job:
    from prefixbank.trainer.recipe import SweepSection, load
    from prefixbank.trainer.sweep import Job

    recipe = load(path, overrides)
    section = recipe.sweep or SweepSection()
    recipe = (recipe.strict if strict else recipe).model_copy(update={"sweep": section})
    return Job(path.stem, recipe, path.parent, folder, None if timed else section.trials)


def _publication(asked: training.Asked, jobs: Sequence[Job]) -> training.Publication:
    names = [part or job.name for job in jobs for part in job.recipe.parts]
    return asked.for_artifacts(names, [job.recipe for job in jobs])


def _folder(path: Path, out: Path | None, num_recipes: int) -> Path:
    if out is None:
        return Path("runs") / f"{path.stem}-sweep"
    return out if num_recipes == 1 else out / path.stem
