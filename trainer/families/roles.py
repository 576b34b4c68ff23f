"""Semantic roles: a row per predicate, tags of its arguments' words, scored by arguments as srl-eval counts them.

`span_f1` is the score of P-tuning v2's published numbers: seqeval's, which counts the verb and every piece.
It refuses to know recipes and how logits are computed.

Shape letters: K tokens of all rows, C tags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from prefixbank.model_store.task_prompt import Preprocessing, RolesSpec
from prefixbank.model_store.tasks.semantic_roles import VERB, Argument, Predicates, SemanticRoles, arguments_of
from prefixbank.model_store.tasks.spans import SpanScores, span_scores
from prefixbank.model_store.tasks.token_classification import first_token_targets
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
    tag_counts,
    tag_numbers,
    tagged,
    tagging_mistakes,
    tags_of,
    word_loss,
)
from prefixbank.trainer.metrics.bootstrap import grouped, span_interval
from prefixbank.trainer.metrics.roles import role_scores, scores_by_role, total_scores
from prefixbank.trainer.readers.examples import PropositionExample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from torch import Tensor

    from prefixbank.trainer.families.family import Logits
    from prefixbank.trainer.readers.examples import Example


@dataclass(frozen=True, slots=True)
class Roles:
    """The words of a sentence and one of its predicates to IOB2 tags of its arguments."""

    max_tokens: int
    metric: str = "role_f1"
    separator: str = "[SEP]"
    num_mistakes: int = 0

    @property
    def task(self) -> SemanticRoles:
        return SemanticRoles(self.separator)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("loss", "role_f1", "precision", "recall", "span_f1")

    def labels(self, examples: Sequence[Example], fixed: tuple[str, ...] | None) -> tuple[str, ...]:
        return two_or_more(fixed or tags_of(_proposition(example).tags for example in examples))

    def preprocessing(self, labels: Sequence[str]) -> Preprocessing:
        spec = RolesSpec(separator=self.separator)
        return Preprocessing(
            max_tokens=self.max_tokens,
            add_prefix_space=True,
            text_fields=("words", "predicate"),
            roles=None if spec == RolesSpec() else spec,
        )

    def items(
        self,
        examples: Sequence[Example],
        labels: Sequence[str],
        tokenizer: Tokenizer,
        prep: Preprocessing,
        *,
        training: bool,
    ) -> list[Item]:
        encoder, own = RowEncoder(self.task, tokenizer, prep), list(map(_proposition, examples))
        items = []
        for example, numbers in zip(own, tag_numbers(own, labels, training=training), strict=True):
            (row,) = encoder.rows(Predicates(example.words, (example.predicate,)), example.where)
            item = Item((row,), first_token_targets(row, numbers), example)
            items.append(to_learn_from(item) if training else item)
        return items

    def loss(self, logits_KC: Tensor, items: Sequence[Item]) -> Tensor:
        return word_loss(logits_KC, items)

    def tuned(self, logits: Logits, items: Sequence[Item]) -> Self:
        return self

    def score(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        gold, found = _gold(items), [one.tags for one in tagged(logits, items, labels)]
        total = total_scores([role_scores(g, f) for g, f in zip(gold, found, strict=True)])
        scores = {"role_f1": total.f1, "precision": total.precision, "recall": total.recall}
        return Scores({"loss": mean_loss(self, logits, items), **scores, "span_f1": span_scores(gold, found).f1})

    def score_in_full(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        gold, found = _gold(items), tagged(logits, items, labels)
        tags = [one.tags for one in found]
        judged = [_judged(_proposition(item.example), one) for item, one in zip(items, found, strict=True)]
        sentences = [_proposition(item.example).sentence for item in items]
        intervals = {
            "role_f1": _interval([role_scores(g, f) for g, f in zip(gold, tags, strict=True)], sentences),
            "span_f1": _interval([span_scores([g], [f]) for g, f in zip(gold, tags, strict=True)], sentences),
        }
        details = {
            "by_type": as_json(scores_by_role(gold, tags)),
            "mistakes": worst(tagging_mistakes(judged), self.num_mistakes),
        }
        plain = self.score(logits, items, labels).metrics
        return with_calibration(Scores(plain, intervals, details), confidence_of(judged))

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        return tag_counts(items, labels)


def _proposition(example: Example) -> PropositionExample:
    assert isinstance(example, PropositionExample), "an example of another family. This is a bug."
    return example


def _gold(items: Sequence[Item]) -> list[tuple[str, ...]]:
    return [_proposition(item.example).tags for item in items]


def _interval(scores_R: Sequence[SpanScores], sentences: Sequence[int]) -> list[float]:
    """Predicates of one sentence are drawn together."""
    return span_interval([SpanScores(*map(int, counts)) for counts in grouped(scores_R, sentences)])


def _judged(example: PropositionExample, found: Tagged) -> JudgedTags:
    gold, answers = (
        tuple(argument for argument in arguments_of(tags) if argument.role != VERB)
        for tags in (example.tags, found.tags)
    )
    verb = Argument(VERB, ((example.predicate, example.predicate + 1),))
    return JudgedTags(example.words, found.scores, gold, answers, example.where, example.sentence, (verb,))
