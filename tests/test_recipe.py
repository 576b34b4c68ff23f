"""The recipe: defaults, refusals that name field, found and wanted, overrides."""

from pathlib import Path
from typing import Any

import pytest

from prefixbank.model_store.errors import InvalidRecipe
from prefixbank.trainer.recipe import Recipe, load, parse

ROOT = Path(__file__).resolve().parent.parent
SMALL: dict[str, Any] = {"family": "text-classification", "data": {"train": "train.tsv"}}


def refusal(table: dict[str, Any]) -> str:
    with pytest.raises(InvalidRecipe) as caught:
        parse(table)
    return str(caught.value)


def test_family_and_training_data_are_all_a_recipe_needs() -> None:
    recipe = parse(SMALL)
    assert (recipe.method, recipe.prompt.init, recipe.position_offset, recipe.metric) == (
        "prompt",
        "text",
        0,
        "accuracy",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "translation"}, ["family", "'translation'", "'text-classification'"]),
        ({"family": "multiple-choice"}, ["family", "multiple-choice", "token-classification"]),
        ({"prompt": {"length": 0}}, ["prompt.length", "found 0", "greater than or equal to 1"]),
        ({"prompt": {"lenght": 8}}, ["prompt.lenght", "unknown field"]),
        ({"prompt": {"layers": [2, 1]}}, ["prompt", "ascending", "[2, 1]"]),
        ({"data": {}}, ["data.train", "found nothing"]),
        ({"data": {"train": {"path": "x.tsv", "rows": [9, 9]}}}, ["data.train", "first < end", "[9, 9]"]),
        ({"data": {"train": "x", "text": ["a", "b", "c"]}}, ["data.text", "not 3"]),
        ({"optimiser": {"epochs": "many"}}, ["optimiser.epochs", "found 'many'", "integer"]),
        ({"optimiser": {"head_rate": float("nan")}}, ["optimiser.head_rate", "found nan"]),
        ({"selection": {"metric": "span_f1"}}, ["selection.metric", "text-classification", "span_f1"]),
        ({"family": "token-classification", "head": {"pooler": "own"}}, ["head.pooler", "own"]),
        ({"family": "token-classification", "data": {"train": "x", "text": ["a", "b"]}}, ["data.text", "2 fields"]),
    ],
)
def test_a_refusal_names_field_found_and_wanted(change: dict[str, Any], words: list[str]) -> None:
    message = refusal(SMALL | change)
    assert [word for word in words if word not in message] == [], message


def test_an_unreadable_recipe_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match=r"none\.toml: cannot be read"):
        load(tmp_path / "none.toml")


def test_a_recipe_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("family = ")
    with pytest.raises(InvalidRecipe, match=r"bad\.toml: found no TOML"):
        load(tmp_path / "bad.toml")


def test_overrides_are_toml_values_and_bare_words(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('family = "text-classification"\n[data]\ntrain = "a.tsv"\n')
    recipe = load(tmp_path / "r.toml", ["prompt.length=32", "method=head", "prompt.layers=[1, 2]", "data.train=b.tsv"])
    assert (recipe.prompt.length, recipe.method, recipe.prompt.layers, recipe.data.train.path) == (
        32,
        "head",
        (1, 2),
        "b.tsv",
    )


@pytest.mark.parametrize("override", ["prompt.length", "=3", "prompt..length=3", "family.x=3"])
def test_an_override_that_names_no_field_is_refused(override: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('family = "text-classification"\n[data]\ntrain = "a.tsv"\n')
    with pytest.raises(InvalidRecipe, match="override"):
        load(tmp_path / "r.toml", [override])


def test_a_prompt_may_shift_positions_by_its_length() -> None:
    assert parse(SMALL | {"prompt": {"length": 7, "position_offset": "length"}}).position_offset == 7
    assert parse(SMALL | {"method": "head", "prompt": {"position_offset": 7}}).position_offset == 0


def test_every_field_has_a_sentence_of_advice() -> None:
    sections = [Recipe, *(field.annotation for field in Recipe.model_fields.values())]
    models = [section for section in sections if isinstance(section, type) and hasattr(section, "model_fields")]
    bare = [f"{m.__name__}.{n}" for m in models for n, field in m.model_fields.items() if not field.description]
    assert bare == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_recipe_is_valid(path: Path) -> None:
    assert load(path).backbone == "minilm"
