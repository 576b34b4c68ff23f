"""What a sweep varies: values by name, intervals, defaults, refusals, and what is proposed of them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.model_store.errors import InvalidRecipe
from prefixbank.trainer.recipe import LayerInterval, Recipe, load, parse
from prefixbank.trainer.recipe.write import moved, write
from prefixbank.trainer.sweep.space import Space, space_of
from prefixbank.trainer.sweep.study import Study
from tests.sweep_cases import recipe_of

if TYPE_CHECKING:
    from pathlib import Path

RATE = {"low": 1e-3, "high": 1e-1, "log": True}


def swept(space: dict[str, Any], **changes: Any) -> Recipe:
    return recipe_of(sweep={"space": space, "trials": 12, "together": 4}, **changes)


def study_of(recipe: Recipe, space: Space, most: int = 12) -> Study:
    assert recipe.sweep is not None
    return Study(space, recipe.sweep, recipe.seed, most)


def asked(space: Space, study: Study, most: int = 50) -> list[dict[str, Any]]:
    """Settings until there are no more."""
    return [space.settings(places) for places in itertools.takewhile(bool, (study.ask() or {} for _ in range(most)))]


def test_settings_make_a_recipe() -> None:
    space = space_of(swept({"prompt.layers": ["all", {"from": "top", "count": 2}], "optimiser.prompt_rate": RATE}))
    found = space.recipe({"prompt.layers": {"from": "top", "count": 2}, "optimiser.prompt_rate": 0.02})
    assert found.prompt.layers == LayerInterval.model_validate({"from": "top", "count": 2})
    assert (found.optimiser.prompt_rate, found.optimiser.epochs, found.sweep) == (0.02, 3, None)


def test_names_may_be_tables() -> None:
    nested, dotted = swept({"prompt": {"length": [2, 4]}}), swept({"prompt.length": [2, 4]})
    assert nested == dotted


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"prompt.lenght": [2, 3]}, ["sweep.space.prompt.lenght", "unknown field"]),
        ({"prompt.length": [0, 3]}, ["sweep.space.prompt.length", "value 0", "found 0"]),
        ({"prompt.length": []}, ["sweep.space", "a list of values", "prompt.length", "[]"]),
        ({"prompt.length": 3}, ["sweep.space", "a list of values", "prompt.length", "3"]),
        ({"prompt.length": {"low": 3}}, ["sweep.space.prompt.length.high", "found nothing"]),
        ({"prompt.length": {"low": 3, "high": 3}}, ["sweep.space.prompt.length", "low < high"]),
        ({"optimiser.prompt_rate": {"low": 0, "high": 1, "log": True}}, ["low above 0"]),
        ({"optimiser.prompt_rate": {"low": 1, "high": 20}}, ["sweep.space.optimiser.prompt_rate", "value 20"]),
        ({"backbone": ["minilm", "bert"]}, ["sweep.space.backbone", "trials share"]),
        ({"method": ["prompt", "full"]}, ["sweep.space.method", "full"]),
        ({"prompt.init": ["text", "stored"]}, ["sweep.space.prompt.init", "start"]),
        ({"family.name": ["x"]}, ["sweep.space.family.name", "trials share"]),
    ],
)
def test_a_space_that_fits_no_recipe_is_refused(space: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        space_of(swept(space))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, {"prompt.length", "prompt.init", "optimiser.prompt_rate", "optimiser.head_rate"}),
        ({"method": "shallow"}, {"prompt.length", "prompt.init", "optimiser.prompt_rate", "optimiser.head_rate"}),
        ({"method": "head"}, {"optimiser.head_rate"}),
        ({"method": "full"}, {"optimiser.backbone_rate", "optimiser.head_rate"}),
        ({"prompt": {"init": "stored", "start": "a"}}, {"optimiser.prompt_rate", "optimiser.head_rate"}),
    ],
)
def test_a_recipe_without_a_space_gets_what_decides_most(changes: dict[str, Any], names: set[str]) -> None:
    assert {one.name for one in space_of(recipe_of(sweep={"space": {}}, **changes)).dimensions} == names


def test_hard_sequence_tasks_get_longer_prompts() -> None:
    words = parse({"family": "token-classification", "data": {"train": "x.conll"}})
    lengths = [space_of(recipe).dimensions[0].values for recipe in (words, recipe_of(sweep={"space": {}}))]
    assert lengths == [(16, 20, 32, 64, 128), (4, 8, 16, 32, 64)]


def test_the_usual_space_holds_the_recipe_itself() -> None:
    own = {"prompt": {"length": 5, "init": "normal"}, "optimiser": {"prompt_rate": 0.5, "head_rate": 1e-4}}
    space = space_of(recipe_of(sweep={"space": {}}, **own))
    settings = space.settings(space.own())
    assert list(settings.values()) == [5, "normal", 0.5, 1e-4]


def test_a_step_never_goes_beyond_the_end() -> None:
    space = space_of(swept({"prompt.length": {"low": 1, "high": 10, "step": 5}}, prompt={"length": 10}))
    [dimension] = space.dimensions
    assert [dimension.place(value) for value in (1, 4, 8, 10)] == [1, 6, 6, 6]
    assert dimension.places() == [1, 6]


@pytest.mark.parametrize(
    ("space", "data"),
    [
        ({"selection.metric": ["accuracy", "loss"]}, {}),
        ({"selection": [{"metric": "loss"}]}, {}),
        ({"data.seed": [1, 2]}, {}),
        ({"data.carve_test": [0.1, 0.3]}, {"carve_test": 0.1}),
        ({"data.train.limit": [10, 20]}, {"carve_test": 0.1}),
    ],
)
def test_what_ranks_trials_and_what_is_reported_is_the_same_for_all(
    space: dict[str, Any], data: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRecipe, match="found a field that trials share"):
        space_of(swept(space, data={"test": None} | data))


def test_rows_may_vary_where_a_file_is_reported() -> None:
    recipe = swept({"data.train.limit": [10, 20]}, data={"carve_test": 0.1})
    assert space_of(recipe).dimensions[0].values == (10, 20)


def test_the_first_trial_is_the_recipe_itself_or_what_is_nearest_to_it() -> None:
    recipe = swept({"prompt.length": [8, 2, 5], "optimiser.prompt_rate": RATE, "prompt.init": ["random", "normal"]})
    space = space_of(recipe)
    first = asked(space, study_of(recipe, space), 1)
    assert first == [{"prompt.length": 5, "optimiser.prompt_rate": 0.01, "prompt.init": "random"}]


def test_the_first_trials_are_spread_evenly() -> None:
    recipe = recipe_of(sweep={"space": {"prompt.length": [2, 3, 4, 5], "optimiser.head_rate": RATE}, "together": 9})
    space = space_of(recipe)
    settings = asked(space, study_of(recipe, space), 9)[1:]
    assert Counter(one["prompt.length"] for one in settings) == {2: 2, 3: 2, 4: 2, 5: 2}
    rates = sorted(one["optimiser.head_rate"] for one in settings)
    assert all(
        1e-3 * 100 ** (i / 8) * 0.99 <= rate <= 1e-3 * 100 ** ((i + 1) / 8) * 1.01 for i, rate in enumerate(rates)
    )


def test_tpe_prefers_what_did_well() -> None:
    recipe = swept({"optimiser.prompt_rate": RATE})
    space = space_of(recipe)
    study = study_of(recipe, space, most=40)
    rates = []
    for number in range(40):
        [settings] = asked(space, study, 1)
        rate = settings["optimiser.prompt_rate"]
        rates.append(rate)
        study.report(number, [-abs(rate - 0.05)])
        study.tell(number, "failed" if number == 2 else "complete", -abs(rate - 0.05))
    near = [sum(0.03 < rate < 0.08 for rate in part) for part in (rates[:10], rates[30:])]
    assert near[0] <= 4 < 6 <= near[1], near


def test_what_is_proposed_depends_on_nothing_but_the_seed_and_what_was_told() -> None:
    recipe = swept({"prompt.length": [2, 4, 8, 16], "optimiser.prompt_rate": RATE})
    space = space_of(recipe)
    whole, resumed = study_of(recipe, space), study_of(recipe, space)
    for number in range(12):
        places = whole.ask()
        assert places is not None
        whole.report(number, [number / 10, number / 7])
        whole.tell(number, "pruned" if number % 3 else "complete", number / 7)
        if number < 8:
            resumed.again(places)
            resumed.report(number, [number / 10, number / 7])
            resumed.tell(number, "pruned" if number % 3 else "complete", number / 7)
        else:
            assert resumed.ask() == places
            resumed.report(number, [number / 10, number / 7])
            resumed.tell(number, "pruned" if number % 3 else "complete", number / 7)


def test_a_grid_is_all_combinations_once() -> None:
    space_table = {"prompt.length": [2, 4], "prompt.dropout": {"low": 0.0, "high": 0.2, "step": 0.1}}
    recipe = recipe_of(sweep={"space": space_table, "sampler": "grid"})
    space = space_of(recipe)
    study = study_of(recipe, space)
    found = [tuple(one.values()) for one in asked(space, study)]
    assert found == [(2, 0.0), (2, 0.1), (2, 0.2), (4, 0.0), (4, 0.1), (4, 0.2)]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_nothing_is_tried_twice(sampler: str) -> None:
    recipe = recipe_of(sweep={"space": {"seed": [1, 2, 3], "prompt.length": [2, 4]}, "sampler": sampler, "together": 4})
    space = space_of(recipe)
    found = asked(space, study_of(recipe, space, most=20), 20)
    assert sorted((one["seed"], one["prompt.length"]) for one in found) == [(s, n) for s in (1, 2, 3) for n in (2, 4)]


def test_a_grid_of_an_interval_without_steps_is_refused() -> None:
    recipe = recipe_of(sweep={"space": {"optimiser.prompt_rate": RATE}, "sampler": "grid"})
    with pytest.raises(InvalidRecipe, match=r"sweep\.space\.optimiser\.prompt_rate: found an interval without step"):
        study_of(recipe, space_of(recipe))


def test_a_recipe_reads_back_equal_from_the_folder_it_was_moved_to(tmp_path: Path) -> None:
    data = {
        "train": {"path": "in/a.tsv", "rows": [0, 9]},
        "test": "/far/b.tsv",
        "labels": ["x", "y"],
        "rename": {"0": "x"},
    }
    layers = {"layers": {"from": "top", "count": 2}, "init": "stored", "start": "old/artifact"}
    recipe = parse(
        {"family": "text-classification", "data": data, "prompt": layers, "sweep": {"space": {"seed": [1, 2]}}}
    )
    there = moved(recipe, tmp_path / "here", tmp_path / "runs" / "x")
    write(there, tmp_path / "best.toml", "Found.\nBy a sweep.")
    assert load(tmp_path / "best.toml") == there
    assert (tmp_path / "best.toml").read_text().startswith("# Found.\n# By a sweep.\n")
    assert there.data is not None
    assert (there.data.train.path, there.prompt.start) == ("../../here/in/a.tsv", "../../here/old/artifact")
    assert there.data.test is not None
    assert there.data.test.path == "/far/b.tsv"
