"""Spans of tags, and their precision, recall and F1, as conlleval counts them.

One rule reads IOB1, IOB2, IOE, IOBES and BILOU alike: a span begins at a tag that says so, or that follows an end,
an outside or another kind. It refuses to know tokens, models and files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OUTSIDE = "O"
_MARKS = {"B": "B", "I": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
"""A tag's letter, by what it means: begin, inside, end (last), single (unit)."""


class Span(NamedTuple):
    """Words `start` to `end`, the end excluded, of one kind."""

    kind: str
    start: int
    end: int


class SpanScores(NamedTuple):
    """Micro-averaged over all sentences; 0 where nothing was to be counted."""

    num_gold: int
    num_predicted: int
    num_correct: int

    @property
    def precision(self) -> float:
        """Share of the predicted spans that are right: kind, first and last word."""
        return self.num_correct / self.num_predicted if self.num_predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the true spans that were predicted."""
        return self.num_correct / self.num_gold if self.num_gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        counted = self.num_gold + self.num_predicted
        return 2 * self.num_correct / counted if counted else 0.0


def spans_of(tags: Sequence[str]) -> tuple[Span, ...]:
    """The spans of one sentence's tags, in order. A tag without a mark (`PER`) is inside its kind."""
    spans: list[Span] = []
    open_span: Span | None = None
    before = (OUTSIDE, "")
    for position, tag in enumerate(tags):
        mark, kind = _mark_and_kind(tag)
        if mark == OUTSIDE:
            open_span = None
        elif open_span is None or _begins(mark, kind, before):
            open_span = Span(kind, position, position + 1)
            spans.append(open_span)
        else:
            open_span = spans[-1] = open_span._replace(end=position + 1)
        before = (mark, kind)
    return tuple(spans)


def span_scores(gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> SpanScores:
    """Counts over sentences, given as tags of equal length in both."""
    scores = SpanScores(0, 0, 0)
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        assert len(gold_tags) == len(predicted_tags), "sentences of different length. This is a bug."
        true_spans, found_spans = set(spans_of(gold_tags)), set(spans_of(predicted_tags))
        counts = (len(true_spans), len(found_spans), len(true_spans & found_spans))
        scores = SpanScores(*(total + count for total, count in zip(scores, counts, strict=True)))
    return scores


def _begins(mark: str, kind: str, before: tuple[str, str]) -> bool:
    return mark in "BS" or before[0] in "ES" or kind != before[1]


def _mark_and_kind(tag: str) -> tuple[str, str]:
    if tag == OUTSIDE:
        return OUTSIDE, ""
    letter, separator, kind = tag.partition("-")
    if separator and letter in _MARKS:
        return _MARKS[letter], kind
    return ("I", tag) if tag not in _MARKS else (_MARKS[tag], "")
