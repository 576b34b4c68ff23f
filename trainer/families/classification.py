"""Classification of texts and pairs: cross entropy over labels, scored by a confusion matrix.

It refuses to know recipes and how logits are computed.

Shape letters: R rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.features import Text, Truncation
from prefixbank.model_store.tasks.text_classification import TextClassification
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.trainer import metrics
from prefixbank.trainer.families.classes import class_of, numbered, sorted_labels, two_or_more
from prefixbank.trainer.families.family import Item, Logits, Scores, mean_loss
from prefixbank.trainer.readers.examples import Example, TextExample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor

METRICS: dict[str, Callable[[NDArray[np.int64]], float]] = {
    "accuracy": metrics.accuracy,
    "macro_f1": metrics.macro_f1,
    "matthews": metrics.matthews,
}


@dataclass(frozen=True, slots=True)
class Classification:
    """Sentences and pairs to labels."""

    max_tokens: int
    text_fields: tuple[str, ...] = ("text",)
    """Input columns of the data, first text first."""
    metric: str = "accuracy"
    task: TextClassification = field(default_factory=TextClassification)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("loss", *METRICS)

    def labels(self, examples: Sequence[Example], fixed: tuple[str, ...] | None) -> tuple[str, ...]:
        return two_or_more(fixed or sorted_labels(_text(example).label for example in examples))

    def preprocessing(self, labels: Sequence[str]) -> Preprocessing:
        pair = len(self.text_fields) == 2
        return Preprocessing(max_tokens=self.max_tokens, pair=pair, text_fields=self.text_fields)

    def items(
        self,
        examples: Sequence[Example],
        labels: Sequence[str],
        tokenizer: Tokenizer,
        prep: Preprocessing,
        *,
        training: bool,
    ) -> list[Item]:
        splitter, classes = TextTokenizer(tokenizer), numbered(labels)
        items = []
        for example in map(_text, examples):
            row = self.task.encode(
                splitter, prep, Text(*example.texts), max_tokens=prep.max_tokens, truncation=Truncation.CUT
            )
            items.append(Item((row,), np.array([class_of(example.label, classes, example.where)]), example))
        return items

    def loss(self, logits_KC: Tensor, items: Sequence[Item]) -> Tensor:
        targets_K = torch.from_numpy(np.concatenate([item.targets for item in items])).to(logits_KC.device)
        return cross_entropy(logits_KC, targets_K)

    def tuned(self, logits: Logits, items: Sequence[Item]) -> Self:
        return self

    def score(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        confusion_CC = _confusion(logits, items, len(labels))
        found = {name: metric(confusion_CC) for name, metric in METRICS.items()}
        return Scores({"loss": mean_loss(self, logits, items), **found})

    def score_in_full(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        confusion_CC = _confusion(logits, items, len(labels))
        intervals = {name: metrics.confusion_interval(metric, confusion_CC) for name, metric in METRICS.items()}
        details = {"labels": list(labels), "confusion": confusion_CC.tolist()}
        return Scores(self.score(logits, items, labels).metrics, intervals, details)

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        found_C = np.bincount([int(item.targets[0]) for item in items], minlength=len(labels))
        return dict(zip(labels, found_C.tolist(), strict=True))


def _text(example: Example) -> TextExample:
    assert isinstance(example, TextExample), "an example of another family. This is a bug."
    return example


def _confusion(logits: Logits, items: Sequence[Item], classes: int) -> NDArray[np.int64]:
    gold = [int(item.targets[0]) for item in items]
    return metrics.confusion(gold, [int(rows[0].argmax()) for rows in logits], classes)
