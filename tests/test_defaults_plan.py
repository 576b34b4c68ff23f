"""What fits into a time: rows, epochs and trials for sets of dozens and of tens of thousands of rows."""

from __future__ import annotations

import pytest

from prefixbank.trainer.defaults.plan import Facts, Plan, plan
from prefixbank.trainer.sweep.pruning import expected_epochs, pruner_of
from prefixbank.trainer.sweep.speed import Speed

CPU = Speed(1 / 4000, 1 / 12000)
GPU = Speed(1 / 400_000, 1 / 1_200_000)


def seconds_of(planned: Plan, facts: Facts, speed: Speed) -> float:
    """What the first trials of a plan, and what follows them, will take."""
    rows = planned.limits.get("train", facts.train) - (planned.carve or 0) - (planned.carve_test or 0)
    epoch_rows = (planned.epoch_rows or rows * facts.items) / facts.items
    validation = planned.carve or planned.limits.get("validation", facts.validation or 0)
    test = planned.carve_test or planned.limits.get("test", facts.test or 0)
    epochs = expected_epochs(pruner_of("halving", planned.epochs), 0, planned.epochs, planned.together, least=1)
    each = epoch_rows * facts.tokens * speed.train + validation * facts.tokens * speed.evaluate
    return epochs * each + (validation + 2 * test) * facts.tokens * speed.evaluate


SETS = {
    "dozens": Facts(48, None, None, 12),
    "hundreds": Facts(280, 40, 80, 22),
    "rte": Facts(2490, None, None, 75),
    "sst-2": Facts(67_349, None, 872, 14),
    "wikiann": Facts(20_000, 10_000, 10_000, 12),
    "squad": Facts(11_877, None, None, 190, 1.3),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("speed", "seconds"), [(CPU, 60), (CPU, 180), (CPU, 1800), (GPU, 60), (GPU, 300)])
def test_the_first_trials_fit_into_the_time(name: str, speed: Speed, seconds: float) -> None:
    facts = SETS[name]
    planned = plan(facts, speed, seconds)
    assert seconds_of(planned, facts, speed) <= 1.05 * seconds, planned
    assert planned.together in (1, 4, 8)
    assert planned.limits.get("train", facts.train) - (planned.carve or 0) - (planned.carve_test or 0) >= 2


def test_a_set_of_dozens_is_gone_through_often_and_gives_up_few_rows() -> None:
    planned = plan(SETS["dozens"], CPU, 180)
    assert (planned.epochs, planned.epoch_rows, planned.batch_rows) == (60, None, 8)
    assert (planned.carve, planned.carve_test) == (10, None)


def test_a_large_set_is_gone_through_in_parts() -> None:
    planned = plan(SETS["sst-2"], CPU, 180)
    assert planned.limits["train"] < 40_000, "what there is no time for is not read"
    assert planned.epochs == 8
    assert planned.epoch_rows is not None
    assert planned.carve == 1000
    assert planned.passes < 1


def test_files_that_are_given_are_not_carved_but_may_be_too_large() -> None:
    planned = plan(SETS["wikiann"], CPU, 120)
    assert (planned.carve, planned.carve_test) == (None, None)
    assert planned.limits["validation"] <= 1000
    assert plan(SETS["wikiann"], GPU, 120).limits.get("test") is None


def test_more_time_means_more_rows_and_a_faster_machine_does_too() -> None:
    passes = [plan(SETS["rte"], CPU, seconds).passes for seconds in (60, 180, 600)]
    assert passes == sorted(passes)
    assert plan(SETS["rte"], GPU, 60).passes > passes[1]


def test_no_time_at_all_still_makes_a_plan() -> None:
    planned = plan(SETS["squad"], CPU, 5)
    assert planned.together == 1
    assert planned.epochs == 8


def test_a_short_run_takes_steps_of_few_rows() -> None:
    seconds = (60, 300, 1800, 7200)
    rows = [plan(SETS["squad"], CPU, each).batch_rows for each in seconds]
    assert rows == sorted(rows)
    assert rows[:2] == [8, 8]
    assert plan(SETS["squad"], GPU, 300).batch_rows == 32


def test_trials_that_time_is_too_short_to_tell_apart_are_one() -> None:
    assert plan(SETS["squad"], CPU, 300).together == 1
    assert plan(SETS["wikiann"], CPU, 100).together == 4
    assert plan(SETS["squad"], GPU, 300).together == 8
    assert plan(SETS["dozens"], CPU, 180).together == 8, "short because it has few rows: there is time for many"
