"""Answers of questions: a span of a text, or none.

A unit of training is one window of a text, and a window that lacks the answer teaches the null token, as published
(Devlin et al., 2019). A unit of evaluation is a question with all its windows, scored by the official scripts: SQuAD
1.1's where every question has an answer, else 2.0's, with the null answer given above a threshold that `tuned` takes
from validation rows.
It refuses to know recipes and how logits are computed.

Shape letters: W windows, T tokens of a window, K tokens of all windows, Q questions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from prefixbank.model_store.task_prompt import AnsweringSpec, Preprocessing
from prefixbank.model_store.tasks.answer_spans import Found, find_answers, span_targets
from prefixbank.model_store.tasks.features import Text
from prefixbank.model_store.tasks.question_answering import LABELS, QuestionAnswering
from prefixbank.trainer.families.answer_scores import Answered, answer_metrics, answer_scores, answered
from prefixbank.trainer.families.encoding import RowEncoder, to_learn_from
from prefixbank.trainer.families.family import Item, Scores, mean_loss
from prefixbank.trainer.metrics.squad import tuned_null_threshold
from prefixbank.trainer.readers.examples import QuestionExample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from torch import Tensor

    from prefixbank.trainer.families.family import Logits
    from prefixbank.trainer.readers.examples import Example

PUBLISHED_THRESHOLD = 0.0
"""Of the null answer, before it is tuned."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Questions and texts to the spans that answer them."""

    max_tokens: int
    spec: AnsweringSpec = field(default_factory=AnsweringSpec)
    """Its null threshold says whether a question may have no answer."""
    metric: str = "f1"
    num_mistakes: int = 0

    @property
    def task(self) -> QuestionAnswering:
        return QuestionAnswering(**self.spec.model_dump())

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("loss", "exact", "f1")

    def labels(self, examples: Sequence[Example], fixed: tuple[str, ...] | None) -> tuple[str, ...]:
        return LABELS

    def preprocessing(self, labels: Sequence[str]) -> Preprocessing:
        fields = ("question", "context")
        return Preprocessing(max_tokens=self.max_tokens, pair=True, text_fields=fields, answering=self.spec)

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
        items = [_item(example, encoder) for example in map(question_of, examples)]
        return [window for item in items for window in _windows(item)] if training else items

    def loss(self, logits_KC: Tensor, items: Sequence[Item]) -> Tensor:
        lengths = [row.num_tokens for item in items for row in item.rows]
        by_window = list(torch.split(logits_KC, lengths))
        logits_WT2 = pad_sequence(by_window, batch_first=True, padding_value=float("-inf"))
        targets_W2 = torch.from_numpy(np.concatenate([item.targets for item in items])).to(logits_KC.device)
        return cross_entropy(logits_WT2, targets_W2)

    def tuned(self, logits: Logits, items: Sequence[Item]) -> Self:
        """With the null threshold that is best for these questions, where there may be no answer."""
        if self.spec.null_threshold is None or not items:
            return self
        found = self._found(logits, items)
        questions = [question_of(item.example) for item in items]
        best = tuned_null_threshold(
            [answered(one, None, question).text for one, question in zip(found, questions, strict=True)],
            [one.null_difference for one in found],
            [[answer.text for answer in question.answers] for question in questions],
        )
        return replace(self, spec=self.spec.model_copy(update={"null_threshold": _finite(best.threshold, found)}))

    def score(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        return Scores({"loss": mean_loss(self, logits, items), **answer_metrics(self._answered(logits, items))})

    def score_in_full(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        plain = self.score(logits, items, labels).metrics
        return answer_scores(plain, self._answered(logits, items), self.num_mistakes)

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        """Units with and without an answer; of training units, windows that hold it."""
        answered = sum(bool((item.targets > 0).any()) for item in items)
        return {"answer": answered, "no answer": len(items) - answered}

    def _found(self, logits: Logits, items: Sequence[Item]) -> list[Found]:
        spec = self.spec
        return [
            find_answers(rows, item.rows, max_answer_tokens=spec.max_answer_tokens, num_best=spec.num_best)
            for rows, item in zip(logits, items, strict=True)
        ]

    def _answered(self, logits: Logits, items: Sequence[Item]) -> list[Answered]:
        threshold = self.spec.null_threshold
        return [
            answered(one, threshold, question_of(item.example))
            for one, item in zip(self._found(logits, items), items, strict=True)
        ]


def question_of(example: Example) -> QuestionExample:
    """The example, which is one of this family."""
    assert isinstance(example, QuestionExample), "an example of another family. This is a bug."
    return example


def _item(example: QuestionExample, encoder: RowEncoder) -> Item:
    rows = encoder.rows(Text(example.question, example.context), example.where)
    first = example.answers[0] if example.answers else None
    span = None if first is None else (first.start, first.end)
    return Item(rows, np.stack([span_targets(row, span) for row in rows]), example)


def _windows(item: Item) -> list[Item]:
    """A unit of training for each window."""
    pairs = zip(item.rows, item.targets, strict=True)
    return [to_learn_from(Item((row,), targets_2[None], item.example)) for row, targets_2 in pairs]


def _finite(threshold: float, found: Sequence[Found]) -> float:
    """A text without tokens prefers the null answer by infinity: an artifact holds finite numbers only."""
    if np.isfinite(threshold):
        return threshold
    return 1 + max((one.null_difference for one in found if np.isfinite(one.null_difference)), default=0.0)
