"""Classification of words: cross entropy at each word's first token, scored by spans as conlleval counts them.

It refuses to know recipes and how logits are computed.

Shape letters: K tokens of all rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.features import Words
from prefixbank.model_store.tasks.spans import span_scores
from prefixbank.model_store.tasks.token_classification import TokenClassification, first_token_targets
from prefixbank.trainer import metrics
from prefixbank.trainer.families.classes import two_or_more
from prefixbank.trainer.families.confidence import with_calibration
from prefixbank.trainer.families.encoding import RowEncoder, to_learn_from
from prefixbank.trainer.families.family import Item, Scores, mean_loss
from prefixbank.trainer.families.mistakes import worst
from prefixbank.trainer.families.tagging import (
    JudgedTags,
    Tagged,
    as_json,
    confidence_of,
    scores_by_kind,
    span_answers,
    tag_counts,
    tag_numbers,
    tagged,
    tagging_mistakes,
    tags_of,
    word_loss,
)
from prefixbank.trainer.readers.examples import WordsExample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from torch import Tensor

    from prefixbank.trainer.families.family import Logits
    from prefixbank.trainer.readers.examples import Example


@dataclass(frozen=True, slots=True)
class WordLabels:
    """Words to IOB2 tags."""

    max_tokens: int
    text_fields: tuple[str, ...] = ("text",)
    metric: str = "span_f1"
    num_mistakes: int = 0

    @property
    def task(self) -> TokenClassification:
        return TokenClassification()

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("loss", "span_f1", "precision", "recall")

    def labels(self, examples: Sequence[Example], fixed: tuple[str, ...] | None) -> tuple[str, ...]:
        return two_or_more(fixed or tags_of(_words(example).tags for example in examples))

    def preprocessing(self, labels: Sequence[str]) -> Preprocessing:
        return Preprocessing(max_tokens=self.max_tokens, add_prefix_space=True, text_fields=self.text_fields)

    def items(
        self,
        examples: Sequence[Example],
        labels: Sequence[str],
        tokenizer: Tokenizer,
        prep: Preprocessing,
        *,
        training: bool,
    ) -> list[Item]:
        encoder, own = RowEncoder(self.task, tokenizer, prep), list(map(_words, examples))
        items = []
        for example, numbers in zip(own, tag_numbers(own, labels, training=training), strict=True):
            (row,) = encoder.rows(Words(example.words), example.where)
            item = Item((row,), first_token_targets(row, numbers), example)
            items.append(to_learn_from(item) if training else item)
        return items

    def loss(self, logits_KC: Tensor, items: Sequence[Item]) -> Tensor:
        return word_loss(logits_KC, items)

    def tuned(self, logits: Logits, items: Sequence[Item]) -> Self:
        return self

    def score(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        total = span_scores(_gold(items), [one.tags for one in tagged(logits, items, labels)])
        found = {"span_f1": total.f1, "precision": total.precision, "recall": total.recall}
        return Scores({"loss": mean_loss(self, logits, items), **found})

    def score_in_full(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        gold, found = _gold(items), tagged(logits, items, labels)
        by_row = [span_scores([g], [f.tags]) for g, f in zip(gold, found, strict=True)]
        judged = [_judged(_words(item.example), one) for item, one in zip(items, found, strict=True)]
        details = {
            "by_type": as_json(scores_by_kind(gold, [one.tags for one in found])),
            "mistakes": worst(tagging_mistakes(judged), self.num_mistakes),
        }
        intervals = {"span_f1": metrics.span_interval(by_row)}
        plain = self.score(logits, items, labels).metrics
        return with_calibration(Scores(plain, intervals, details), confidence_of(judged))

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        return tag_counts(items, labels)


def _words(example: Example) -> WordsExample:
    assert isinstance(example, WordsExample), "an example of another family. This is a bug."
    return example


def _gold(items: Sequence[Item]) -> list[tuple[str, ...]]:
    return [_words(item.example).tags for item in items]


def _judged(example: WordsExample, found: Tagged) -> JudgedTags:
    gold, answers = span_answers(example.tags), span_answers(found.tags)
    return JudgedTags(example.words, found.scores, gold, answers, example.where, example.where)
