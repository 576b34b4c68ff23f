"""Data sets of the hub: labels by their names, every family that has tables, and what is said when there is none.

A stand-in for the `datasets` library answers here; where the library is installed, it reads a folder too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers import TextExample, WordsExample, read, read_splits
from prefixbank.trainer.readers.examples import AnswerSpan, ChoicesExample
from prefixbank.trainer.readers.hub import EXPORT
from prefixbank.trainer.recipe import parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class Value:
    """A feature without names."""

    dtype: str = "string"


@dataclass
class ClassLabel:
    names: list[str]


@dataclass
class List:
    feature: Any


@dataclass
class Columns:
    """A split."""

    rows: list[dict[str, Any]]
    features: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


class DatasetsError(Exception):
    """What the library's own errors derive from."""


class Hub(ModuleType):
    """The library: one data set, and how it was asked for."""

    exceptions = SimpleNamespace(DatasetsError=DatasetsError)

    def __init__(self, found: Columns | Exception) -> None:
        super().__init__("datasets")
        self.found = found
        self.asked: list[tuple[Any, ...]] = []

    def load_dataset(
        self, place: str, name: str | None = None, *, data_dir: str | None = None, split: str, revision: str | None
    ) -> Columns:
        self.asked.append((place, name if data_dir is None else f"folder {data_dir}", split, revision))
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def installed(monkeypatch: pytest.MonkeyPatch, found: Columns | Exception) -> Hub:
    hub = Hub(found)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    return hub


def rows_of(tmp_path: Path, family: str, source: dict[str, Any], **data: Any) -> list[Any]:
    recipe = parse({"family": family, "data": {"train": source, **data}})
    assert recipe.data is not None
    return list(read(recipe, recipe.data.train, tmp_path).rows)


def test_numbered_labels_get_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"premise": "p", "hypothesis": "h", "label": 1}, {"premise": "q", "hypothesis": "i", "label": 0}]
    hub = installed(monkeypatch, Columns(rows, {"premise": Value(), "label": ClassLabel(["entailment", "neutral"])}))
    source = {"hub": "super_glue", "config": "cb", "split": "validation", "revision": "abc"}
    fields: dict[str, Any] = {"text": ["premise", "hypothesis"], "rename": {"neutral": "maybe"}}
    assert rows_of(tmp_path, "text-classification", source, **fields) == [
        TextExample(("p", "h"), "maybe", "hub:super_glue/cb/validation@abc:1"),
        TextExample(("q", "i"), "entailment", "hub:super_glue/cb/validation@abc:2"),
    ]
    assert hub.asked == [("super_glue", "cb", "validation", "abc")]


