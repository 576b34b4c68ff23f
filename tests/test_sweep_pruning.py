"""Which trials end early: the median and the halves, over trials that run together; and times to run for."""

from __future__ import annotations

import pytest

from prefixbank.model_store.errors import TrainingError
from prefixbank.trainer.sweep.pruning import Halving, Median, Never, Standing, expected_epochs, pruner_of
from prefixbank.trainer.sweep.time_limit import TimeLimit, seconds_of


def running(*scores: tuple[float, ...]) -> list[Standing]:
    return [Standing(number, one, is_running=True) for number, one in enumerate(scores)]


def test_trials_below_the_median_of_all_end_together() -> None:
    standings = running((0.1, 0.2), (0.4, 0.5), (0.3, 0.1), (0.6, 0.6))
    assert Median(warmup=1).losers(standings) == {0, 2}


def test_a_trial_is_judged_by_its_best_epoch() -> None:
    assert Median(warmup=1).losers(running((0.9, 0.0), (0.5, 0.5), (0.5, 0.6), (0.5, 0.7))) == {1, 2}


@pytest.mark.parametrize("standings", [running((0.1,), (0.5,), (0.6,)), running((0.1,), (0.5,), (0.6,), (0.7,))])
def test_few_trials_and_early_epochs_end_nothing(standings: list[Standing]) -> None:
    assert Median(warmup=2 if len(standings) == 4 else 1).losers(standings) == set()


def test_ended_trials_stay_in_the_median() -> None:
    ended = [Standing(number, (0.1 * number,), is_running=False) for number in range(4)]
    survivors = [Standing(4, (0.25, 0.25), is_running=True), Standing(5, (0.5, 0.5), is_running=True)]
    assert Median(warmup=1).losers([*ended, *survivors]) == set(), "0.25 is above the median of 0, 0.1, 0.2, 0.3, 0.5"


def test_the_better_half_passes_a_rung() -> None:
    pruner = Halving((1, 2))
    assert pruner.losers(running((0.1,), (0.4,), (0.3,), (0.2,))) == {0, 3}
    assert pruner.losers(running((0.4, 0.4), (0.3, 0.5))) == {0}
    assert pruner.losers(running((0.4, 0.4, 0.1), (0.3, 0.5, 0.0))) == set(), "between rungs nothing ends"


def test_trials_without_a_score_yet_are_told_apart_by_their_loss() -> None:
    standings = [Standing(number, (0.0,), True, (loss,)) for number, loss in enumerate((1.2, 0.9, 1.1, 0.8))]
    assert Halving((1,)).losers(standings) == {0, 2}


def test_a_late_trial_is_held_to_all_that_passed_its_rung() -> None:
    earlier = [Standing(number, (0.5, 0.6), is_running=False) for number in range(3)]
    assert Halving((1,)).losers([*earlier, Standing(3, (0.4,), is_running=True)]) == {3}
    assert Halving((1,)).losers([*earlier, Standing(3, (0.6,), is_running=True)]) == set()


def test_pruners_by_name() -> None:
    assert pruner_of("median", 10) == Median(warmup=3)
    assert pruner_of("halving", 16) == Halving((2, 4, 8))
    assert pruner_of("halving", 3) == Halving((1, 2))
    assert pruner_of("none", 5) == Never()


def test_expected_epochs_follow_the_rungs() -> None:
    assert expected_epochs(Halving((1, 2, 4)), 0, 8) == pytest.approx(1 + 1 / 2 + 2 / 4 + 4 / 8)
    assert expected_epochs(Halving((1, 2, 4)), 4, 8) == 4
    assert expected_epochs(Halving((1, 2, 4)), 0, 8, trials=8, least=1) == 8 + 4 + 2 * 2 + 4
    assert expected_epochs(Halving((1, 2, 4)), 0, 8, trials=4, least=1) == 4 + 2 + 6
    assert expected_epochs(Never(), 3, 8, trials=2) == 10


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5m", 90)])
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-3m", "3 days", "m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(TrainingError, match=f"found '{text}', wanted a duration"):
        seconds_of(text)


def test_a_limit_counts_from_its_beginning() -> None:
    now = [100.0]
    limit = TimeLimit.starting_now(60, lambda: now[0])
    now[0] = 130.0
    assert limit.left == 30.0
