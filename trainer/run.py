"""One run from recipe to artifacts and report: prepare, build, train, evaluate, fold, check against the server.

It composes the other modules. It refuses to know serving (the check is handed in), stores and publishing.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from prefixbank.model_store import artifact
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import TrainingError, UnexpectedFile
from prefixbank.trainer import checkpoint, report
from prefixbank.trainer.build import build, precision_of
from prefixbank.trainer.loop import Loop
from prefixbank.trainer.outcome import check_serving, conclude, fold, round_prompt
from prefixbank.trainer.prepare import prepare
from prefixbank.trainer.progress import LogDisplay

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.trainer.outcome import Outcome, Verify
    from prefixbank.trainer.pack import Pack
    from prefixbank.trainer.prepare import Prepared, PreparedPart
    from prefixbank.trainer.progress import Display
    from prefixbank.trainer.recipe import Recipe
    from prefixbank.trainer.trial import Part, Trial

logger = logging.getLogger(__name__)

ARTIFACT_FOLDER = "artifact"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run made of each of its data sets; a single one is called ""."""

    reports: dict[str, dict[str, Any]]
    prompts: dict[str, TaskPrompt] = field(default_factory=dict)
    """Empty after full fine-tuning."""
    folders: dict[str, Path] = field(default_factory=dict)
    """The artifacts."""

    @property
    def report(self) -> dict[str, Any]:
        """Of the one data set, or the first."""
        return next(iter(self.reports.values()))

    @property
    def prompt(self) -> TaskPrompt | None:
        return next(iter(self.prompts.values()), None)

    @property
    def folder(self) -> Path | None:
        return next(iter(self.folders.values()), None)


def train(
    recipe: Recipe,
    out: Path,
    *,
    root: Path,
    backbone: Backbone | None = None,
    device: torch.device | str = "cpu",
    verify: Verify | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> Trained:
    """Run a recipe whose paths are relative to `root`; write artifact and report under `out`, or under `out/NAME`.

    Args:
        backbone: already loaded; by default the recipe's, on `device`.
        verify: asks the serving engine for its logits. Without it the report says that nobody did.
        resume: continue from the checkpoint in `out`.

    Raises:
        InvalidData, TrainingError, BackboneError: the run cannot begin, or cannot go on.
        TrainingInterrupted: Ctrl-C or SIGTERM; `resume` continues.
        ServingMismatch: the served logits differ from the trained ones; nothing of this run is written.
    """
    backbone = backbone or backbone_for(recipe, torch.device(device))
    prepared = prepare(recipe, root, backbone)
    out.mkdir(parents=True, exist_ok=True)
    trial, pack = build(recipe, backbone, prepared, root=root, folder=out, display=display or LogDisplay())
    if resume:
        trial.resume()
    elif checkpoint.is_in(out):
        raise TrainingError(f"{out}: found an unfinished run, wanted --resume to go on with it, or another --out")
    else:
        trial.save()  # a folder that cannot be written is found out before any work
    with trial.display:
        [_] = Loop(pack).run([trial])
    if trial.state.failure:
        checkpoint.remove(out)
        raise TrainingError(trial.state.failure)
    trained = finish(pack, trial, prepared, out, verify)
    checkpoint.remove(out)
    return trained


def backbone_for(recipe: Recipe, device: torch.device) -> Backbone:
    """The recipe's backbone in the recipe's arithmetic.

    Raises:
        BackboneError: it cannot be loaded.
    """
    dtype = torch.float32 if recipe.method == "full" else precision_of(recipe, device)
    return load_backbone(recipe.backbone, dtype=dtype, device=device)


def finish(pack: Pack, trial: Trial, prepared: Prepared, out: Path, verify: Verify | None) -> Trained:
    """Evaluate what will be stored, have the server asked, and write artifact and report of every data set.

    Raises:
        ServingMismatch: the served logits of one differ from the trained ones; nothing of any is written.
        TrainingError: they cannot be written; the checkpoint is still there.
    """
    round_prompt(trial)
    trained = Trained({})
    for part in trial.parts:
        data = prepared.parts[part.name]
        outcome = conclude(pack, trial, part, data)
        found = trained.reports[part.name] = _report(pack, trial, part, data, outcome)
        if trial.recipe.method != "full":
            prompt = trained.prompts[part.name] = fold(trial, part, outcome, pack.backbone)
            found["serving_check"] = verify and check_serving(prompt, part, data, outcome, pack.backbone, verify)
    for name, found in trained.reports.items():
        folder = out / name
        with _written(trial, folder):
            if name in trained.prompts:
                trained.folders[name] = folder / ARTIFACT_FOLDER
                found["revision"] = artifact.write(trained.prompts[name], trained.folders[name])
            folder.mkdir(parents=True, exist_ok=True)
            report.write(found, folder)
    return trained


@contextmanager
def _written(trial: Trial, folder: Path) -> Iterator[None]:
    """Say of what cannot be written where that is, and how the run goes on."""
    remedy = "" if trial.folder is None else f": {trial.folder} holds the run, --resume continues"
    try:
        yield
    except UnexpectedFile as error:
        raise TrainingError(f"{error}{remedy}") from error
    except OSError as error:
        problem = f"{error.filename or folder}: found no way to write artifact and report ({error.strerror or error})"
        raise TrainingError(f"{problem}{remedy}") from error


def _report(pack: Pack, trial: Trial, part: Part, data: PreparedPart, outcome: Outcome) -> dict[str, Any]:
    family = outcome.family
    return report.compose(
        trial,
        pack,
        metric=family.metric,
        splits={name: report.summarise(family, items, part.labels) for name, items in data.items.items() if items},
        scores=outcome.scores,
        reported=data.reported,
        data=data.files,
        skipped=data.skipped,
    )
