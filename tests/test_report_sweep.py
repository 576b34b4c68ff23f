"""sweep.html: order, ablations, seeds, and sweeps that are not finished."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.model_store.errors import InvalidReport
from prefixbank.trainer import report
from prefixbank.trainer.report.schema import Sweep, parse
from prefixbank.trainer.report.sweep_charts import depth_chart, length_chart, setting_charts
from prefixbank.trainer.report.trials import Trials, trials_of
from tests.report_cases import sweep

if TYPE_CHECKING:
    from pathlib import Path


def trials(*found: dict[str, Any], metric: str = "span_f1") -> Trials:
    whole = [{"number": i, "state": "complete"} | trial for i, trial in enumerate(found)]
    return trials_of(parse(Sweep, {"metric": metric, "trials": whole}, "sweep"))


def tried(score: float | None, seed: int = 1, **settings: Any) -> dict[str, Any]:
    dotted = {f"prompt.{name}": value for name, value in settings.items()}
    return {"score": score, "seed": seed, "settings": dotted}


@pytest.fixture(scope="module")
def page() -> str:
    return report.render_sweep(sweep())


def test_the_headline_is_mean_and_deviation_over_seeds(page: str) -> None:
    assert '<p class="value">0.781 <small>± 0.007</small></p>' in page
    assert "over 3 seeds: 0.781, 0.774, 0.788" in page


def test_trials_are_sorted_and_their_states_are_marked(page: str) -> None:
    states = re.findall(r"state-(complete|pruned|failed)", page.partition('class="trials"')[2])
    assert states == sorted(states, key=("complete", "pruned", "failed").index)
    assert set(states) == {"complete", "pruned", "failed"}
    assert page.count('<tr class="chosen ">') == 2, "the best settings were run with two seeds"


def test_a_trial_that_failed_says_why(page: str) -> None:
    assert "step 31: found a loss of nan, wanted a finite one" in page


def test_one_seed_has_no_deviation() -> None:
    found = sweep()
    found["best"]["reported"] = {"split": "test", "scores": [0.781], "mean": 0.781, "std": 0.0}
    page = report.render_sweep(found)
    assert "one seed" in page
    assert "<small>" not in page


@pytest.mark.parametrize("figure", ["As Figure 3 of", "As Figure 4 of"])
def test_the_papers_ablations_are_drawn_when_the_trials_hold_them(page: str, figure: str) -> None:
    assert page.count(figure) == 1


def test_lengths_are_drawn_by_parameterisation_as_means_over_seeds() -> None:
    chart = length_chart(
        trials(
            tried(0.7, 1, length=8),
            tried(0.8, 2, length=8),
            tried(0.6, length=16),
            tried(0.9, length=8, parameterisation="mlp"),
            tried(0.5, length=16, parameterisation="mlp"),
        ),
        "span_f1",
        "embedding",
    )
    assert chart is not None
    assert [(line.name, line.points) for line in chart.lines] == [
        ("embedding", ((8, 0.75), (16, 0.6))),
        ("mlp", ((8, 0.9), (16, 0.5))),
    ]
    assert len(chart.whiskers) == 1


def test_a_point_is_the_best_over_the_settings_beside_it() -> None:
    chart = length_chart(
        trials(*(tried(n / 10 + d, length=8 * n, dropout=d) for n in (5, 6) for d in (0.1, 0.2))),
        "span_f1",
        "embedding",
    )
    assert chart is not None
    assert chart.lines[0].points == ((40, 0.7), (48, 0.8))
    assert "best over the settings that vary beside it" in chart.note


def test_like_is_compared_with_like() -> None:
    """A length that was tried with many rates would win by luck."""
    rates = [tried(0.7 + i / 100, length=16, rate=i) for i in range(9)]
    chart = length_chart(trials(tried(0.7, length=8, rate=0), *rates), "span_f1", "embedding")
    assert chart is not None
    assert chart.lines[0].points == ((8, 0.7), (16, 0.7))


def test_depths_are_drawn_from_either_end_beside_the_whole_prompt() -> None:
    ends = [tried(0.5 + n / 10, layers={"from": end, "count": n}) for end in ("top", "bottom") for n in (1, 2)]
    chart = depth_chart(trials(*ends, tried(0.9)), "span_f1", "all")
    assert chart is not None
    assert {line.name for line in chart.lines} == {"from the top", "from the bottom", "all layers"}
    assert chart.frame.y.high >= 0.9


def test_trials_without_an_ablation_have_none() -> None:
    found = trials(tried(0.7, length=8, rate=0.1), tried(0.6, length=8, rate=0.2))
    assert length_chart(found, "span_f1", "embedding") is None
    assert depth_chart(found, "span_f1", "all") is None
    assert [chart.title for chart in setting_charts(found, "span_f1")] == ["prompt.rate"]


def test_a_pruned_trial_is_no_point_of_an_ablation() -> None:
    found = trials(tried(0.7, length=8), tried(0.6, length=16), tried(0.95, length=16) | {"state": "pruned"})
    chart = length_chart(found, "span_f1", "embedding")
    assert chart is not None
    assert chart.lines[0].points == ((8, 0.7), (16, 0.6))


def test_the_lowest_loss_is_the_best() -> None:
    found = trials(tried(0.7, length=8), tried(0.2, length=16), metric="loss")
    assert [one.score for one in found.tried] == [0.2, 0.7]
    assert found.over_seeds()[0].scores == (0.2,)


def test_the_best_settings_are_known_by_value_whatever_their_nesting() -> None:
    record = {
        "metric": "f1",
        "trials": [{"number": 0, "state": "complete", "score": 1, "settings": {"prompt.layers": {"from": "top"}}}],
        "best": {"settings": {"prompt.layers.from": "top"}},
    }
    assert trials_of(parse(Sweep, record, "sweep")).tried[0].is_best


def test_what_a_trial_does_not_set_is_as_the_recipe_has_it() -> None:
    record = {
        "metric": "f1",
        "recipe": {"prompt": {"layers": "all", "dropout": 0.1, "length": 8}},
        "trials": [
            {"number": 0, "state": "complete", "settings": {"prompt.length": 9}},
            {"number": 1, "state": "complete", "settings": {"prompt.layers": {"from": "top", "count": 2}}},
        ],
    }
    found = trials_of(parse(Sweep, record, "sweep")).tried
    assert [tried.settings for tried in found] == [
        {"prompt.length": 9},
        {"prompt.length": 8, "prompt.layers.from": "top", "prompt.layers.count": 2},
    ]


@pytest.mark.parametrize(
    "found", [[], [{"number": 0, "state": "failed"}], [{"number": 0, "state": "complete", "score": 0.5}]]
)
def test_a_sweep_that_has_just_begun_can_be_drawn(found: list[dict[str, Any]]) -> None:
    page = report.render_sweep({"metric": "f1", "trials": found})
    assert "The sweep names no best settings" in page


def test_a_sweep_without_trials_is_refused() -> None:
    with pytest.raises(InvalidReport, match=r"sweep: trials: Field required"):
        report.render_sweep({"metric": "f1"})


def test_writing_puts_the_page_beside_the_json(tmp_path: Path) -> None:
    report.write_sweep(sweep(), tmp_path)
    assert (tmp_path / "sweep.html").read_text("utf-8") == report.render_sweep(sweep())
