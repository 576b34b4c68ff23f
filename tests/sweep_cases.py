"""A small data set, a recipe for it, and displays for tests of sweeps. This file refuses to know pytest."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from prefixbank.trainer.recipe import Recipe, parse
from prefixbank.trainer.sweep import Job, sweep

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.sweep import Result
    from prefixbank.trainer.trial import Epoch

WORDS = ["film", "quiet", "joy", "dull", "plot", "table", "seven", "lights", "kitchen", "weather", "music", "sky"]
SPACE: dict[str, Any] = {
    "prompt.length": [2, 4, 8],
    "optimiser.prompt_rate": {"low": 1e-3, "high": 1e-1, "log": True},
}


def write_texts(folder: Path, rows: int = 48) -> Path:
    """Sentences that are about joy or not."""
    random = np.random.default_rng(0)
    texts = []
    for _ in range(rows):
        words = random.choice(WORDS, random.integers(3, 9)).tolist()
        texts.append({"text": " ".join(words), "label": "happy" if "joy" in words or "music" in words else "plain"})
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return path


def recipe_of(**changes: Any) -> Recipe:
    """Three epochs of six steps, swept over length and rate."""
    table: dict[str, Any] = {
        "family": "text-classification",
        "data": {"train": "texts.jsonl", "validation": "texts.jsonl", "test": "texts.jsonl"},
        "prompt": {"length": 4},
        "optimiser": {"epochs": 3, "batch_rows": 8},
        "sweep": {"space": SPACE, "trials": 5, "together": 3, "seeds": 2},
        "dtype": "float32",
    }
    for section, fields in changes.items():
        table[section] = table[section] | fields if isinstance(fields, dict) and section in table else fields
    return parse(table)


class Quiet:
    """A sweep's display that shows nothing, and counts what it is told.

    Args:
        interrupt_after: epochs of all trials after which the process gets SIGTERM.
    """

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.interrupt_after = interrupt_after
        self.epochs = 0
        self.ends: dict[int, tuple[str, float | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, num_trials: int | None) -> None:
        pass

    def trial(self, number: int, settings: Mapping[str, Any], state: str) -> None:
        pass

    def epoch(self, number: int, epoch: Epoch, metric: str, best: float) -> None:
        self.epochs += 1
        if self.epochs == self.interrupt_after:
            signal.raise_signal(signal.SIGTERM)

    def end(self, number: int, state: str, score: float | None) -> None:
        self.ends[number] = (state, score)


def swept(recipe: Recipe, root: Path, out: Path, backbone: Backbone, **options: Any) -> Result:
    """The sweep of one recipe."""
    assert recipe.sweep is not None
    quiet = options.pop("display", None) or Quiet()
    job = Job("texts", recipe, root, out, recipe.sweep.trials)
    [result] = sweep([job], backbone, show=lambda _: quiet, **options)
    return result
