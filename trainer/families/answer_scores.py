"""Answers beside the true ones: exact match and F1 as SQuAD's scripts count, by what a question may be answered with.

It refuses to know windows and tokens.

Shape letters: Q questions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prefixbank.model_store.tasks.text_classification import softmax
from prefixbank.trainer.families.confidence import Confidence, with_calibration
from prefixbank.trainer.families.family import Scores
from prefixbank.trainer.families.mistakes import Mark, Mistake, worst
from prefixbank.trainer.metrics.bootstrap import grouped, interval
from prefixbank.trainer.metrics.squad import Judged, judge_v1, judge_v2, summary_v2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.tasks.answer_spans import Found
    from prefixbank.trainer.readers.examples import QuestionExample

NOTHING = "no answer"


class Answered(NamedTuple):
    """One question's answer."""

    text: str
    """Empty where the null answer was given."""
    span: tuple[int, int] | None
    """Characters of the context, the end excluded."""
    confidence: float
    """Probability among the n best, as the server gives it."""
    example: QuestionExample


def answered(found: Found, null_threshold: float | None, example: QuestionExample) -> Answered:
    """The answer that a threshold leaves, None where there is always one, and how sure it is."""
    choices = found.choices(null_threshold)
    chances = softmax(np.array([choice.score for choice in choices]))
    best = int(chances.argmax())
    start, end, _ = choices[best]
    return Answered(found.text[start:end], (start, end) if end else None, float(chances[best]), example)


def answer_metrics(answered_Q: Sequence[Answered]) -> dict[str, float]:
    """Exact match and F1; beside them those of questions with and without an answer, where there are both."""
    has_answer_Q = [bool(one.example.answers) for one in answered_Q]
    summary = summary_v2(_judged(answered_Q), has_answer_Q)
    return summary if not all(has_answer_Q) else {name: summary[name] for name in ("exact", "f1")}


def answer_scores(plain: dict[str, float], answered_Q: Sequence[Answered], num_mistakes: int) -> Scores:
    """The metrics given, with intervals, calibration and mistakes. Questions about one text are drawn together."""
    judged_Q = _judged(answered_Q)
    paragraphs = [one.example.paragraph for one in answered_Q]
    counts_G3 = grouped([(*judged, 1.0) for judged in judged_Q], paragraphs)
    intervals = {name: _interval(counts_G3, column) for column, name in enumerate(Judged._fields)}
    details: dict[str, Any] = {"mistakes": worst(_mistakes(answered_Q, judged_Q), num_mistakes)}
    if not all(one.example.answers for one in answered_Q):
        details["by_type"] = _by_type(answered_Q, judged_Q)
    confidence = Confidence(
        [one.confidence for one in answered_Q], [judged.exact == 1 for judged in judged_Q], paragraphs
    )
    return with_calibration(Scores(plain, intervals, details), confidence)


def _judged(answered_Q: Sequence[Answered]) -> list[Judged]:
    """By SQuAD 1.1's script where every question has an answer, else by 2.0's."""
    judge = judge_v1 if all(one.example.answers for one in answered_Q) else judge_v2
    return [judge(one.text, [answer.text for answer in one.example.answers]) for one in answered_Q]


def _interval(counts_G3: NDArray[np.float64], column: int) -> list[float]:
    """Of the mean over questions of one of their scores; the last column counts the questions."""
    return interval(counts_G3, lambda sums_B3: sums_B3[:, column] / np.maximum(sums_B3[:, -1], 1))


def _by_type(answered_Q: Sequence[Answered], judged_Q: Sequence[Judged]) -> dict[str, dict[str, float]]:
    """Scores of questions with and without an answer."""
    found = {}
    for name, has_answer in (("answer", True), (NOTHING, False)):
        chosen = [
            judged for one, judged in zip(answered_Q, judged_Q, strict=True) if bool(one.example.answers) is has_answer
        ]
        if chosen:
            exact, f1 = np.mean(chosen, axis=0)
            found[name] = {"gold": len(chosen), "exact": float(exact), "f1": float(f1)}
    return found


def _mistakes(answered_Q: Sequence[Answered], judged_Q: Sequence[Judged]) -> Iterator[Mistake]:
    """The surer an answer and the less of it is true, the worse."""
    for one, judged in zip(answered_Q, judged_Q, strict=True):
        if judged.exact == 1:
            continue
        example = one.example
        expected = " / ".join(dict.fromkeys(answer.text for answer in example.answers)) or NOTHING
        cost = one.confidence * (1 - judged.f1)
        texts = (example.question, example.context)
        yield Mistake(cost, example.where, texts, expected, one.text or NOTHING, one.confidence, tuple(_marks(one)))


def _marks(one: Answered) -> Iterator[Mark]:
    true = dict.fromkeys((answer.start, answer.end) for answer in one.example.answers)
    for start, end in true:
        yield Mark(1, start, end, "both" if (start, end) == one.span else "expected")
    if one.span is not None and one.span not in true:
        yield Mark(1, *one.span, "found")
