"""Metrics from counts, and their confidence by bootstrap over rows.

Accuracy, macro-F1 and Matthews of a confusion matrix; precision, recall and F1 of spans.
It refuses to know logits, labels and files.

Shape letters: C classes, B bootstrap samples, R rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.tasks.spans import SpanScores

NUM_SAMPLES = 1000
LEVEL = 0.95


def confusion(gold: Sequence[int], predicted: Sequence[int], num_classes: int) -> NDArray[np.int64]:
    """Rows by true class, then predicted class: [C, C]."""
    cells = np.asarray(gold) * num_classes + np.asarray(predicted)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(confusion_CC: NDArray[np.int64]) -> float:
    total = confusion_CC.sum()
    return float(np.trace(confusion_CC) / total) if total else 0.0


def macro_f1(confusion_CC: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that occur, in truth or in prediction."""
    counted_C = confusion_CC.sum(0) + confusion_CC.sum(1)
    present_C = counted_C > 0
    f1_C = 2 * confusion_CC.diagonal()[present_C] / counted_C[present_C]
    return float(f1_C.mean()) if f1_C.size else 0.0


def matthews(confusion_CC: NDArray[np.int64]) -> float:
    """Correlation of truth and prediction for any number of classes; 0 where either is constant."""
    true_C, found_C = confusion_CC.sum(1).astype(float), confusion_CC.sum(0).astype(float)
    total = true_C.sum()
    covariance = np.trace(confusion_CC) * total - true_C @ found_C
    spread = np.sqrt((total**2 - found_C @ found_C) * (total**2 - true_C @ true_C))
    return float(covariance / spread) if spread else 0.0


def confusion_interval(metric: Callable[[NDArray[np.int64]], float], confusion_CC: NDArray[np.int64]) -> list[float]:
    """Bootstrap interval of a metric: drawing rows is drawing cells of their confusion matrix."""
    total = int(confusion_CC.sum())
    random = np.random.default_rng(0)
    samples = random.multinomial(total, (confusion_CC / total).ravel(), NUM_SAMPLES)
    return _interval([metric(sample.reshape(confusion_CC.shape)) for sample in samples])


def span_interval(scores_R: Sequence[SpanScores]) -> list[float]:
    """Bootstrap interval of micro-F1 over rows."""
    counts_R3 = np.array(scores_R, dtype=np.int64)
    random = np.random.default_rng(0)
    times_BR = random.multinomial(len(counts_R3), np.full(len(counts_R3), 1 / len(counts_R3)), NUM_SAMPLES)
    gold_B, found_B, correct_B = (times_BR @ counts_R3).T
    return _interval(2 * correct_B / np.maximum(gold_B + found_B, 1))


def _interval(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
