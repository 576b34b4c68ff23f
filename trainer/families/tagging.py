"""Tags on words: what named entities and semantic roles have in common.

A word's label is learned and read at its first token. It refuses to know which spans count how.

Shape letters: T tokens of a row, K tokens of all rows, C classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from itertools import accumulate
from statistics import fmean
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from prefixbank.model_store.errors import InvalidData
from prefixbank.model_store.tasks.semantic_roles import Argument
from prefixbank.model_store.tasks.spans import OUTSIDE, SpanScores, spans_of
from prefixbank.model_store.tasks.token_classification import NO_TARGET, word_tags
from prefixbank.trainer.families.classes import class_of, named, numbered
from prefixbank.trainer.families.confidence import Confidence
from prefixbank.trainer.families.mistakes import Mark, Mistake

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from prefixbank.trainer.families.family import Item, Logits
    from prefixbank.trainer.readers.examples import PropositionExample, WordsExample

logger = logging.getLogger(__name__)

UNSEEN_SHARE = 0.1
"""Of the tagged words of a split that may have tags which training has not: rare ones, not another set of labels."""


def tags_of(rows: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """O, then B- and I- of every kind of span that occurs."""
    kinds = {tag[2:] for tags in rows for tag in tags if tag != OUTSIDE}
    return (OUTSIDE, *(f"{mark}-{kind}" for kind in sorted(kinds) for mark in "BI"))


def tag_numbers(
    examples: Sequence[WordsExample | PropositionExample], labels: Sequence[str], *, training: bool
) -> list[list[int]]:
    """The class of each word of each example.

    Where it is evaluated, a tag that training has not seen has no class: it counts as missed, and a log line says so.

    Raises:
        InvalidData: training has such a tag, or so many are there that they look like another set of labels.
    """
    classes = numbered(labels)
    if training:
        return [[class_of(tag, classes, one.where) for tag in one.tags] for one in examples]
    unseen = [(tag, one.where) for one in examples for tag in one.tags if tag not in classes]
    num_tagged = sum(tag != OUTSIDE for one in examples for tag in one.tags)
    if unseen:
        kinds = named(sorted({tag for tag, _ in unseen}))
        found = f"{len(unseen)} of {num_tagged} tagged words have tags that training has not ({kinds})"
        if len(unseen) > UNSEEN_SHARE * num_tagged:
            raise InvalidData(f"{unseen[0][1]}: {found}, wanted those of training: {named(classes)}")
        logger.warning("%s: %s: they count as missed", unseen[0][1], found)
    return [[classes.get(tag, NO_TARGET) for tag in one.tags] for one in examples]


def word_loss(logits_KC: Tensor, items: Sequence[Item]) -> Tensor:
    """Mean cross entropy over the tokens that have a label; 0 where none has."""
    targets_K = torch.from_numpy(np.concatenate([item.targets for item in items])).to(logits_KC.device)
    summed = cross_entropy(logits_KC, targets_K, ignore_index=NO_TARGET, reduction="sum")
    return summed / (targets_K != NO_TARGET).sum().clamp(min=1)


class Tagged(NamedTuple):
    """What was found for one example's words."""

    tags: tuple[str, ...]
    """A word that was cut off counts as found outside."""
    scores: tuple[float, ...]
    """Probability of each word's tag; 0 for a word that was cut off."""


class JudgedTags(NamedTuple):
    """One example's answers beside the true ones."""

    words: tuple[str, ...]
    scores: tuple[float, ...]
    gold: tuple[Argument, ...]
    found: tuple[Argument, ...]
    where: str
    group: object
    """What it was drawn with."""
    shown: tuple[Argument, ...] = ()
    """What is given, and shown beside the answers."""


def tagged(logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> list[Tagged]:
    """The tag of each word of each example, read at its first token."""
    read = (word_tags(rows[0], item.rows[0], labels) for rows, item in zip(logits, items, strict=True))
    return [Tagged(tuple(tags), tuple(scores)) for tags, scores in read]


def span_answers(tags: Sequence[str]) -> tuple[Argument, ...]:
    """The spans of tags as answers of one part each."""
    return tuple(Argument(span.kind, ((span.start, span.end),)) for span in spans_of(tags))


def confidence_of(judged: Iterable[JudgedTags]) -> Confidence:
    """Of every answer found: the mean probability of its words' tags, and whether it is true."""
    rows = [
        (_confidence(answer, one), answer in one.gold, one.group)  #
        for one in judged
        for answer in one.found
    ]
    confidence_R, correct_R, groups_R = zip(*rows, strict=True) if rows else ((), (), ())
    return Confidence(confidence_R, correct_R, groups_R)


def tagging_mistakes(judged: Iterable[JudgedTags]) -> Iterator[Mistake]:
    """The more answers of an example are wrong or missed, the worse; then the surer."""
    for one in judged:
        wrong, missed = set(one.found) - set(one.gold), set(one.gold) - set(one.found)
        if wrong or missed:
            sure = max(_confidence(answer, one) for answer in wrong or missed)
            expected, found = (_written(answers, one.words) for answers in (one.gold, one.found))
            text = " ".join(one.words)
            cost = len(wrong | missed) + min(sure, 0.999)
            yield Mistake(cost, one.where, (text,), expected, found, sure, tuple(_marks(one)))


def tag_counts(items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
    """Words in rows by their tag."""
    targets_K = np.concatenate([item.targets for item in items]) if items else np.zeros(0, np.int64)
    found_C = np.bincount(targets_K[targets_K != NO_TARGET], minlength=len(labels))
    return dict(zip(labels, found_C.tolist(), strict=True))


def scores_by_kind(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, SpanScores]:
    """Counts of spans by their kind."""
    counts: dict[str, Counter[str]] = {}
    for gold_tags, found_tags in zip(gold, found, strict=True):
        true, predicted = set(spans_of(gold_tags)), set(spans_of(found_tags))
        for name, spans in (("gold", true), ("found", predicted), ("correct", true & predicted)):
            for span in spans:
                counts.setdefault(span.kind, Counter())[name] += 1
    return {kind: SpanScores(c["gold"], c["found"], c["correct"]) for kind, c in sorted(counts.items())}


def as_json(by_kind: Mapping[str, SpanScores]) -> dict[str, dict[str, float]]:
    """For a report."""
    return {
        kind: {"gold": s.num_gold, "precision": s.precision, "recall": s.recall, "f1": s.f1}
        for kind, s in by_kind.items()
    }


def _confidence(answer: Argument, judged: JudgedTags) -> float:
    return fmean(judged.scores[word] for start, end in answer.parts for word in range(start, end))


def _written(answers: Iterable[Argument], words: Sequence[str]) -> str:
    texts = (
        f"{answer.role}: {' ... '.join(' '.join(words[start:end]) for start, end in answer.parts)}"
        for answer in answers
    )
    return "; ".join(texts) or "nothing"


def _marks(judged: JudgedTags) -> Iterator[Mark]:
    ends = list(accumulate((len(word) + 1 for word in judged.words), initial=0))
    for answer in dict.fromkeys((*judged.gold, *judged.found, *judged.shown)):
        is_true, is_found = answer in judged.gold, answer in judged.found
        kind: Literal["expected", "found", "both"] = (
            "both" if is_true == is_found else "expected" if is_true else "found"
        )
        for start, end in answer.parts:
            yield Mark(0, ends[start], ends[end] - 1, kind, answer.role)
