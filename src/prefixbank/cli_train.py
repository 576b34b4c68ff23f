"""`prefixbank train`: a recipe, or rows alone, to an artifact and a report, published when asked.

The artifact's folder goes to stdout, all else to stderr. It refuses to know how trainer and serving work.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefixbank import cli_training as training
from prefixbank.cli_common import DEFAULT_STORE, FamilyName
from prefixbank.model_store.backbones.cpu_products import allow_every_instruction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefixbank.trainer.progress import Display


def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="TOML file; its paths are relative to its own folder. Or say --data.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Rows to learn from, instead of a recipe: settings are searched within --budget."),
    ] = None,
    family: Annotated[
        FamilyName | None,
        typer.Option(help="What the task answers, with --data.", show_default="guessed from the rows"),
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Rows to choose on, with --data.", show_default="a part of --data")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Rows to report on, with --data.", show_default="a part of --data")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Folder, hub id or minilm, with --data.", show_default="minilm")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Be done in 90s, 20m, 1h, with --data.", show_default="5m")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for artifact, report and checkpoint.", show_default="runs/RECIPE")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run from its checkpoint.")] = False,
    seed: training.SeedOption = None,
    settings: training.SetOption = None,
    strict: training.StrictOption = False,
    device: training.DeviceOption = "auto",
    publish: training.PublishOption = None,
    store: training.StoreOption = DEFAULT_STORE,
    promote: training.PromoteOption = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard beside the report.")
    ] = False,
) -> None:
    """Train a task prompt. The serving engine answers the reported rows once more: a mismatch is refused.

    Example: `prefixbank train examples/recipes/intents.toml --publish shop/intents --promote`

    Without a recipe: `prefixbank train --data reviews.tsv --budget 5m` guesses the columns and finds settings.
    """
    began = time.monotonic()
    from prefixbank.cli_data import Without, train_within

    training.need_serving()
    allow_every_instruction()
    overrides = [*(settings or []), *([] if seed is None else [f"seed={seed}"])]
    without = Without(data, family, validation, test, backbone, budget)
    asked = training.Asked(publish, store, promote)
    if without.check(recipe, tensorboard):
        train_within(without, began, overrides, out, asked, resume=resume, strict=strict, device=device)
        return
    assert recipe is not None, "neither recipe nor data is refused. This is a bug."
    folder = out or Path("runs") / recipe.stem
    display = _display(folder, tensorboard)
    train_recipe(recipe, overrides, folder, asked, display, resume=resume, strict=strict, device=device)


def train_recipe(
    recipe: Path,
    overrides: Sequence[str],
    folder: Path,
    asked: training.Asked,
    display: Display,
    *,
    resume: bool,
    strict: bool,
    device: str,
) -> None:
    """Run a recipe, say what it reached, and publish what is to be published."""
    from prefixbank.model_store.backbones.devices import device_named
    from prefixbank.trainer import run
    from prefixbank.trainer.recipe import load

    chosen = load(recipe, overrides)
    chosen = chosen.strict if strict else chosen
    publication = asked.for_artifacts(list(chosen.parts), [chosen])
    training.log_to_stderr()
    with training.interruptible():
        trained = run.train(
            chosen,
            folder,
            root=recipe.parent,
            device=device_named(device),
            verify=training.served_logits,
            resume=resume,
            display=display,
        )
    training.summarise(trained)
    for name, artifact in trained.folders.items():
        typer.echo(artifact)
        publication.publish(name, artifact)


def _display(folder: Path, tensorboard: bool) -> Display:
    """What a person sees, and what TensorBoard does where it is asked for."""
    from prefixbank.trainer.progress import Displays, display_for_terminal
    from prefixbank.trainer.tensorboard import FOLDER, TensorBoardDisplay

    return Displays(display_for_terminal(), *([TensorBoardDisplay(folder / FOLDER)] if tensorboard else []))
