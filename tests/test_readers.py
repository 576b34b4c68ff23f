"""Readers: what each format yields, and bad rows refused by file and line."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers import Example, Splits, TextExample, WordsExample, iob2, read_splits
from prefixbank.trainer.recipe import parse


def read(tmp_path: Path, name: str, content: str, family: str = "text-classification", **fields: Any) -> list[Example]:
    (tmp_path / name).write_text(content, encoding="utf-8")
    fields = {"train": name, "validation": name, **fields}
    return read_splits(parse({"family": family, "data": fields}), tmp_path).train


def words(tmp_path: Path, content: str, name: str = "rows.conll", **fields: Any) -> list[Example]:
    return read(tmp_path, name, content, "token-classification", **fields)


def test_tsv_reads_the_named_columns(tmp_path: Path) -> None:
    text = "index\tpremise\thypothesis\tlabel\n0\tIt rains.\tIt is wet.\t1\n"
    rows = read(tmp_path, "a.tsv", text, text=["premise", "hypothesis"], rename={"1": "entails"})
    assert rows == [TextExample(("It rains.", "It is wet."), "entails", "a.tsv:2")]


def test_blanks_around_labels_and_names_are_no_part_of_them(tmp_path: Path) -> None:
    text = "text , label\ngood a, pos\nbad b,neg \n"
    assert [row.label for row in read(tmp_path, "a.csv", text) if isinstance(row, TextExample)] == ["pos", "neg"]
    with pytest.raises(InvalidData, match="wanted a text, a whole number or a boolean"):
        read(tmp_path, "a.tsv", "text\tlabel\na\t \n")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"a\.tsv:1: found the column 'text' twice"):
        read(tmp_path, "a.tsv", "text\ttext\tlabel\na\tb\tx\n")
    assert len(read(tmp_path, "b.tsv", "text\t\t\tlabel\na\t\t\tx\n")) == 1, "empty cells name nothing"


def test_templates_name_columns_of_tables_without_a_header(tmp_path: Path) -> None:
    rows = read(tmp_path, "a.tsv", "a\tb\tx\nc\td\ty\n", text=["{0}: {1}"], label="2")
    assert [row.texts for row in rows if isinstance(row, TextExample)] == [("a: b",), ("c: d",)]


def test_choices_may_be_put_together(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"text": ["{start} {more}", "one", "two"], "label": "right"}
    row = {"start": "He", "more": "sat", "one": "down", "two": "up", "right": 1}
    (found,) = read(tmp_path, "a.jsonl", json.dumps(row) + "\n", "multiple-choice", **fields)
    assert (found.premise, found.choices, found.right) == ("He sat", ("down", "up"), 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("right", ["9" * 5000, "2", "-1", "one more"])
def test_a_choice_that_is_none_is_refused(right: str, tmp_path: Path) -> None:
    row = {"premise": "p", "choice1": "a", "choice2": "b", "label": right}
    with pytest.raises(InvalidData, match="wanted a number from 0 to 1"):
        read(tmp_path, "a.jsonl", json.dumps(row) + "\n", "multiple-choice", text=["premise", "choice1", "choice2"])


def test_a_tsv_file_of_words_has_a_word_a_line(tmp_path: Path) -> None:
    assert words(tmp_path, "Maria\tB-PER\nsings\tO\n\nOslo\tB-LOC\n", "a.tsv") == [
        WordsExample(("Maria", "sings"), ("B-PER", "O"), "a.tsv:1"),
        WordsExample(("Oslo",), ("B-LOC",), "a.tsv:4"),
    ]


def test_tsv_does_not_unquote(tmp_path: Path) -> None:
    assert read(tmp_path, "a.tsv", 'text\tlabel\n"he said\tx\n') == [TextExample(('"he said',), "x", "a.tsv:2")]


def test_jsonl_labels_may_be_booleans_and_numbers(tmp_path: Path) -> None:
    text = '{"text": "a", "label": true}\n\n{"text": "b", "label": 3}\n'
    assert read(tmp_path, "a.jsonl", text) == [
        TextExample(("a",), "true", "a.jsonl:1"),
        TextExample(("b",), "3", "a.jsonl:3"),
    ]


def test_conll_reads_any_column_and_skips_document_marks(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O O\n\nEU NNP I-ORG x\nrejects VBZ O x\n\nPeter NNP I-PER x\n"
    rows = words(tmp_path, text, tag_column=2, scheme="iob1")
    assert rows == [
        WordsExample(("EU", "rejects"), ("B-ORG", "O"), "rows.conll:3"),
        WordsExample(("Peter",), ("B-PER",), "rows.conll:6"),
    ]


def test_conll_words_may_hold_blanks_when_columns_are_tabs(tmp_path: Path) -> None:
    assert words(tmp_path, "New York\tB-loc\n") == [WordsExample(("New York",), ("B-loc",), "rows.conll:1")]


def test_json_lists_are_read_with_bilou(tmp_path: Path) -> None:
    rows = [{"tokens": ["In", "Rio", "de", "Janeiro"], "tags": ["O", "B-Loc", "I-Loc", "L-Loc"]}]
    fields: dict[str, Any] = {"text": ["tokens"], "label": "tags", "scheme": "bilou", "rename": {"Loc": "place"}}
    found = words(tmp_path, json.dumps(rows), "rows.json", **fields)
    assert found == [
        WordsExample(("In", "Rio", "de", "Janeiro"), ("O", "B-place", "I-place", "I-place"), "rows.json:1")
    ]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.tsv", "text\tlabel\nfine\tx\nno label\n", [":3:", "1 columns", "wanted 2"]),
        ("a.tsv", "text\tclass\nfine\tx\n", [":2:", "no field 'label'"]),
        ("a.tsv", "text\tlabel\n \tx\n", [":2:", "text", "not empty"]),
        ("a.tsv", "text\tlabel\nfine\t\n", [":2:", "label", "''"]),
        ("a.tsv", "", ["no rows"]),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": \n', [":2:", "no JSON"]),
        ("a.jsonl", "[1]\n", [":1:", "list", "wanted an object"]),
        ("a.jsonl", '{"text": 7, "label": "x"}\n', [":1:", "text", "7"]),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', [":1:", "label", "0.5"]),
        ("a.json", '{"text": "a"}', ["dict", "wanted a list"]),
    ],
)
def test_a_bad_text_row_is_refused_by_file_and_line(tmp_path: Path, name: str, text: str, parts: list[str]) -> None:
    with pytest.raises(InvalidData) as caught:
        read(tmp_path, name, text)
    assert [word for word in [name, *parts] if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a\tO\nb\n", [":2:", "1 columns"]),
        ("a\tO\nb\tX-PER\n", [":1:", "'X-PER'"]),
        ("a\tB-\n", [":1:", "'B-'"]),
        ("a\tL-PER\n", [":1:", "'L-PER'"]),
    ],
)
def test_a_bad_sentence_is_refused_by_file_and_line(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(InvalidData) as caught:
        words(tmp_path, text)
    assert [word for word in parts if word not in str(caught.value)] == []


def test_words_and_tags_of_different_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"a\.jsonl:1: found 2 words and 1 tags"):
        words(tmp_path, '{"words": ["a", "b"], "label": ["O"]}', "a.jsonl", text=["words"])


def test_an_absent_file_is_refused_by_path(tmp_path: Path) -> None:
    recipe = parse({"family": "text-classification", "data": {"train": "none.tsv"}})
    with pytest.raises(InvalidData, match=r"none\.tsv: cannot be read"):
        read_splits(recipe, tmp_path)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\n\xff\tx\n")
    with pytest.raises(InvalidData, match="not UTF-8"):
        read_splits(parse({"family": "text-classification", "data": {"train": "a.tsv"}}), tmp_path)


def splits(tmp_path: Path, count: int = 40, **fields: Any) -> Splits:
    (tmp_path / "n.tsv").write_text("text\tlabel\n" + "".join(f"row {n}\tx\n" for n in range(count)))
    return read_splits(parse({"family": "text-classification", "data": {"train": "n.tsv"} | fields}), tmp_path)


def test_slices_cut_one_file_by_row_order(tmp_path: Path) -> None:
    found = splits(
        tmp_path, train={"path": "n.tsv", "rows": [0, 30]}, test={"path": "n.tsv", "rows": [30, 40]}, carve=5
    )
    assert [len(rows) for rows in (found.train, found.validation, found.test)] == [25, 5, 10]
    assert found.test[0].where == "n.tsv:32"


def test_test_rows_are_carved_where_there_is_no_test_file(tmp_path: Path) -> None:
    found = splits(tmp_path, carve=5, carve_test=0.2)
    assert (len(found.train), len(found.validation), len(found.test)) == (27, 5, 8)
    assert {row.where for row in found.train}.isdisjoint(row.where for row in [*found.validation, *found.test])
    assert len(splits(tmp_path, carve=5, carve_test=0.2, test="n.tsv").test) == 40


def test_carved_rows_are_no_training_rows_and_follow_the_seed(tmp_path: Path) -> None:
    found = splits(tmp_path, carve=0.25)
    assert len(found.validation) == 10
    assert not set(found.validation) & set(found.train)
    assert found == splits(tmp_path, carve=0.25)


def test_carving_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="cannot carve 40 rows from 40"):
        splits(tmp_path, carve=40)


def test_a_limit_draws_rows_by_the_seed(tmp_path: Path) -> None:
    found = splits(tmp_path, train={"path": "n.tsv", "limit": 8}, carve=2)
    assert len(found.train) + len(found.validation) == 8


def test_iob2_starts_a_span_that_begins_inside() -> None:
    assert iob2(["I-a", "I-a", "O", "I-b", "I-a"], "iob2") == ("B-a", "I-a", "O", "B-b", "B-a")


@pytest.mark.parametrize("tag", ["-ORG", "BI-PER", "B-", "-", "X-ORG", "-LRB-"])
@pytest.mark.parametrize("scheme", ["iob1", "iob2", "bilou", "iobes"])
def test_a_tag_of_no_scheme_is_refused(tag: str, scheme: str) -> None:
    with pytest.raises(ValueError, match="found tag"):
        iob2(["O", tag], scheme)


def test_bilou_ends_a_span_after_its_last_word() -> None:
    assert iob2(["U-a", "I-a", "L-a", "I-a"], "bilou") == ("B-a", "B-a", "I-a", "B-a")


def test_iob1_begins_only_between_neighbours() -> None:
    assert iob2(["I-a", "B-a", "I-a", "O"], "iob1") == ("B-a", "B-a", "I-a", "O")


@given(st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"])))
def test_rewriting_iob2_twice_changes_nothing(tags: list[str]) -> None:
    once = iob2(tags, "iob2")
    assert iob2(once, "iob2") == once
    assert iob2(once, "iob1") == once


def test_real_files_are_read(shared_data: Path) -> None:
    wnut = "ner/wnut17"
    names = {"train": "wnut17train.conll", "validation": "emerging.dev.conll", "test": "emerging.test.annotated"}
    table = {"family": "token-classification", "data": {key: f"{wnut}/{name}" for key, name in names.items()}}
    found = read_splits(parse(table), shared_data)
    assert [len(rows) for rows in (found.train, found.validation, found.test)] == [3394, 1009, 1287]
    starts = Counter(tag for row in found.test if isinstance(row, WordsExample) for tag in row.tags if tag[0] == "B")
    assert starts["B-person"] == 429
