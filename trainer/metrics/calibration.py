"""Expected calibration error: how far the confidence of answers lies from the share of them that is right.

Guo et al., 2017, "On Calibration of Modern Neural Networks", equation 3: answers are sorted by confidence into M bins
of equal width, ((m - 1) / M, m / M]; the error is the mean of |accuracy - confidence| over bins, by their size.
It refuses to know logits and labels.

Shape letters: R rows, M bins, B bootstrap samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prefixbank.trainer.metrics.bootstrap import interval

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
    confidence_R: Sequence[float], correct_R: Sequence[bool], num_bins: int = NUM_BINS, seed: int = 0
) -> list[float]:
    """Its interval by bootstrap. The error of a finite sample is biased upwards, and so is the interval."""
    gaps_RM = _gaps(confidence_R, correct_R, num_bins)
    return interval(gaps_RM, lambda sums_BM: np.abs(sums_BM).sum(-1) / len(gaps_RM), seed)


def _gaps(confidence_R: Sequence[float], correct_R: Sequence[bool], num_bins: int) -> NDArray[np.float64]:
    """Each row's truth minus confidence, in the column of its bin: [R, M]. A bin's sum is its size times its gap."""
    confidence = np.asarray(confidence_R, dtype=np.float64)
    upper_M = np.linspace(0, 1, num_bins + 1)[1:-1]
    bins = np.digitize(confidence, upper_M, right=True)
    gaps_RM = np.zeros((len(confidence), num_bins))
    gaps_RM[np.arange(len(confidence)), bins] = np.asarray(correct_R, dtype=np.float64) - confidence
    return gaps_RM
