"""What a recipe names is read in the format of its family; what goes wrong is told by file and line, or left out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.families import family_for
from prefixbank.trainer.readers import Reading, read, read_splits
from prefixbank.trainer.readers.examples import ChoicesExample, PropositionExample, QuestionExample
from prefixbank.trainer.recipe import parse
from tests.tiny import tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

QUESTIONS, ROLES, CHOICES = "question-answering", "semantic-role-labeling", "multiple-choice"


def recipe_of(family: str, train: Any, head: dict[str, Any] | None = None, **data: Any) -> Any:
    return parse({"family": family, "data": {"train": train, **data}, "head": head or {}})


def read_as(folder: Path, family: str, train: Any, **more: Any) -> Reading[Any]:
    recipe = recipe_of(family, train, **more)
    return read(recipe, recipe.data.train, folder)


def written(folder: Path, name: str, *lines: str) -> str:
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return name


def test_questions_of_a_recipe_are_squad(tmp_path: Path) -> None:
    asked = {"id": "q", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 3}]}
    content = json.dumps({"data": [{"paragraphs": [{"context": "In Oslo.", "qas": [asked] * 3}]}]})
    found = read_as(tmp_path, QUESTIONS, {"path": written(tmp_path, "dev.json", content), "rows": [1, 3]}).rows
    assert [type(row) for row in found] == [QuestionExample] * 2


def test_questions_about_one_text_are_carved_together(tmp_path: Path) -> None:
    asked = [{"id": f"q{n}", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 3}]} for n in range(7)]
    paragraphs = [{"context": f"In Oslo, {n}.", "qas": asked} for n in range(10)]
    name = written(tmp_path, "train.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
    splits = read_splits(recipe_of(QUESTIONS, name, carve=10), tmp_path)
    assert (len(splits.train), len(splits.validation)) == (56, 14)
    assert not {row.context for row in splits.train} & {row.context for row in splits.validation}
    written(tmp_path, "train.json", json.dumps({"data": [{"paragraphs": paragraphs[:1]}]}))
    with pytest.raises(InvalidData, match="7 training rows that belong together"):
        read_splits(recipe_of(QUESTIONS, name), tmp_path)


@pytest.mark.parametrize(
    ("layout", "lines"),
    [
        ("propbank", ["d 0 0 Tom N * - - (ARG0*)", "d 0 1 ran V * run run.01 (V*)"]),
        ("conll2012", ["d 0 0 Tom N * - - - - - (ARG0*) -", "d 0 1 ran V * run 01 1 - - (V*) -"]),
        ("tagged", ["1 Tom ran ||| B-ARG0 B-V"]),
    ],
)
def test_roles_of_a_recipe_come_in_the_layout_it_names(layout: str, lines: list[str], tmp_path: Path) -> None:
    (row,) = read_as(tmp_path, ROLES, written(tmp_path, "props", *lines), layout=layout).rows
    assert (row.words, row.tags, row.predicate) == (("Tom", "ran"), ("B-ARG0", "B-V"), 1)


def test_words_may_lie_beside_the_props(tmp_path: Path) -> None:
    written(tmp_path, "words", "Tom N", "ran V")
    source = {"path": written(tmp_path, "props", "- (A0*)", "run (V*)"), "words": "words"}
    recipe = recipe_of(ROLES, source, layout="conll2005", validation=source)
    splits = read_splits(recipe, tmp_path)
    assert splits.train == [PropositionExample(("Tom", "ran"), ("B-A0", "B-V"), 1, 0, "props:1")]
    written(tmp_path, "words", "Tim N", "ran V")
    assert read_splits(recipe, tmp_path).files["props with words"] != splits.files["props with words"]


def test_props_without_their_words_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "props", "- (A0* (A0*", "- *) *)", "sit (V*) *", "stand * (V*)")
    with pytest.raises(InvalidData, match=r"found brackets in column 2, wanted the predicates: is words = FILE"):
        read_as(tmp_path, ROLES, "props", layout="conll2005")
    written(tmp_path, "columns", "Tom - (A0*)", "ran run (V*)")
    assert read_as(tmp_path, ROLES, "columns", layout="conll2005").rows[0].words == ("Tom", "ran")


def test_names_of_columns_are_for_tables(tmp_path: Path) -> None:
    written(tmp_path, "a.conll", "Oslo B-LOC")
    for family in ("token-classification", ROLES):
        recipe = recipe_of(family, {"path": "a.conll", "columns": {"a": "b"}})
        with pytest.raises(InvalidData, match=r"a\.conll: found columns = .*only tables have named columns"):
            read_splits(recipe, tmp_path)
    line = {"q": "Where?", "passage": "In Oslo.", "is_impossible": True}
    written(tmp_path, "a.jsonl", *[json.dumps(line)] * 2)
    recipe = recipe_of(QUESTIONS, {"path": "a.jsonl", "columns": {"q": "question", "passage": "context"}}, carve=1)
    with pytest.raises(InvalidData, match="belong together"):
        read_splits(recipe, tmp_path)


def test_choices_of_a_recipe_are_premise_and_choices(tmp_path: Path) -> None:
    row = {"premise": "p", "choice1": "a", "choice2": "b", "question": "effect", "label": 1}
    name = written(tmp_path, "copa.jsonl", json.dumps(row))
    fields: dict[str, Any] = {"text": ["premise", "choice1", "choice2"]}
    assert read_as(tmp_path, CHOICES, name, question="question", **fields).rows == [
        ChoicesExample("p", ("a", "b"), "so", 1, "copa.jsonl:1")
    ]
    assert read_as(tmp_path, CHOICES, name, **fields).rows[0].connector == ""
    fields["rename"] = {"1": "0", "2": "choice2"}
    assert read_as(tmp_path, CHOICES, name, **fields).rows[0].right == 0


def test_splits_may_name_their_columns_otherwise(tmp_path: Path) -> None:
    train = written(tmp_path, "a.tsv", "sentence1\tsentence2\tlabel", *["p\th\ta"] * 4)
    row = {"premise": "p", "hypothesis": "h", "gold": "a"}
    columns = {"premise": "sentence1", "hypothesis": "sentence2", "gold": "label"}
    test = {"path": written(tmp_path, "b.jsonl", json.dumps(row)), "columns": columns}
    recipe = recipe_of("text-classification", train, text=["sentence1", "sentence2"], test=test, carve=1)
    splits = read_splits(recipe, tmp_path)
    assert {(row.texts, row.label) for row in (*splits.train, *splits.test)} == {(("p", "h"), "a")}


def test_a_label_without_a_word_is_a_bad_row(tmp_path: Path) -> None:
    head = {"kind": "verbalizer", "template": "{text} {mask}", "words": {"a": "sky", "b": "sea"}}
    name = written(tmp_path, "a.tsv", "text\tlabel", *["x\ta"] * 100, "y\todd")
    reading = read_as(tmp_path, "text-classification", name, head=head)
    assert len(reading.rows) == 100
    assert [str(fault) for fault in reading.skipped] == [
        f"{tmp_path / name}:102: label: found the label 'odd', wanted one of a, b"
    ]


def test_a_text_that_is_too_long_is_a_bad_row(tmp_path: Path) -> None:
    name = written(tmp_path, "a.tsv", "text\tlabel", *["x\ta"] * 100, f"{'y' * 2001}\ta")
    (fault,) = read_as(tmp_path, "text-classification", name, max_characters=2000).skipped
    assert str(fault) == f"{tmp_path / name}:102: found a text of 2001 characters, wanted at most 2000"


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl", "a.json", "a.conll"])
def test_an_empty_file_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    family = "token-classification" if name == "a.conll" else "text-classification"
    with pytest.raises(InvalidData, match=rf"^{tmp_path / name}: found no rows: the file is empty"):
        read_as(tmp_path, family, name)


@pytest.mark.parametrize("family", [QUESTIONS, ROLES])
def test_an_empty_file_of_any_family_is_refused(family: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidData, match=r"empty: found no rows: the file is empty"):
        read_as(tmp_path, family, "empty")


def broken(tmp_path: Path, good: int) -> str:
    sentences = ["Maria B-PER", "flew O", ""] * good
    return written(tmp_path, "a.conll", *sentences, "to O", "Oslo", "B-LOC", "", "in X-LOC", "")


def test_broken_sentences_of_a_conll_file_are_left_out_and_told_by_split(tmp_path: Path) -> None:
    recipe = recipe_of("token-classification", broken(tmp_path, 300))
    splits = read_splits(recipe, tmp_path)
    assert len(splits.train) + len(splits.validation) == 300
    where = tmp_path / "a.conll"
    assert {name: list(map(str, faults)) for name, faults in splits.skipped.items()} == {
        "train": [
            f"{where}:902: found 1 columns, wanted 2 as in line 1",
            f"{where}:905: found tag 'X-LOC', wanted O or B-, I- and a type",
        ]
    }


def test_broken_sentences_beyond_the_share_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"found 2 bad rows of 22, wanted at most 1.00%. First: .*a.conll:62: found"):
        read_as(tmp_path, "token-classification", broken(tmp_path, 20))
    with pytest.raises(InvalidData, match=r"^\S+a.conll:902: found 1 columns"):
        read_as(tmp_path, "token-classification", broken(tmp_path, 300), tolerance=0)


@pytest.mark.parametrize("family", ["text-classification", "token-classification", QUESTIONS, ROLES])
def test_a_row_of_a_hundred_thousand_tokens_is_read_and_cut(family: str, tmp_path: Path) -> None:
    many = 100_000
    words = ["sky"] * many
    long = {
        "text-classification": ("a.tsv", ["text\tlabel", f"{' '.join(words)}\ta", "x\tb"]),
        "token-classification": ("a.conll", [*["sky O"] * (many - 1), "sky B-X"]),
        QUESTIONS: (
            "a.jsonl",
            [json.dumps({"question": "why?", "context": " ".join(words), "answers": {"text": [], "answer_start": []}})],
        ),
        ROLES: ("a.props", [f"{many - 1} {' '.join(words)} ||| {'O ' * (many - 2)}B-A B-V"]),
    }
    name, lines = long[family]
    recipe = recipe_of(family, written(tmp_path, name, *lines), **({"layout": "tagged"} if family == ROLES else {}))
    examples = read(recipe, recipe.data.train, tmp_path).rows

    class Backbone:
        tokenizer = tiny_tokenizer("bert")

    chosen: Any = family_for(recipe, Backbone(), examples)
    labels = chosen.labels(examples, None)
    items = chosen.items(examples, labels, Backbone.tokenizer, chosen.preprocessing(labels), training=True)
    assert items[0].truncated
    assert {max(row.num_tokens for row in item.rows) <= 128 for item in items} == {True}
