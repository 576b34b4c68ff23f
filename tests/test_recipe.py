"""The recipe: defaults, refusals that name field, found and wanted, overrides."""

from pathlib import Path
from typing import Any

import pytest

from prefixbank.model_store.errors import InvalidRecipe
from prefixbank.trainer.recipe import Recipe, Source, load, parse
from prefixbank.trainer.recipe.sections import Section

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
        ({"family": "multiple-choice"}, ["data.text", "premise", "['text']"]),
        ({"prompt": {"length": 0}}, ["prompt.length", "found 0", "greater than or equal to 1"]),
        ({"prompt": {"lenght": 8}}, ["prompt.lenght", "unknown field"]),
        ({"prompt": {"layers": [2, 1]}}, ["prompt", "ascending", "[2, 1]"]),
        ({"prompt": {"layers": {"from": "middle", "count": 2}}}, ["prompt.layers.from", "'top' or 'bottom'"]),
        ({"prompt": {"init": "stored"}}, ["prompt", "start", "stored"]),
        ({"prompt": {"start": "runs/a"}}, ["prompt", "start", "stored"]),
        ({"method": "shallow", "prompt": {"layers": [1]}}, ["prompt.layers", "shallow"]),
        ({"method": "shallow", "prompt": {"parameterisation": "mlp"}}, ["prompt.parameterisation", "shallow"]),
        ({"data": {}}, ["data.train", "found nothing"]),
        ({"data": None}, ["[data] or [tasks]", "neither"]),
        ({"data": {"train": {"rows": [0, 9]}}}, ["data.train", "path or hub", "neither"]),
        ({"data": {"train": {"path": "x", "hub": "glue"}}}, ["data.train", "path or hub", "both"]),
        ({"data": {"train": {"path": "x", "config": "rte"}}}, ["data.train", "config", "hub"]),
        ({"data": {"train": {"path": "x", "words": "y"}}}, ["words", "conll2005"]),
        ({"data": {"train": "x", "format": "squad"}}, ["data.format", "tsv", "text-classification", "squad"]),
        ({"data": {"train": "x", "labels": ["a", "a"]}}, ["data.labels", "repetition"]),
        (
            {"data": {"train": "x", "labels": ["a", "b", "c"]}, "selection": {"metric": "f1"}},
            ["macro_f1", "last of two"],
        ),
        (
            {"family": "token-classification", "data": {"train": "x", "max_characters": 9}},
            ["data.max_characters", "token-classification"],
        ),
        ({"family": "question-answering", "max_tokens": 64}, ["max_tokens", "at least 80"]),
        (
            {"family": "question-answering", "answering": {"num_best": 10**6}},
            ["answering.num_best", "less than or equal"],
        ),
        (
            {"family": "multiple-choice", "data": {"train": "x", "text": [f"c{n}" for n in range(66)]}},
            ["data.text", "up to 64 choices"],
        ),
        ({"answering": {"stride": 3}}, ["[answering]", "question-answering"]),
        ({"roles": {"separator": "|"}}, ["[roles]", "semantic-role-labeling"]),
        ({"family": "question-answering", "prompt": {"init": "labels"}}, ["prompt.init", "question-answering"]),
        ({"family": "question-answering", "head": {"pooler": "own"}}, ["head.pooler", "question-answering"]),
        ({"family": "question-answering", "selection": {"metric": "accuracy"}}, ["selection.metric", "f1, exact"]),
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


WORDS = {"good": "great", "bad": "terrible"}


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({}, ["head.template", "{mask}"]),
        ({"template": "{text} {mask}"}, ["head.words", "two or more"]),
        ({"template": "{text}", "words": WORDS}, ["head.template", "{mask}, {text}", "'{text}'"]),
        ({"template": "{text} {mask} {mask}", "words": WORDS}, ["head.template", "once"]),
        ({"template": "{text} {text_pair} {mask}", "words": WORDS}, ["head.template", "no other place"]),
        ({"template": "{text} {mask}", "words": WORDS | {"odd": "so"}}, ["head.words", "odd", "one of them only"]),
        ({"template": "{text} {mask}", "words": {"good": " ", "bad": "x"}}, ["head.words", "not empty", "good"]),
        ({"template": "{text} {mask}", "words": WORDS, "pooler": "own"}, ["head.pooler", "masks"]),
        ({"kind": "linear", "words": WORDS}, ["head.kind", "verbalizer"]),
    ],
)
def test_a_verbalizer_needs_a_template_and_a_word_for_each_label(head: dict[str, Any], words: list[str]) -> None:
    data = {"train": "train.tsv", "labels": ["bad", "good"]}
    message = refusal(SMALL | {"data": data, "head": {"kind": "verbalizer", **head}})
    assert [word.replace("'", '"') for word in words if word.replace("'", '"') not in message] == [], message


