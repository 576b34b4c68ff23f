"""What the commands that train have in common: the check by the serving engine, publishing, and what they tell.

It puts trainer and serving together, which do not know each other; it refuses to know how either works.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from prefixbank.cli_common import SHORT, address_of, remark

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from prefixbank.model_store.address import Address
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.trainer.recipe import Recipe
    from prefixbank.trainer.run import Trained

INTERRUPTED = 130

SeedOption = Annotated[int | None, typer.Option(help="Another seed than the recipe's.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value of a field, as in prompt.length=64."),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Stop at the first bad row, which else is left out and counted.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
PublishOption = Annotated[
    str | None,
    typer.Option(
        metavar="TENANT/TASK",
        help="Publish the artifact in the store. Several artifacts: TENANT alone, each under its own name.",
    ),
]
StoreOption = Annotated[
    Path, typer.Option(envvar="PREFIXBANK_STORE", help="The store's folder, for --publish.", show_default="store")
]
PromoteOption = Annotated[bool, typer.Option("--promote", help="Serve what --publish published: make it live.")]


class Publication(NamedTuple):
    """Where artifacts go when they are trained; empty where they stay."""

    addresses: dict[str, Address]
    """By the name of the artifact."""
    store: Path
    promote: bool

    def publish(self, name: str, folder: Path) -> None:
        """Publish an artifact, and promote it where that was asked for."""
        from prefixbank.model_store.store import PromptStore

        if name not in self.addresses:
            return
        address, prompts = self.addresses[name], PromptStore(self.store)
        revision = prompts.publish(address, folder)
        remark(f"published {address} {revision[:SHORT]} in {self.store}")
        if self.promote:
            prompts.promote(address, revision)
            remark(f"{address}: live is {revision[:SHORT]}")


class Asked(NamedTuple):
    """What --publish, --store and --promote say."""

    publish: str | None
    """`tenant/task` for one artifact, a tenant alone for several."""
    store: Path
    promote: bool

    def for_artifacts(self, names: Sequence[str], recipes: Sequence[Recipe]) -> Publication:
        """The artifacts' addresses, validated before anything is trained."""
        from prefixbank.model_store.errors import TrainingError

        if self.promote and self.publish is None:
            raise TrainingError("--promote: found no --publish, wanted one: only what is published can be served")
        if self.publish is not None and any(recipe.method == "full" for recipe in recipes):
            wanted = 'wanted "prompt" or "head": fine-tuning makes no artifact'
            raise TrainingError(f'--publish: found method "full", {wanted}')
        if self.publish is not None and self.store.exists() and not self.store.is_dir():
            raise TrainingError(f"--store: found a file at {self.store}, wanted a folder, or none yet")
        addresses = {} if self.publish is None else _addresses(self.publish, names)
        return Publication(addresses, self.store, self.promote)


def _addresses(asked: str, names: Sequence[str]) -> dict[str, Address]:
    from prefixbank.model_store.address import Address
    from prefixbank.model_store.errors import TrainingError

    if len(names) == 1:
        return {names[0]: address_of(asked)}
    if "/" in asked:
        wanted = ", ".join(f"{asked.partition('/')[0]}/{name}" for name in names)
        raise TrainingError(f"--publish: found {asked}, wanted a tenant alone, for {wanted}")
    if len(set(names)) != len(names):
        raise TrainingError(f"--publish: found several artifacts of one name among {', '.join(names)}, wanted one each")
    return {name: Address(asked, name) for name in names}


def served_logits(prompt: TaskPrompt, rows: Sequence[Features], backbone: Backbone) -> Sequence[NDArray[np.float32]]:
    """What the serving engine computes for rows of a prompt that is in no store."""
    from prefixbank.serving.predict import Predictor

    with Predictor(backbone, {}) as predictor:
        return predictor.logits(prompt, rows)


def need_serving() -> None:
    """Refuse before training what could not be checked after it."""
    from prefixbank.model_store.errors import TrainingError

    try:
        import prefixbank.serving.predict  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise TrainingError(
            f"the check by the serving engine lacks {error.name}: pip install prefixbank[train]"
        ) from error


def need_sweeps() -> None:
    """Refuse what chooses settings by itself where the library for it is not installed."""
    from prefixbank.model_store.errors import TrainingError

    try:
        import optuna  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise TrainingError(f"choosing settings lacks {error.name}: pip install prefixbank[train]") from error


def log_to_stderr(*, always: bool = False) -> None:
    """What happens as lines, where there is no bar or table."""
    if always or not sys.stderr.isatty():
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logging.getLogger("prefixbank.trainer").setLevel(logging.INFO)


@contextmanager
def interruptible() -> Iterator[None]:
    """An interruption that left all on disk ends with the exit code of Ctrl-C."""
    from prefixbank.model_store.errors import TrainingInterrupted

    try:
        yield
    except TrainingInterrupted as stop:
        remark(f"prefixbank: {stop}")
        raise typer.Exit(INTERRUPTED) from stop


def summarise(trained: Trained) -> None:
    """What a run reached, for each of its data sets."""
    for name, report in trained.reports.items():
        _summarise(report, f"{name}: " if name else "")


def _summarise(report: dict[str, Any], head: str) -> None:
    split, metric = report["reported_split"], report["selection"]["metric"]
    interval = report["confidence"]["intervals"][split].get(metric)
    doubt = "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"
    reached = f"{split} {metric} {report['metrics'][split][metric]:.4f}{doubt}"
    remark(f"{head}{reached}, epoch {report['selection']['epoch']}")
    seconds, share = report["train_seconds"], report["trained_share"]
    remark(
        f"{head}{report['trained_parameters']:,} trained parameters ({share:.2%} of the backbone) in {seconds:.0f} s"
    )
    check = report.get("serving_check")
    if check is not None:
        remark(f"{head}served: {metric} {check['served']:.4f}, logits {check['logit_distance']:.1e} apart")
