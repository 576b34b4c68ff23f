"""Rows that benchmarks of training step over, and trials over them, put together by the trainer's own `build`.

The rows are those of a shipped recipe, SST-2's sentences or CoNLL04's, where its data set lies beside the checkout;
else random words of like lengths in files of the same form. It refuses to know what is measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from benchmarks.random_backbone import make_backbone
from prefixbank.model_store.backbones.sources import locate
from prefixbank.model_store.errors import BackboneError
from prefixbank.trainer.build import build_trial
from prefixbank.trainer.prepare import prepare
from prefixbank.trainer.progress import LogDisplay
from prefixbank.trainer.recipe import load, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.families import Item
    from prefixbank.trainer.prepare import Prepared
    from prefixbank.trainer.recipe import Recipe
    from prefixbank.trainer.trial import Trial

TaskName: TypeAlias = Literal["sst2", "conll04"]

RECIPES = Path(__file__).resolve().parent.parent / "examples" / "recipes"
VALIDATION_ROWS = 16
LOG_NORMAL: dict[TaskName, tuple[float, float]] = {"sst2": (1.86, 0.92), "conll04": (3.13, 0.77)}
"""Mean and deviation of the logarithm of a row's words, as in the training files; for where those are absent."""
WORDS = ("the", "a", "film", "joy", "dull", "plot", "weather", "in", "and", "music", "Oslo", "Maria", "was", "not")


@dataclass(frozen=True)
class Task:
    """A shipped recipe on a backbone, its rows read and tokenised."""

    recipe: Recipe
    prepared: Prepared
    backbone: Backbone
    is_real: bool
    """Whether the rows are those of the data set."""

    @property
    def items(self) -> list[Item]:
        [part] = self.prepared.parts.values()
        return part.items["train"]

    def recipe_with(self, **changes: Any) -> Recipe:
        """The recipe with other fields; a table changes those fields of its section that it names."""
        fields = self.recipe.model_dump(mode="json")
        for name, change in changes.items():
            fields[name] = fields[name] | change if isinstance(change, dict) else change
        return parse(fields)

    def trial(self, **changes: Any) -> Trial:
        """A trial of its own over the same rows."""
        recipe = self.recipe_with(**changes)
        return build_trial(recipe, self.backbone, self.prepared, root=RECIPES, folder=None, display=LogDisplay())


def read_task(name: TaskName, backbone: Backbone, folder: Path, num_rows: int, settings: Sequence[str] = ()) -> Task:
    """Read `num_rows` training rows of a shipped recipe, drawn at random.

    Args:
        folder: where files are made when the data set is absent.
        settings: what else is changed in the recipe, as `section.field=value`.
    """
    plain = load(RECIPES / f"{name}.toml")
    assert plain.data is not None
    path = RECIPES / plain.data.train.name
    is_real = path.exists()
    if not is_real:
        path = _made_up(name, folder, num_rows + VALIDATION_ROWS)
    changes = [
        f"data.train={{path = '{path}', limit = {num_rows + VALIDATION_ROWS}}}",
        f"data.carve={VALIDATION_ROWS}",
        *settings,
    ]
    recipe = _without_other_splits(load(RECIPES / f"{name}.toml", changes))
    return Task(recipe, prepare(recipe, RECIPES, backbone), backbone, is_real)


def backbone_folder(parent: Path) -> tuple[str, str]:
    """The packaged MiniLM, or one of its shape with random weights; and what it is called."""
    try:
        locate("minilm")
    except BackboneError:
        return str(make_backbone(parent, small=False)), "MiniLM's shape, random weights"
    return "minilm", "MiniLM"


def _without_other_splits(recipe: Recipe) -> Recipe:
    assert recipe.data is not None
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": None, "test": None})})


def _made_up(name: TaskName, folder: Path, num_rows: int) -> Path:
    chance = np.random.default_rng(0)
    counts = np.clip(chance.lognormal(*LOG_NORMAL[name], num_rows).round().astype(int), 1, 100)
    rows = [chance.choice(WORDS, count).tolist() for count in counts]
    labels = chance.integers(0, 2, num_rows).tolist()
    path = folder / {"sst2": "sst2.tsv", "conll04": "conll04.json"}[name]
    if name == "sst2":
        lines = [f"{' '.join(words)}\t{label}" for words, label in zip(rows, labels, strict=True)]
        path.write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    else:
        tags = (["U-Loc" if word == "Oslo" else "O" for word in words] for words in rows)
        path.write_text(json.dumps([{"tokens": w, "tags": t} for w, t in zip(rows, tags, strict=True)]))
    return path