def test_a_verbalizer_is_for_texts_only() -> None:
    head = {"kind": "verbalizer", "template": "{text} {mask}", "words": WORDS}
    assert parse(SMALL | {"head": head}).head.words == WORDS
    assert "stands for the label of a text" in refusal(SMALL | {"family": "token-classification", "head": head})


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", (0, 1, 2, 3)),
        ([1, 3], (1, 3)),
        ({"from": "top", "count": 3}, (1, 2, 3)),
        ({"from": "bottom", "count": 1}, (0,)),
    ],
)
def test_layers_are_all_or_numbers_or_counted_from_an_end(layers: Any, expected: tuple[int, ...]) -> None:
    assert parse(SMALL | {"prompt": {"layers": layers}}).prompt.resolve(4) == expected


@pytest.mark.parametrize(
    ("layers", "words"), [([4], "layer 4, wanted 0 to 3"), ({"from": "top", "count": 5}, "5 layers")]
)
def test_layers_that_the_backbone_lacks_are_refused(layers: Any, words: str) -> None:
    with pytest.raises(InvalidRecipe, match=words):
        parse(SMALL | {"prompt": {"layers": layers}}).prompt.resolve(4)


def test_several_tasks_share_all_but_data_and_head() -> None:
    tasks = {
        "a": {"data": {"train": "a.tsv"}},
        "b": {"data": {"train": "b.tsv"}, "head": {"dropout": 0.5}},
    }
    recipe = parse({"family": "text-classification", "tasks": tasks, "prompt": {"length": 3}})
    parts = recipe.parts
    assert [(name, part.data.train.path, part.head.dropout) for name, part in parts.items() if part.data] == [
        ("a", "a.tsv", 0.1),
        ("b", "b.tsv", 0.5),
    ]
    assert {part.prompt.length for part in parts.values()} == {3}
    assert parse(SMALL).parts == {"": parse(SMALL)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"train": "x"}}, ["[data] or [tasks]", "both"]),
        ({"method": "head"}, ["method", "[tasks]"]),
        ({"tasks": {"a": {"data": {"train": "a"}}}}, ["tasks", "at least 2"]),
        (
            {"tasks": {"a": {"data": {"train": "a"}}, "b": {"data": {"train": "b", "text": ["x", "y", "z"]}}}},
            ["tasks.b.data.text"],
        ),
    ],
)
def test_several_tasks_are_checked_one_by_one(change: dict[str, Any], words: list[str]) -> None:
    tasks = {name: {"data": {"train": f"{name}.tsv"}} for name in "ab"}
    message = refusal({"family": "text-classification", "tasks": tasks} | change)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    "table",
    [
        SMALL | {"prompt": {"layers": {"from": "top", "count": 2}}},
        SMALL | {"data": {"train": {"hub": "super_glue", "config": "rte", "rows": [0, 9]}}},
        {"family": "text-classification", "tasks": {name: {"data": {"train": name}} for name in "ab"}},
    ],
)
def test_a_recipe_survives_its_own_json(table: dict[str, Any]) -> None:
    recipe = parse(table)
    assert parse(recipe.model_dump(mode="json")) == recipe


def test_a_strict_recipe_tolerates_nothing_in_any_data_set() -> None:
    tasks = {name: {"data": {"train": f"{name}.tsv"}} for name in "ab"}
    recipe = parse({"family": "text-classification", "tasks": tasks}).strict
    assert [part.data.tolerance for part in recipe.parts.values() if part.data] == [0, 0]
    assert parse(SMALL).strict == parse(SMALL | {"data": {"train": "train.tsv", "tolerance": 0}})


def test_a_source_is_named_by_its_path_or_place_on_the_hub() -> None:
    sources = [{"path": "a/b.tsv"}, {"hub": "super_glue", "config": "rte"}, {"hub": "squad", "split": "validation"}]
    named = [Source.model_validate(source).name for source in sources]
    assert named == ["a/b.tsv", "hub:super_glue/rte/train", "hub:squad/validation"]


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
    assert recipe.data is not None
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
    models = Section.__subclasses__()
    bare = [f"{m.__name__}.{n}" for m in models for n, field in m.model_fields.items() if not field.description]
    assert (bare, Recipe in models, len(models) > 9) == ([], True, True)


EXAMPLES = [
    *(ROOT / "examples" / "recipes").glob("*.toml"),
    *(ROOT / "examples" / "recipes" / "ablations").glob("*.toml"),
]


@pytest.mark.parametrize("path", sorted(EXAMPLES), ids=lambda path: path.stem)
def test_every_example_recipe_is_valid(path: Path) -> None:
    assert load(path).backbone == "minilm"


def test_a_field_of_a_source_that_is_a_plain_path_can_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('family = "text-classification"\n[data]\ntrain = "rows.tsv"\n')
    data = load(tmp_path / "recipe.toml", ["data.train.limit=64"]).data
    assert data is not None
    assert (data.train.path, data.train.limit) == ("rows.tsv", 64)
