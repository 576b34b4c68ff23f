"""Metrics of labels, their calibration and their intervals, against scikit-learn and restated definitions."""

from __future__ import annotations

import random

import numpy as np
import pytest

from prefixbank.trainer.metrics import binary_f1, bootstrap, classification, interval, macro_f1, micro_f1
from prefixbank.trainer.metrics.bootstrap import grouped, mean_interval
from prefixbank.trainer.metrics.calibration import calibration_error, calibration_interval

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def labels(seed: int, classes: int, rows: int = 1000) -> tuple[list[int], list[int]]:
    chance = random.Random(seed)
    gold = [chance.randrange(classes) for _ in range(rows)]
    return gold, [one if chance.random() < 0.6 else chance.randrange(classes) for one in gold]


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_of_labels_are_scikit_learns(classes: int) -> None:
    gold, found = labels(classes, classes)
    confusion_CC = classification.confusion(gold, found, classes)
    assert classification.accuracy(confusion_CC) == pytest.approx(sklearn_metrics.accuracy_score(gold, found))
    assert macro_f1(confusion_CC) == pytest.approx(sklearn_metrics.f1_score(gold, found, average="macro"))
    assert micro_f1(confusion_CC) == pytest.approx(sklearn_metrics.f1_score(gold, found, average="micro"))
    counted = list(range(1, classes))
    expected = sklearn_metrics.f1_score(gold, found, average="micro", labels=counted)
    assert micro_f1(confusion_CC, counted) == pytest.approx(expected)
    assert classification.matthews(confusion_CC) == pytest.approx(sklearn_metrics.matthews_corrcoef(gold, found))


def test_binary_f1_is_that_of_the_positive_class() -> None:
    gold, found = labels(0, 2)
    confusion_CC = classification.confusion(gold, found, 2)
    assert binary_f1(confusion_CC) == pytest.approx(sklearn_metrics.f1_score(gold, found))
    assert binary_f1(confusion_CC, 0) == pytest.approx(sklearn_metrics.f1_score(gold, found, pos_label=0))


def test_a_class_that_never_occurs_scores_nothing() -> None:
    assert binary_f1(classification.confusion([0, 0], [0, 0], 2)) == 0.0


def guo_error(confidence: list[float], correct: list[bool], num_bins: int) -> float:
    """Equation 3 of Guo et al., bin by bin."""
    error = 0.0
    for low, high in zip(np.linspace(0, 1, num_bins + 1)[:-1], np.linspace(0, 1, num_bins + 1)[1:], strict=True):
        inside = [i for i, p in enumerate(confidence) if low < p <= high or (low == p == 0)]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - sum(confidence[i] for i in inside) / len(inside))
    return error


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error_is_guos(num_bins: int) -> None:
    chance = random.Random(num_bins)
    confidence = [chance.choice([chance.random(), 0.0, 0.2, 1.0]) for _ in range(1000)]
    correct = [chance.random() < p**2 for p in confidence]
    assert calibration_error(confidence, correct, num_bins) == pytest.approx(guo_error(confidence, correct, num_bins))


def test_confidence_that_is_kept_has_no_error() -> None:
    assert calibration_error([0.75] * 4, [True, True, True, False]) == 0.0


def test_the_interval_of_the_calibration_error_reaches_around_it() -> None:
    chance = random.Random(2)
    confidence = [chance.random() for _ in range(400)]
    correct = [chance.random() < 0.5 for _ in confidence]
    low, high = calibration_interval(confidence, correct)
    assert low < calibration_error(confidence, correct) < high


def test_an_interval_of_a_mean_is_nearly_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(5, 2, 2000)
    low, high = mean_interval(values.tolist())
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 5)


def test_an_interval_follows_its_seed() -> None:
    values = [float(value) for value in range(30)]
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_a_bootstrap_draws_rows_with_replacement() -> None:
    """The definition, row by row: as many draws as rows, each row as likely as any."""
    values, samples = [0.0, 1.0, 1.0, 5.0], np.random.default_rng(0).integers(0, 4, (20_000, 4))
    means = np.array(values)[samples].mean(-1)
    low, high = mean_interval(values)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.26)


def test_rows_of_a_group_are_drawn_together() -> None:
    sums_GK = grouped([[1, 1], [0, 1], [3, 1], [1, 1]], ["a", "b", "a", "b"])
    assert sums_GK.tolist() == [[4, 2], [1, 2]]
    alike = grouped([[value, 1] for value in [0, 1] * 50], [n // 2 for n in range(100)])
    assert interval(alike, lambda sums_B2: sums_B2[:, 0] / sums_B2[:, 1]) == [0.5, 0.5]


def test_draws_in_blocks_are_draws_at_once() -> None:
    random_numbers = np.random.default_rng(0)
    shares = np.full(7, 1 / 7)
    at_once = random_numbers.multinomial(7, shares, bootstrap.NUM_SAMPLES) @ np.arange(7.0)
    expected = np.quantile(at_once, [0.025, 0.975])
    assert interval([[float(n)] for n in range(7)], lambda sums_B1: sums_B1[:, 0]) == pytest.approx(list(expected))
