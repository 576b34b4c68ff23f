"""Confidence intervals by the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13), seeded.

Rows are drawn with replacement; a metric is a function of summed counts, so drawing rows is drawing how often each
counts. Rows that share a sentence or a paragraph are no independent draws: sum their counts first, `grouped` does.
It refuses to know what the counts count.

Shape letters: B bootstrap samples, R rows, K counts of a row, C classes, G groups of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from prefixbank.model_store.tasks.spans import SpanScores

    Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

NUM_SAMPLES = 1000
LEVEL = 0.95
_BLOCK = 50
"""Samples drawn at a time: the draws of 70,000 rows would otherwise take half a gigabyte."""


def interval(counts_RK: ArrayLike, statistic: Statistic, seed: int = 0) -> list[float]:
    """Low and high end of a statistic that maps summed counts [B, K] to values [B]."""
    counts = np.asarray(counts_RK, dtype=np.float64)
    shares_R = np.full(len(counts), 1 / len(counts))
    random = np.random.default_rng(seed)
    blocks = [random.multinomial(len(counts), shares_R, _BLOCK) @ counts for _ in range(NUM_SAMPLES // _BLOCK)]
    return _ends(statistic(np.concatenate(blocks)))


def grouped(counts_RK: ArrayLike, groups: Sequence[object]) -> NDArray[np.float64]:
    """Counts summed over the rows of each group, in order of first appearance: [G, K]."""
    counts = np.asarray(counts_RK, dtype=np.float64)
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    summed_GK = np.zeros((len(places), counts.shape[1]))
    np.add.at(summed_GK, [places[group] for group in groups], counts)
    return summed_GK


def confusion_interval(
    metric: Callable[[NDArray[np.int64]], float], confusion_CC: NDArray[np.int64], seed: int = 0
) -> list[float]:
    """The interval of a metric of a confusion matrix: drawing rows is drawing its cells, those that are not empty."""
    cells = np.flatnonzero(confusion_CC)
    counts = confusion_CC.ravel()[cells]
    total = int(counts.sum())
    random = np.random.default_rng(seed)
    values = []
    for _ in range(NUM_SAMPLES // _BLOCK):
        for drawn in random.multinomial(total, counts / total, _BLOCK):
            sample_CC = np.zeros_like(confusion_CC)
            sample_CC.flat[cells] = drawn
            values.append(metric(sample_CC))
    return _ends(values)


def span_interval(scores_R: Sequence[SpanScores], seed: int = 0) -> list[float]:
    """The interval of micro-F1 over rows."""
    return interval(scores_R, lambda sums_B3: 2 * sums_B3[:, 2] / np.maximum(sums_B3[:, 0] + sums_B3[:, 1], 1), seed)


def mean_interval(values_R: Sequence[float], seed: int = 0) -> list[float]:
    """The interval of a mean over rows."""
    return interval([[value] for value in values_R], lambda sums_B1: sums_B1[:, 0] / len(values_R), seed)


def _ends(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