def test_rows_without_a_label_are_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub writes -1 where a test split has no labels."""
    features = {"label": ClassLabel(["a", "b"])}
    installed(monkeypatch, Columns([{"text": "x", "label": -1}], features))
    with pytest.raises(InvalidData, match=r"^hub:glue/train: found no good row.*hub:glue/train:1: label: found None"):
        rows_of(tmp_path, "text-classification", {"hub": "glue"})


@pytest.mark.parametrize(
    ("tags", "feature", "rename"),
    [
        ([1, 2, 0], List(ClassLabel(["O", "B-PER", "I-PER"])), {}),
        ([1, 2, 0], List(Value("int64")), {"0": "O", "1": "B-PER", "2": "I-PER"}),
        (["B-PER", "I-PER", "O"], List(Value()), {}),
    ],
)
def test_numbered_tags_get_their_names(
    tags: list[Any], feature: Any, rename: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"tokens": ["Maria", "Lopez", "flew"], "ner_tags": tags}]
    installed(monkeypatch, Columns(rows, {"tokens": List(Value()), "ner_tags": feature}))
    fields: dict[str, Any] = {"text": ["tokens"], "label": "ner_tags", "rename": rename}
    (row,) = rows_of(tmp_path, "token-classification", {"hub": "conll2003"}, **fields)
    assert row == WordsExample(("Maria", "Lopez", "flew"), ("B-PER", "I-PER", "O"), "hub:conll2003/train:1")


def test_questions_and_choices_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"text": ["Oslo"], "answer_start": [3]}
    installed(monkeypatch, Columns([{"id": "q", "question": "Where?", "context": "In Oslo.", "answers": answers}]))
    (question,) = rows_of(tmp_path, "question-answering", {"hub": "squad"})
    assert (question.answers, question.name) == ((AnswerSpan("Oslo", 3),), "q")
    copa = {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 1}
    installed(monkeypatch, Columns([copa], {"label": ClassLabel(["choice1", "choice2"])}))
    fields: dict[str, Any] = {"text": ["premise", "choice1", "choice2"], "question": "question"}
    (choice,) = rows_of(tmp_path, "multiple-choice", {"hub": "super_glue", "config": "copa"}, **fields)
    assert choice == ChoicesExample("p", ("a", "b"), "because", 1, "hub:super_glue/copa/train:1")


def test_roles_are_not_in_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, Columns([]))
    with pytest.raises(InvalidData, match="hub:x/train: roles are read from files of props"):
        rows_of(tmp_path, "semantic-role-labeling", {"hub": "x"})


def test_a_folder_beside_the_recipe_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = installed(monkeypatch, Columns([{"text": "x", "label": "a"}]))
    (tmp_path / "mine").mkdir()
    rows_of(tmp_path, "text-classification", {"hub": "mine"})
    assert hub.asked == [(str(tmp_path / "mine"), None, "train", None)]


def test_the_digest_is_that_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for last in ("a", "a", "b"):
        installed(monkeypatch, Columns([{"text": f"row {n}", "label": last} for n in range(20)]))
        recipe = parse({"family": "text-classification", "data": {"train": {"hub": "mine"}}})
        digests.append(read_splits(recipe, tmp_path).files["hub:mine/train"])
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            FileNotFoundError("Dataset 'none' doesn't exist on the Hub\nmore"),
            "Dataset 'none' doesn't exist on the Hub$",
        ),
        (RuntimeError("Dataset scripts are no longer supported, but found a.py"), "refs/convert/parquet"),
        (ValueError('Unknown split "dev". Should be one of'), "Unknown split"),
        (DatasetsError("An error occurred while generating the dataset"), "while generating"),
    ],
)
def test_what_the_hub_lacks_is_told_in_one_sentence(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, error)
    with pytest.raises(InvalidData, match=f"^hub:none/train: .*{words}"):
        rows_of(tmp_path, "text-classification", {"hub": "none"})


def test_a_row_without_a_list_of_labels_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [{"tokens": ["Oslo"], "tags": [1]}] * 200 + [{"tokens": ["a"], "tags": None}]
    installed(monkeypatch, Columns(rows, {"tags": List(ClassLabel(["O", "B-LOC"]))}))
    found = rows_of(tmp_path, "token-classification", {"hub": "x"}, text=["tokens"], label="tags")
    assert [row.tags for row in found] == [("B-LOC",)] * 200


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidData, match=r"hub:glue/train: .*pip install prefixbank\[hub\]"):
        rows_of(tmp_path, "text-classification", {"hub": "glue"})


CARD = """---
dataset_info:
  features:
  - name: tokens
    list: string
  - name: tags
    list:
      class_label:
        names:
          '0': O
          '1': B-PER
---
"""


def test_a_configuration_of_the_hubs_export_is_a_folder_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = installed(monkeypatch, Columns([{"text": "good", "label": 1}], {"label": ClassLabel(["no", "yes"])}))
    source = {"hub": "aps/super_glue", "config": "boolq", "revision": EXPORT}
    assert rows_of(tmp_path, "text-classification", source)[0].label == "yes"
    assert hub.asked == [("aps/super_glue", "folder boolq", "train", EXPORT)]


def test_the_library_itself_reads_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    pytest.importorskip("datasets", reason="pip install prefixbank[hub]")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "train.jsonl").write_text(
        '{"tokens": ["Maria", "flew"], "tags": [1, 0]}\n{"tokens": ["no"], "tags": [0]}'
    )
    (first, second) = rows_of(tmp_path, "token-classification", {"hub": "mine"}, text=["tokens"], label="tags")
    assert (first.tags, second.tags) == (("B-PER", "O"), ("O",))
    with pytest.raises(InvalidData, match=r"^hub:mine/dev: .*dev"):
        rows_of(tmp_path, "token-classification", {"hub": "mine", "split": "dev"})
