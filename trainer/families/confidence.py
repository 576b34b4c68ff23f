"""Confidence of answers beside whether they are right: what a report shows of calibration.

It refuses to know what was answered.

Shape letters: R answers.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from prefixbank.trainer.families.family import Scores
from prefixbank.trainer.metrics.calibration import calibration_error, calibration_interval, reliability

if TYPE_CHECKING:
    from collections.abc import Sequence


class Confidence(NamedTuple):
    """Of the answers of a split, in order."""

    confidence_R: Sequence[float]
    """In [0, 1]."""
    correct_R: Sequence[bool]
    groups_R: Sequence[object] | None = None
    """What each answer was drawn with; None where each was drawn by itself."""


def with_calibration(scores: Scores, found: Confidence) -> Scores:
    """Scores with the expected calibration error, its interval and its bins; unchanged where nothing was answered."""
    if not found.confidence_R:
        return scores
    error = calibration_error(found.confidence_R, found.correct_R)
    ends = calibration_interval(found.confidence_R, found.correct_R, groups_R=found.groups_R)
    bins = [asdict(one) for one in reliability(found.confidence_R, found.correct_R)]
    return Scores(
        {**scores.metrics, "ece": error},
        {**scores.intervals, "ece": ends},
        {**scores.details, "calibration": {"ece": error, "bins": bins}},
    )
