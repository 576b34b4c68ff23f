"""Multiple choice: a row per choice of a premise, cross entropy over the choices, scored by accuracy.

It refuses to know recipes and how logits are computed.

Shape letters: E premises, N choices of the premise with the most, K rows of all premises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.multiple_choice import LABELS, Choices, MultipleChoice, choice_scores
from prefixbank.trainer.families.confidence import Confidence, with_calibration
from prefixbank.trainer.families.encoding import RowEncoder
from prefixbank.trainer.families.family import Item, Scores, mean_loss
from prefixbank.trainer.families.mistakes import Mark, Mistake, worst
from prefixbank.trainer.metrics.bootstrap import mean_interval
from prefixbank.trainer.readers.examples import ChoicesExample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenizers import Tokenizer
    from torch import Tensor

    from prefixbank.trainer.families.family import Logits
    from prefixbank.trainer.readers.examples import Example


@dataclass(frozen=True, slots=True)
class ChoiceAnswers:
    """Premises to the choice that follows."""

    max_tokens: int
    text_fields: tuple[str, ...] = ("premise", "choice1", "choice2")
    metric: str = "accuracy"
    num_mistakes: int = 0

    @property
    def task(self) -> MultipleChoice:
        return MultipleChoice()

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("loss", "accuracy")

    def labels(self, examples: Sequence[Example], fixed: tuple[str, ...] | None) -> tuple[str, ...]:
        return LABELS

    def preprocessing(self, labels: Sequence[str]) -> Preprocessing:
        return Preprocessing(max_tokens=self.max_tokens, pair=True, text_fields=self.text_fields)

    def items(
        self,
        examples: Sequence[Example],
        labels: Sequence[str],
        tokenizer: Tokenizer,
        prep: Preprocessing,
        *,
        training: bool,
    ) -> list[Item]:
        encoder = RowEncoder(self.task, tokenizer, prep)
        items = []
        for example in map(_premise, examples):
            rows = encoder.rows(Choices(example.premise, example.choices, example.connector), example.where)
            items.append(Item(rows, np.array([example.right]), example))
        return items

    def loss(self, logits_KC: Tensor, items: Sequence[Item]) -> Tensor:
        by_item = torch.split(logits_KC[:, 0], [len(item.rows) for item in items])
        logits_EN = pad_sequence(list(by_item), batch_first=True, padding_value=float("-inf"))
        targets_E = torch.from_numpy(np.concatenate([item.targets for item in items])).to(logits_KC.device)
        return cross_entropy(logits_EN, targets_E)

    def tuned(self, logits: Logits, items: Sequence[Item]) -> Self:
        return self

    def score(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        return Scores({"loss": mean_loss(self, logits, items), "accuracy": float(np.mean(_right(logits, items)))})

    def score_in_full(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        right = _right(logits, items)
        confidence = Confidence([float(choice_scores(rows).max()) for rows in logits], right)
        details = {"mistakes": worst(_mistakes(logits, items), self.num_mistakes)}
        plain = self.score(logits, items, labels).metrics
        return with_calibration(Scores(plain, {"accuracy": mean_interval(right)}, details), confidence)

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        found = np.bincount(np.array([item.targets[0] for item in items], dtype=np.int64))
        return {f"choice {number}": count for number, count in enumerate(found.tolist(), 1)}


def _premise(example: Example) -> ChoicesExample:
    assert isinstance(example, ChoicesExample), "an example of another family. This is a bug."
    return example


def _right(logits: Logits, items: Sequence[Item]) -> list[bool]:
    return [
        int(np.concatenate(rows).argmax()) == int(item.targets[0]) for rows, item in zip(logits, items, strict=True)
    ]


def _mistakes(logits: Logits, items: Sequence[Item]) -> Iterator[Mistake]:
    """The surer a wrong choice, the worse."""
    for rows, item in zip(logits, items, strict=True):
        scores, example = choice_scores(rows), _premise(item.example)
        found, right = int(scores.argmax()), example.right
        if found != right:
            texts = (f"{example.premise} {example.connector}".strip(), *example.choices)
            marks = (
                Mark(1 + right, 0, len(example.choices[right]), "expected"),
                Mark(1 + found, 0, len(example.choices[found]), "found"),
            )
            sure = float(scores[found])
            yield Mistake(sure, example.where, texts, example.choices[right], example.choices[found], sure, marks)
