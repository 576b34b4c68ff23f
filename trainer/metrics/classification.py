"""Accuracy, F1 and Matthews' correlation of a confusion matrix.

They equal scikit-learn's. GLUE and SuperGLUE score with these (Wang et al., 2018 and 2019): accuracy for
SST-2, MNLI, RTE and BoolQ, accuracy and macro-F1 for CB, binary F1 for MRPC and QQP, Matthews for CoLA.
It refuses to know logits, label names and files.

Shape letters: C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def confusion(gold: Sequence[int], predicted: Sequence[int], num_classes: int) -> NDArray[np.int64]:
    """Rows by true class, then predicted class: [C, C]."""
    cells = np.asarray(gold) * num_classes + np.asarray(predicted)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def accuracy(confusion_CC: NDArray[np.int64]) -> float:
    """Share of the rows that are right."""
    total = confusion_CC.sum()
    return float(np.trace(confusion_CC) / total) if total else 0.0


def binary_f1(confusion_CC: NDArray[np.int64], positive: int = 1) -> float:
    """Harmonic mean of precision and recall of one class (van Rijsbergen, 1979); 0 where it never occurs."""
    return micro_f1(confusion_CC, [positive])


def macro_f1(confusion_CC: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that occur, in truth or in prediction."""
    counted_C = confusion_CC.sum(0) + confusion_CC.sum(1)
    present_C = counted_C > 0
    f1_C = 2 * confusion_CC.diagonal()[present_C] / counted_C[present_C]
    return float(f1_C.mean()) if f1_C.size else 0.0


def micro_f1(confusion_CC: NDArray[np.int64], counted: Sequence[int] | None = None) -> float:
    """F1 over the pooled counts of the `counted` classes. Over all classes it is the accuracy."""
    classes = list(range(len(confusion_CC)) if counted is None else counted)
    correct = confusion_CC.diagonal()[classes].sum()
    total = confusion_CC[classes].sum() + confusion_CC[:, classes].sum()
    return float(2 * correct / total) if total else 0.0


def matthews(confusion_CC: NDArray[np.int64]) -> float:
    """Correlation of truth and prediction for any number of classes (Gorodkin, 2004); 0 where either is constant."""
    true_C, found_C = confusion_CC.sum(1).astype(float), confusion_CC.sum(0).astype(float)
    total = true_C.sum()
    covariance = np.trace(confusion_CC) * total - true_C @ found_C
    spread = np.sqrt((total**2 - found_C @ found_C) * (total**2 - true_C @ true_C))
    return float(covariance / spread) if spread else 0.0
