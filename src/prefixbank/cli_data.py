"""`prefixbank train --data`: rows and a time instead of a recipe.

It refuses to know how columns are guessed, how time is planned and how settings are found.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prefixbank import cli_training as training
from prefixbank.cli_common import remark
from prefixbank.cli_sweep import conclude, display_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefixbank.cli_common import FamilyName

BUDGET = "5m"
PLAIN_STEMS = ("train", "training", "data", "dev")
"""File names that say nothing: the folder's name is taken then."""


class Without(NamedTuple):
    """Options that take the place of a recipe."""

    data: Path | None
    family: FamilyName | None
    validation: Path | None
    test: Path | None
    backbone: str | None
    budget: str | None

    def check(self, recipe: Path | None, tensorboard: bool) -> bool:
        """Whether there is no recipe; refuses both and neither."""
        from prefixbank.model_store.errors import TrainingError

        if recipe is None and self.data is None:
            raise TrainingError("found neither a recipe nor --data, wanted one of them")
        given = [f"--{name}" for name, value in self._asdict().items() if value is not None]
        if recipe is not None and given:
            hint = "--set changes a recipe, and prefixbank sweep RECIPE --budget searches around it"
            raise TrainingError(f"found {' '.join(given)} beside a recipe, wanted one of them: {hint}")
        if recipe is None and tensorboard:
            raise TrainingError("--tensorboard: found it beside --data, wanted it beside the recipe that was found")
        return recipe is None


def train_within(
    without: Without,
    began: float,
    overrides: Sequence[str],
    out: Path | None,
    asked: training.Asked,
    *,
    resume: bool,
    strict: bool,
    device: str,
) -> None:
    """Guess, plan, search, and conclude as a sweep does.

    Args:
        began: when the time began to run, on the monotonic clock.
    """
    from prefixbank.model_store.backbones.devices import device_named
    from prefixbank.model_store.task_prompt import TaskFamily
    from prefixbank.trainer import defaults
    from prefixbank.trainer.run import backbone_for
    from prefixbank.trainer.sweep import Job, TimeLimit, seconds_of, sweep

    training.need_sweeps()
    assert without.data is not None, "checked before. This is a bug."
    limit = TimeLimit(seconds_of(without.budget or BUDGET), began)
    folder = out or Path("runs") / _name(without.data)
    said = [*overrides, *(["data.tolerance=0"] if strict else [])]
    family = TaskFamily(without.family) if without.family else None
    request = defaults.Request(
        without.data, without.validation, without.test, family, without.backbone or "minilm", said
    )
    training.log_to_stderr()
    choice = defaults.resumed(folder, limit) if resume else None
    recipe = defaults.begin(request, folder) if choice is None else choice.recipe
    publication = asked.for_artifacts([folder.name], [recipe])
    backbone = backbone_for(recipe, device_named(device))
    choice = choice or defaults.choose(request, recipe, folder, backbone, limit)
    for line in choice.remarks:
        remark(line)
    assert choice.recipe.sweep is not None, "a choice has a search. This is a bug."
    job = Job(folder.name, choice.recipe, folder, folder, choice.recipe.sweep.trials, defaults.RECIPE_FILE)
    with training.interruptible():
        [result] = sweep(
            [job],
            backbone,
            show=display_for(1),
            limit=choice.limit,
            resume=resume,
            verify=training.served_logits,
            speed=choice.speed,
        )
    conclude(job, result, publication)


def _name(path: Path) -> str:
    """Of the folder of results: the file's, or its folder's where that says more."""
    stem = path.stem
    return path.resolve().parent.name if stem.lower() in PLAIN_STEMS else stem
