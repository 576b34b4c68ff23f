"""A small data set, a recipe for it, and displays for tests of sweeps. This file refuses to know pytest."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import numpy as np

from prefixbank.trainer.recipe import Recipe, parse
from prefixbank.trainer.sweep import Job, sweep
from prefixbank.trainer.sweep.trial_display import Silent

if TYPE_CHECKING:
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


class Quiet(Silent):
    """Shows nothing, and counts what it is told.

    Args:
        interrupt_after: epochs of all trials after which the process gets SIGTERM.
        clock: a clock that each epoch moves on.
    """

    def __init__(self, interrupt_after: int | None = None, clock: Clock | None = None) -> None:
        self.interrupt_after = interrupt_after
        self.clock = clock
        self.epochs = 0

    def epoch(self, number: int, epoch: Epoch, metric: str, best: float) -> None:
        self.epochs += 1
        if self.clock is not None:
            self.clock.now += self.clock.epoch_s
        if self.epochs == self.interrupt_after:
            signal.raise_signal(signal.SIGTERM)


class Clock:
    """Time that passes by so many seconds an epoch."""

    def __init__(self, epoch_s: float) -> None:
        self.epoch_s = epoch_s
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def swept(recipe: Recipe, root: Path, out: Path, backbone: Backbone, **options: Any) -> Result:
    """The sweep of one recipe."""
    assert recipe.sweep is not None
    quiet = options.pop("display", None) or Quiet()
    job = Job("texts", recipe, root, out, None if "limit" in options else recipe.sweep.trials)
    [result] = sweep([job], backbone, show=lambda _: quiet, **options)
    return result
