"""Expected calibration error: how far the confidence of answers lies from the share of them that is right.

Guo et al., 2017, "On Calibration of Modern Neural Networks", equation 3: answers are sorted by confidence into M bins
of equal width, ((m - 1) / M, m / M]; the error is the mean of |accuracy - confidence| over bins, by their size.
It refuses to know logits and labels.

Shape letters: R rows, M bins, B bootstrap samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prefixbank.trainer.metrics.bootstrap import grouped, interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NUM_BINS = 15
"""As in the paper's experiments."""


def calibration_error(confidence_R: Sequence[float], correct_R: Sequence[bool], num_bins: int = NUM_BINS) -> float:
    """Expected calibration error of answers with their confidence in [0, 1]."""
    summed_K = _gaps(confidence_R, correct_R, num_bins).sum(0, keepdims=True)
    return float(np.abs(summed_K).sum() / max(len(confidence_R), 1))


def calibration_interval(
    confidence_R: Sequence[float],
    correct_R: Sequence[bool],
    num_bins: int = NUM_BINS,
    seed: int = 0,
    groups_R: Sequence[object] | None = None,
) -> list[float]:
    """Its interval by bootstrap. The error of a finite sample is biased upwards, and so is the interval.

    Args:
        confidence_R: of each answer, in [0, 1].
        correct_R: whether it is right.
        num_bins: M.
        seed: of the drawing.
        groups_R: answers of one group are drawn together; unset, each by itself.
    """
    gaps_RM = _gaps(confidence_R, correct_R, num_bins)
    counts_RK = np.concatenate([gaps_RM, np.ones((len(gaps_RM), 1))], axis=1)
    counts_GK = counts_RK if groups_R is None else grouped(counts_RK, groups_R)
    return interval(counts_GK, lambda sums_BK: np.abs(sums_BK[:, :-1]).sum(-1) / np.maximum(sums_BK[:, -1], 1), seed)


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of like confidence: above `low`, up to `high`."""

    low: float
    high: float
    count: int
    confidence: float
    """Their mean confidence."""
    accuracy: float
    """The share of them that is right."""


def reliability(confidence_R: Sequence[float], correct_R: Sequence[bool], num_bins: int = NUM_BINS) -> list[Bin]:
    """The bins of a reliability diagram that hold answers, from low confidence to high."""
    confidence, correct = np.asarray(confidence_R, np.float64), np.asarray(correct_R, np.float64)
    places = _bins(confidence, num_bins)
    return [
        Bin(
            place / num_bins,
            (place + 1) / num_bins,
            int((places == place).sum()),
            float(confidence[places == place].mean()),
            float(correct[places == place].mean()),
        )
        for place in np.unique(places).tolist()
    ]


def _gaps(confidence_R: Sequence[float], correct_R: Sequence[bool], num_bins: int) -> NDArray[np.float64]:
    """Each row's truth minus confidence, in the column of its bin: [R, M]. A bin's sum is its size times its gap."""
    confidence = np.asarray(confidence_R, dtype=np.float64)
    gaps_RM = np.zeros((len(confidence), num_bins))
    truth = np.asarray(correct_R, dtype=np.float64)
    gaps_RM[np.arange(len(confidence)), _bins(confidence, num_bins)] = truth - confidence
    return gaps_RM


def _bins(confidence_R: NDArray[np.float64], num_bins: int) -> NDArray[np.int64]:
    """The bin of each answer, from 0."""
    return np.digitize(confidence_R, np.linspace(0, 1, num_bins + 1)[1:-1], right=True)
