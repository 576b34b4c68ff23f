"""Classification of texts and pairs: cross entropy over labels, scored by a confusion matrix.

It refuses to know recipes and how logits are computed.

Shape letters: K rows, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.features import Text
from prefixbank.model_store.tasks.text_classification import TextClassification
from prefixbank.trainer.families import labelled
from prefixbank.trainer.families.classes import class_of, numbered, sorted_labels, two_or_more
from prefixbank.trainer.families.encoding import RowEncoder
from prefixbank.trainer.families.family import Item, Scores, mean_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from torch import Tensor

    from prefixbank.trainer.families.family import Logits
    from prefixbank.trainer.readers.examples import Example


@dataclass(frozen=True, slots=True)
class Classification:
    """Sentences and pairs to labels."""

    max_tokens: int
    text_fields: tuple[str, ...] = ("text",)
    """Input columns of the data, first text first."""
    metric: str = "accuracy"
    num_mistakes: int = 0
    """Shown in a report."""

    @property
    def task(self) -> TextClassification:
        return TextClassification()

    @property
    def metrics(self) -> tuple[str, ...]:
        return labelled.NAMES

    def labels(self, examples: Sequence[Example], fixed: tuple[str, ...] | None) -> tuple[str, ...]:
        labels = two_or_more(fixed or sorted_labels(labelled.text_of(example).label for example in examples))
        labelled.check_metric(self.metric, labels)
        return labels

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
        return text_items(examples, labels, RowEncoder(self.task, tokenizer, prep))

    def loss(self, logits_KC: Tensor, items: Sequence[Item]) -> Tensor:
        return label_loss(logits_KC, items)

    def tuned(self, logits: Logits, items: Sequence[Item]) -> Self:
        return self

    def score(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        loss = mean_loss(self, logits, items)
        return Scores({"loss": loss, **labelled.label_metrics(np.stack([rows[0] for rows in logits]), items)})

    def score_in_full(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        plain = self.score(logits, items, labels).metrics
        scores_RC = np.stack([rows[0] for rows in logits])
        return labelled.label_scores(plain, scores_RC, items, labels, self.num_mistakes)

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        return labelled.label_counts(items, labels)


def text_items(examples: Sequence[Example], labels: Sequence[str], encoder: RowEncoder) -> list[Item]:
    """A row and the number of its label for every example.

    Raises:
        InvalidData: an example has a label that is not among `labels`.
    """
    classes = numbered(labels)
    items = []
    for example in map(labelled.text_of, examples):
        target = class_of(example.label, classes, example.where)
        items.append(Item(encoder.rows(Text(*example.texts), example.where), np.array([target]), example))
    return items


def label_loss(scores_KC: Tensor, items: Sequence[Item]) -> Tensor:
    """Mean cross entropy of labels' scores, one row per example."""
    targets_K = torch.from_numpy(np.concatenate([item.targets for item in items])).to(scores_KC.device)
    return cross_entropy(scores_KC, targets_K)
