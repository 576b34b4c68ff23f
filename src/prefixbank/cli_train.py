"""`prefixbank train`: a recipe to an artifact and a report, checked by the serving engine, published when asked.

The artifact's folder goes to stdout, all else to stderr. It puts trainer and serving together, which do not know
each other; it refuses to know how either works.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from prefixbank.model_store.address import Address
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.trainer.progress import Display
    from prefixbank.trainer.recipe import Recipe
    from prefixbank.trainer.run import Trained

INTERRUPTED = 130
DEFAULT_STORE = Path("store")


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML file; its paths are relative to its own folder.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for artifact, report and checkpoint.", show_default="runs/RECIPE")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run from its checkpoint.")] = False,
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value of a field, as in prompt.length=64."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad row, which else is left out and counted.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    publish: Annotated[
        str | None, typer.Option(metavar="TENANT/TASK", help="Publish the artifact in the store under this address.")
    ] = None,
    store: Annotated[
        Path, typer.Option(envvar="PREFIXBANK_STORE", help="The store's folder, for --publish.", show_default="store")
    ] = DEFAULT_STORE,
    promote: Annotated[bool, typer.Option("--promote", help="Serve what --publish published: make it live.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write scalars for TensorBoard beside the report.")
    ] = False,
) -> None:
    """Train a task prompt. The serving engine answers the reported rows once more: a mismatch is refused.

    Example: `prefixbank train examples/recipes/intents.toml --publish shop/intents --promote`
    """
    from prefixbank.model_store.errors import TrainingError, TrainingInterrupted
    from prefixbank.trainer import run
    from prefixbank.trainer.recipe import load

    _need_serving()
    chosen = load(recipe, [*(settings or []), *([] if seed is None else [f"seed={seed}"])])
    chosen = chosen.strict if strict else chosen
    if promote and publish is None:
        raise TrainingError("--promote: found no --publish, wanted one: only what is published can be served")
    address = None if publish is None else _address(publish, chosen)
    folder = out or Path("runs") / recipe.stem
    display = _display(folder, tensorboard)
    _log_to_stderr()
    try:
        trained = run.train(
            chosen,
            folder,
            root=recipe.parent,
            device=_device(device),
            verify=served_logits,
            resume=resume,
            display=display,
        )
    except TrainingInterrupted as stop:
        typer.echo(f"prefixbank: {stop}", err=True)
        raise typer.Exit(INTERRUPTED) from stop
    _summarise(trained.report)
    if trained.folder is not None:
        typer.echo(trained.folder)
    if address is not None:
        _publish(trained, address, store, promote)


def served_logits(prompt: TaskPrompt, rows: Sequence[Features], backbone: Backbone) -> Sequence[NDArray[np.float32]]:
    """What the serving engine computes for rows of a prompt that is in no store."""
    from prefixbank.serving.predict import Predictor

    with Predictor(backbone, {}) as predictor:
        return predictor.logits(prompt, rows)


def _need_serving() -> None:
    """Refuse before training what could not be checked after it."""
    from prefixbank.model_store.errors import TrainingError

    try:
        import prefixbank.serving.predict  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise TrainingError(
            f"the check by the serving engine lacks {error.name}: pip install prefixbank[train]"
        ) from error


def _address(text: str, recipe: Recipe) -> Address:
    """Validated before anything is trained."""
    from prefixbank.model_store.address import Address
    from prefixbank.model_store.errors import TrainingError

    if recipe.method == "full":
        raise TrainingError('--publish: found method "full", wanted "prompt" or "head": fine-tuning makes no artifact')
    return Address.parse(text)


def _device(asked: str) -> str:
    import torch

    if asked != "auto":
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def _display(folder: Path, tensorboard: bool) -> Display:
    """What a person sees, and what TensorBoard does where it is asked for."""
    from prefixbank.trainer.progress import Displays, display_for_terminal
    from prefixbank.trainer.tensorboard import FOLDER, TensorBoardDisplay

    return Displays(display_for_terminal(), *([TensorBoardDisplay(folder / FOLDER)] if tensorboard else []))


def _log_to_stderr() -> None:
    """Epochs as lines where there is no bar."""
    if not sys.stderr.isatty():
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logging.getLogger("prefixbank.trainer").setLevel(logging.INFO)


def _summarise(report: dict[str, Any]) -> None:
    split, metric = report["reported_split"], report["selection"]["metric"]
    interval = report["confidence"]["intervals"][split].get(metric)
    doubt = "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"
    _remark(f"{split} {metric} {report['metrics'][split][metric]:.4f}{doubt}, epoch {report['selection']['epoch']}")
    seconds, share = report["train_seconds"], report["trained_share"]
    _remark(f"{report['trained_parameters']:,} trained parameters ({share:.2%} of the backbone) in {seconds:.0f} s")
    check = report.get("serving_check")
    if check is not None:
        _remark(f"served: {metric} {check['served']:.4f}, logits {check['logit_distance']:.1e} apart")


def _publish(trained: Trained, address: Address, path: Path, promote: bool) -> None:
    from prefixbank.model_store.store import PromptStore

    assert trained.folder is not None, "a run without artifact is refused before training. This is a bug."
    prompts = PromptStore(path)
    revision = prompts.publish(address, trained.folder)
    _remark(f"published {address} {revision[:12]} in {path}")
    if promote:
        prompts.promote(address, revision)
        _remark(f"{address}: live is {revision[:12]}")


def _remark(text: str) -> None:
    typer.echo(text, err=True)
