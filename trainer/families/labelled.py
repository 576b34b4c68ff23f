"""One label per example: the confusion matrix and what follows from it, for heads of labels and of words alike.

It refuses to know where scores come from.

Shape letters: R examples, C labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prefixbank.model_store.errors import InvalidRecipe
from prefixbank.model_store.tasks.text_classification import softmax
from prefixbank.trainer import metrics
from prefixbank.trainer.families.confidence import Confidence, with_calibration
from prefixbank.trainer.families.family import Scores
from prefixbank.trainer.families.mistakes import Mistake, worst
from prefixbank.trainer.readers.examples import TextExample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from prefixbank.trainer.families.family import Item
    from prefixbank.trainer.readers.examples import Example

    Metric = Callable[[NDArray[np.int64]], float]

NAMES = ("loss", "accuracy", "macro_f1", "f1", "matthews")
"""`f1`, that of the last label, only where there are two."""


def label_metrics(scores_RC: NDArray[np.float32], items: Sequence[Item]) -> dict[str, float]:
    """Every metric of the labels with the highest scores."""
    confusion_CC = _confusion(scores_RC, items)
    return {name: metric(confusion_CC) for name, metric in _metrics(scores_RC.shape[1]).items()}


def label_scores(
    plain: dict[str, float],
    scores_RC: NDArray[np.float32],
    items: Sequence[Item],
    labels: Sequence[str],
    num_mistakes: int,
) -> Scores:
    """The metrics given, with intervals, confusion, calibration and mistakes."""
    confusion_CC = _confusion(scores_RC, items)
    intervals = {
        name: metrics.confusion_interval(metric, confusion_CC) for name, metric in _metrics(len(labels)).items()
    }
    details = {
        "labels": list(labels),
        "confusion": confusion_CC.tolist(),
        "mistakes": worst(_mistakes(scores_RC, items, labels), num_mistakes),
    }
    confidence_R = softmax(scores_RC).max(-1).tolist()
    correct_R = (scores_RC.argmax(-1) == _gold(items)).tolist()
    return with_calibration(Scores(plain, intervals, details), Confidence(confidence_R, correct_R))


def label_counts(items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
    """Examples per label."""
    return dict(zip(labels, np.bincount(_gold(items), minlength=len(labels)).tolist(), strict=True))


def check_metric(metric: str, labels: Sequence[str]) -> None:
    """Refuse a metric that these labels do not have.

    Raises:
        InvalidRecipe: they are not two.
    """
    if metric == "f1" and len(labels) != 2:
        found = f"{len(labels)} labels ({', '.join(labels)})"
        raise InvalidRecipe(f'selection.metric: found "f1" with {found}, wanted "macro_f1", or two labels')


def text_of(example: Example) -> TextExample:
    """The example, which is one of this family."""
    assert isinstance(example, TextExample), "an example of another family. This is a bug."
    return example


def _metrics(num_labels: int) -> dict[str, Metric]:
    found: dict[str, Metric] = {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1}
    return found | ({"f1": metrics.binary_f1} if num_labels == 2 else {}) | {"matthews": metrics.matthews}


def _gold(items: Sequence[Item]) -> NDArray[np.int64]:
    return np.array([item.targets[0] for item in items], dtype=np.int64)


def _confusion(scores_RC: NDArray[np.float32], items: Sequence[Item]) -> NDArray[np.int64]:
    return metrics.confusion(_gold(items).tolist(), scores_RC.argmax(-1).tolist(), scores_RC.shape[1])


def _mistakes(scores_RC: NDArray[np.float32], items: Sequence[Item], labels: Sequence[str]) -> Iterator[Mistake]:
    """The surer a wrong label, the worse."""
    chance_RC = softmax(scores_RC)
    for chance_C, item in zip(chance_RC, items, strict=True):
        found, gold = int(chance_C.argmax()), int(item.targets[0])
        if found != gold:
            example, sure = text_of(item.example), float(chance_C[found])
            yield Mistake(sure, example.where, example.texts, labels[gold], labels[found], sure)
