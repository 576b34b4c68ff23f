"""Small recipes and rows for whole runs on tiny backbones."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prefixbank.trainer.progress import LogDisplay
from prefixbank.trainer.recipe import Recipe, parse
from prefixbank.trainer.run import Trained, train

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

WORDS = ["film", "quiet", "joy", "dull", "plot", "table", "seven", "lights", "kitchen", "weather", "music", "sky"]


def write_rows(folder: Path) -> None:
    """Sentences that are about joy or not, and names of places among words."""
    random = np.random.default_rng(0)
    texts, sentences = [], []
    for _ in range(48):
        words = random.choice(WORDS, random.integers(3, 9)).tolist()
        texts.append({"text": " ".join(words), "label": "happy" if "joy" in words or "music" in words else "plain"})
        place = random.integers(len(words))
        words[place : place + 1] = ["new", "york"]
        tags = ["B-place" if w == "new" else "I-place" if w == "york" else "O" for w in words]
        sentences.append("".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)))
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (folder / "words.conll").write_text("\n".join(sentences))


def recipe_of(family: str = "text-classification", **changes: Any) -> Recipe:
    file = "texts.jsonl" if family == "text-classification" else "words.conll"
    table: dict[str, Any] = {
        "family": family,
        "data": {"train": file, "validation": file, "test": file},
        "prompt": {"length": 6},
        "optimiser": {"epochs": 3, "batch_rows": 8},
        "dtype": "float32",
    }
    for section, fields in changes.items():
        table[section] = table[section] | fields if isinstance(fields, dict) and section in table else fields
    return parse(table)


def run(recipe: Recipe, root: Path, out: Path, backbone: Backbone, **options: Any) -> Trained:
    return train(recipe, out, root=root, backbone=backbone, **options)


def prompt_of(trained: Trained) -> TaskPrompt:
    assert trained.prompt is not None
    return trained.prompt


def same_bits(one: TaskPrompt, other: TaskPrompt) -> bool:
    tensors = [(p.kv_N2HPD, p.head.weight_CM, p.head.bias_C) for p in (one, other)]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


class Interrupter(LogDisplay):
    """Sends the signal that Ctrl-C or a scheduler sends after some step."""

    def __init__(self, after: int, number: int = signal.SIGINT) -> None:
        self.after = after
        self.number = number

    def step(self, step: int, loss: float) -> None:
        if step == self.after:
            signal.raise_signal(self.number)
