"""Exact match and F1 of extracted answers, equal to the official scripts of SQuAD 1.1 and 2.0.

Sources: Rajpurkar et al., 2016 (`evaluate-v1.1.py`) and 2018 (`evaluate-v2.0.py`). Texts are compared in lower case,
without punctuation and English articles; F1 is that of the bags of words, the best over the true answers. The two
scripts differ where nothing is left of a text: 1.1 gives F1 0, 2.0 gives 1 when both are empty; 2.0 also drops true
answers of which nothing is left. The scripts print shares of a hundred; these are shares of one.
It refuses to know logits, windows and files.

Shape letters: Q questions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Judged(NamedTuple):
    """One prediction's scores, each from 0 to 1."""

    exact: float
    f1: float


class BestThreshold(NamedTuple):
    """The highest mean score that refusing to answer can reach."""

    score: float
    threshold: float
    """Questions whose no-answer score lies above it are best left unanswered."""


def normalise(text: str) -> str:
    """Lower case, then without punctuation, then without articles, with single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def judge_v1(prediction: str, answers: Sequence[str]) -> Judged:
    """Scores of a prediction as SQuAD 1.1 counts them: every question has an answer."""
    return _best(prediction, answers, f1_of_nothing=0.0)


def judge_v2(prediction: str, answers: Sequence[str]) -> Judged:
    """Scores as SQuAD 2.0 counts them: no true answer means that only the empty prediction is right."""
    return _best(prediction, [text for text in answers if normalise(text)] or [""], f1_of_nothing=1.0)


def summary_v2(judged_Q: Sequence[Judged], has_answer_Q: Sequence[bool]) -> dict[str, float]:
    """Means over all questions, and over those with and without an answer where there are any."""
    parts = {"": [True] * len(judged_Q), "has_answer_": has_answer_Q, "no_answer_": [not has for has in has_answer_Q]}
    means: dict[str, float] = {}
    for prefix, counted in parts.items():
        chosen = [judged for judged, counts in zip(judged_Q, counted, strict=True) if counts]
        if chosen:
            exact, f1 = np.mean(chosen, axis=0)
            means |= {f"{prefix}exact": float(exact), f"{prefix}f1": float(f1)}
    return means


def refused(judged: Judged, *, has_answer: bool) -> Judged:
    """The scores of a question after its prediction was withdrawn."""
    return judged._replace(exact=float(not has_answer), f1=float(not has_answer))


def best_threshold(
    score_Q: Sequence[float],
    no_answer_Q: Sequence[float],
    has_answer_Q: Sequence[bool],
    predicted_Q: Sequence[str],
    answer_nothing: float = 0.0,
) -> BestThreshold:
    """The no-answer threshold that is best on these questions, by the official sweep.

    It starts from refusing every question and answers them one by one, the surest first. As in the script, questions
    with equal no-answer scores are let in one by one too, though no threshold separates them.

    Args:
        score_Q: exact match or F1 of the prediction, before any refusal.
        no_answer_Q: how sure the model is that there is no answer: a probability, or a difference of logits.
        has_answer_Q: whether there is one.
        predicted_Q: the text predicted.
        answer_nothing: the threshold to name when refusing every question is best: the script's 0 for probabilities.
    """
    order = np.argsort(no_answer_Q, kind="stable")
    empty_Q = np.array([not text for text in predicted_Q])
    gain_Q = np.where(has_answer_Q, score_Q, np.where(empty_Q, 0.0, -1.0))[order]
    nothing = float(np.sum(~np.asarray(has_answer_Q, dtype=bool)))
    reached = np.cumsum([nothing, *gain_Q])
    best = int(reached.argmax())
    threshold = answer_nothing if best == 0 else float(no_answer_Q[order[best - 1]])
    return BestThreshold(float(reached[best]) / len(score_Q), threshold)


def tuned_null_threshold(
    predicted_Q: Sequence[str], null_difference_Q: Sequence[float], answers_Q: Sequence[Sequence[str]]
) -> BestThreshold:
    """The difference of logits above which the null answer is best given, by F1. Tune it on validation rows only.

    The script names the difference of the last question that is answered. Half way to the next one answers the same
    questions, and none of them hangs on the last bits of a logit.

    Args:
        predicted_Q: the best span's text of each question, the null answer left aside.
        null_difference_Q: `Found.null_difference` of each.
        answers_Q: the true answers of each.
    """
    scores = [judge_v2(text, answers).f1 for text, answers in zip(predicted_Q, answers_Q, strict=True)]
    below_all = min((found for found in null_difference_Q if np.isfinite(found)), default=0.0) - 1
    best = best_threshold(scores, null_difference_Q, [bool(answers) for answers in answers_Q], predicted_Q, below_all)
    above = min((found for found in null_difference_Q if best.threshold < found < np.inf), default=best.threshold + 2)
    return best._replace(threshold=(best.threshold + above) / 2)


def _best(prediction: str, answers: Sequence[str], f1_of_nothing: float) -> Judged:
    found = normalise(prediction)
    wanted = [normalise(answer) for answer in answers]
    return Judged(float(found in wanted), max(_f1(found.split(), one.split(), f1_of_nothing) for one in wanted))


def _f1(found: list[str], wanted: list[str], of_nothing: float) -> float:
    if not found or not wanted:
        return of_nothing * (found == wanted)
    same = (Counter(found) & Counter(wanted)).total()
    precision, recall = same / len(found), same / len(wanted)
    return 2 * precision * recall / (precision + recall) if same else 0.0
