"""Bad rows and wrong files: what the user is told, and how many rows are left out."""

from __future__ import annotations

import gzip
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers import Reading, read
from prefixbank.trainer.readers.propositions import read_propositions
from prefixbank.trainer.readers.squad import read_questions
from prefixbank.trainer.recipe import parse

if TYPE_CHECKING:
    from pathlib import Path

TEXTS, WORDS = "text-classification", "token-classification"


def read_file(path: Path, family: str = TEXTS, **fields: Any) -> Reading[Any]:
    recipe = parse({"family": family, "data": {"train": path.name, **fields}})
    return read(recipe, recipe.data.train, path.parent)


def tsv(tmp_path: Path, bad: int, good: int, line: str = "no label") -> Path:
    path = tmp_path / "rows.tsv"
    lines = ["text\tlabel", *[line] * bad, *[f"row {n}\tx" for n in range(good)]]
    path.write_text("\n".join(lines) + "\n", "utf-8", "surrogateescape")
    return path


def test_one_bad_row_in_a_hundred_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tsv(tmp_path, bad=1, good=99)
    with caplog.at_level(logging.WARNING):
        reading = read_file(path)
    assert len(reading.rows) == 99
    assert [str(fault) for fault in reading.skipped] == [
        f"{path}:2: found 1 columns, wanted 2 as in the first line",
    ]
    assert caplog.messages == [f"{path}: left out 1 of 100 rows as bad. First: {reading.skipped[0]}"]


def test_more_than_the_share_is_refused_with_the_first_few(tmp_path: Path) -> None:
    path = tsv(tmp_path, bad=5, good=95)
    with pytest.raises(InvalidData) as caught:
        read_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: found 5 bad rows of 100, wanted at most 1.00%. First: {path}:2: found 1 col")
    assert [f":{line}:" in message for line in (2, 3, 4, 5)] == [True, True, True, False]
    assert len(read_file(path, tolerance=0.05).rows) == 95


def test_strict_stops_at_the_first_bad_row(tmp_path: Path) -> None:
    path = tsv(tmp_path, bad=1, good=500)
    with pytest.raises(InvalidData, match=r"^\S+rows\.tsv:2: found 1 columns, wanted 2"):
        read_file(path, tolerance=0)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("fine\t", "label: found '', wanted a text"),
        (" \tx", "text: found ' ', wanted a text that is not empty"),
        ("fine\ty", "label: found the label 'y', wanted one of x, z"),
        ("a\tb\tc", "found 3 columns, wanted 2"),
        ("bad \udcff byte\tx", "found bytes that are not UTF-8 at byte 5 of the line"),
    ],
)
def test_every_kind_of_bad_row_is_named_by_line(tmp_path: Path, line: str, problem: str) -> None:
    (fault,) = read_file(tsv(tmp_path, bad=1, good=150, line=line), labels=["x", "z"]).skipped
    assert fault.where.endswith("rows.tsv:2")
    assert fault.problem.startswith(problem)


def read_csv(tmp_path: Path, *bad: str) -> list[str]:
    """The faults of a file of 300 good rows behind some bad ones."""
    lines = ["text,label", *bad, *(f"row {n},x" for n in range(300))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", "utf-8", "surrogateescape")
    reading = read_file(tmp_path / "rows.csv", tolerance=0.5)
    assert [row.texts[0] for row in reading.rows] == [f"row {n}" for n in range(300)]
    return [str(fault).removeprefix(f"{tmp_path}/rows.csv:") for fault in reading.skipped]


def test_bad_rows_of_csv_are_named_by_line(tmp_path: Path) -> None:
    assert read_csv(tmp_path, "a,b,c") == ["2: found 3 columns, wanted 2 as in the first line"]
    assert read_csv(tmp_path, '"a"b,x') == ["2: found no CSV: ',' expected after '\"'"]
    (fault,) = read_csv(tmp_path, "bad \udcff byte,x")
    assert fault.startswith("2: found bytes that are not UTF-8")


def test_a_byte_that_is_no_character_costs_its_own_row_of_csv(tmp_path: Path) -> None:
    faults = read_csv(tmp_path, '"one', "bad \udcff line", 'three",x', '"four', '\udcff five",x')
    problem = "found bytes that are not UTF-8"
    assert faults == [f"{line}: {problem}" for line in range(2, 7)]


def test_an_empty_line_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("\ntext\tlabel\n\nfine\tx\n")
    assert [row.texts for row in read_file(tmp_path / "a.tsv").rows] == [("fine",)]


def test_every_line_that_an_open_quote_swallows_is_counted(tmp_path: Path) -> None:
    faults = read_csv(tmp_path, '"open,x', "fine,x", '"closed" by chance,x')
    assert [fault.split(":")[0] for fault in faults] == ["2", "3", "4"]
    (tmp_path / "rows.csv").write_text("text,label\n" + "fine,x\n" * 300 + '"open,x\n' + "fine,x\n" * 99)
    with pytest.raises(InvalidData, match=r"found 100 bad rows of 400, wanted at most 1\.00%"):
        read_file(tmp_path / "rows.csv")


def test_a_slice_counts_bad_rows_in_their_place(tmp_path: Path) -> None:
    path = tsv(tmp_path, bad=2, good=300)
    reading = read_file(path, train={"path": path.name, "rows": [1, 201]})
    assert len(reading.rows) == 199
    assert reading.rows[0].texts == ("row 0",)
    assert len(reading.skipped) == 1


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.tsv", b"", "found no rows: the file is empty"),
        ("a.jsonl", b"", "found no rows: the file is empty"),
        ("a.json", b"", "found no rows: the file is empty"),
        ("a.tsv", b"text\tlabel\n", "found no rows"),
        ("a.jsonl", b"\n\n", "found no rows"),
        ("a.json", b"[]", "found no rows"),
        ("a.tsv", gzip.compress(b"text\tlabel\nfine\tx\n", mtime=0), "found a gzip archive, wanted UTF-8 text"),
        ("a.tsv", "text\tlabel\nfine\tx\n".encode("utf-16"), "found UTF-16 text, wanted UTF-8 text"),
        ("a.tsv", b"text\tlabel\n\0\0\0\n", "found a binary file (a zero at byte 12), wanted UTF-8 text"),
        ("a.csv", b"text,label\ra,x\rb,y\r", "found lines that end in a carriage return alone, wanted line feeds"),
        ("a.csv", b"text,\rlabel\na,x\n", "found no CSV in the first line: "),
        ("a.jsonl", b"PAR1....", "found a Parquet file, wanted UTF-8 text"),
        ("a.jsonl", b"text\tlabel\nfine\tx\n", "found no good row among 2, is it of another format? First: "),
        ("a.tsv", b'{"text": "a", "label": "x"}\n' * 9, "found no good row among 8, is it of another format? First: "),
        ("a.json", b"text\tlabel\n", ":1: found no JSON: "),
        ("a.json", b'[{"text": "a",\n"label": }]', ":2: found no JSON: "),
        ("a.json", b'[{"text":\n "\xff"}]', ":2: found bytes that are not UTF-8"),
        ("a.json", b"[" * 100_000, ":1: found no JSON: "),
        ("a.txt", b"text\tlabel\nfine\tx\n", "would be read as CoNLL columns, wanted data.format tsv, csv"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidData) as caught:
        read_file(tmp_path / name)
    assert f"{name}: {problem}" in str(caught.value) or f"{name}{problem}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["folder.tsv", "folder.json", "folder.conll"])
def test_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InvalidData, match="found a folder, wanted a file"):
        read_file(tmp_path / name, WORDS, text=["tokens"])


def conll(tmp_path: Path, first: bytes) -> Path:
    path = tmp_path / "rows.conll"
    path.write_bytes(b"EU\tB-ORG\n\n" + first + b"\n\n" + b"word\tO\nmore\tO\n\n" * 199)
    return path


@pytest.mark.parametrize(
    ("lines", "line", "problem"),
    [
        (b"fine\tO\nalone", 4, "found 1 columns, wanted 2 as in line 1"),
        (b"fine\tO\tO", 3, "found 3 columns, wanted 2 as in line 1"),
        (b"fine\tO\n\xff\tO\nmore\tO", 4, "found bytes that are not UTF-8 at byte 1 of the line"),
        (b"fine\tX-ORG", 3, "found tag 'X-ORG', wanted O or B-, I- and a type"),
        (b"fine\tB-LOC", 3, "found the tag 'B-LOC', wanted one of O, B-ORG, I-ORG"),
        (b"fine\tO\n\tO", 4, "found an empty word"),
    ],
)
def test_a_bad_line_costs_its_sentence(tmp_path: Path, lines: bytes, line: int, problem: str) -> None:
    reading = read_file(conll(tmp_path, lines), WORDS, text=["words"], labels=["O", "B-ORG", "I-ORG"])
    assert len(reading.rows) == 200
    assert [(fault.where.rsplit(":", 1)[1], fault.problem) for fault in reading.skipped] == [(str(line), problem)]


def squad(tmp_path: Path, *odd: object, context: object = "Oslo is in Norway.") -> Path:
    good = [{"id": str(n), "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 0}]} for n in range(300)]
    paragraphs = [{"context": "Oslo.", "qas": good}, {"context": context, "qas": list(odd)}]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def question(**fields: object) -> dict[str, object]:
    return {"id": "odd", "question": "Where?", "answers": [{"text": "Norway", "answer_start": 11}]} | fields


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        (question(answers=[{"text": "Norway", "answer_start": 10}]), "answers: found ' Norwa' at character 10"),
        (question(answers=[{"text": "Norway", "answer_start": -1}]), "answers: found 'Oslo i' at character -1"),
        (question(answers=[{"text": "Norway", "answer_start": 99}]), "answers: found '' at character 99"),
        (question(answers=[{"text": "", "answer_start": 0}]), "answers: found {'text': ''"),
        (question(answers=[{"text": "Oslo"}]), "answers: found {'text': 'Oslo'}, wanted a text that is not empty"),
        (question(answers=["Oslo"]), "answers: found 'Oslo'"),
        (question(answers=None), "answers: found None, wanted a list"),
        (question(question=" "), "question: found ' ', wanted a text that is not empty"),
        (question(question="\ud800"), "question: found a lone surrogate"),
        ("Where?", "found 'Where?', wanted an object"),
    ],
)
def test_a_bad_question_is_named_by_its_id(tmp_path: Path, odd: object, problem: str) -> None:
    reading = read_questions(squad(tmp_path, odd))
    assert len(reading.rows) == 300
    (fault,) = reading.skipped
    assert fault.where.endswith("squad.json: question 'odd'" if isinstance(odd, dict) else "squad.json: question 0")
    assert fault.problem.startswith(problem)


def test_an_empty_context_costs_its_questions(tmp_path: Path) -> None:
    reading = read_questions(squad(tmp_path, question(), context=""))
    assert reading.skipped[0].problem == "context: found '', wanted a text that is not empty"


@pytest.mark.parametrize("content", ["[]", "{}", '{"data": {}}', '{"data": [1]}', '{"data": [{"paragraphs": [{}]}]}'])
def test_json_that_is_no_squad_is_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InvalidData, match=r"a\.json: found no list '\w+' in the [\w ]+, wanted SQuAD"):
        read_questions(tmp_path / "a.json")


PURR = "d\t0\t1\tpurr\tV\t*\tpurr\tpurr.01\t(V*)"
GOOD = f"d\t0\t0\tcats\tN\t*\t-\t-\t(ARG0*)\n{PURR}\n\n"


@pytest.mark.parametrize(
    ("lines", "place", "problem"),
    [
        (f"d\t0\t0\tcats\tN\t*\t-\t-\t(A*\n{PURR}", 1, "column 9: found '(V*)' inside 'A'"),
        (f"d\t0\t0\tcats\tN\t*\t-\t-\t*)\n{PURR}", 1, "column 9: found '*)', wanted no end"),
        ("d\t0\t0\tcats\tN\t*\t-\t-\t(A*", 1, "column 9: found no end of 'A'"),
        ("d\t0\t0\tcats\tN\t*\t-\t-\tARG0", 1, "column 9: found 'ARG0', wanted *, (X*, *) or (X*)"),
        ("d\t0\t0\tcats\tN\t*\t-\t-\t(A*)", 1, "column 9: found no predicate, wanted (V*)"),
        ("d\t0\t0\t\u00a0\tN\t*\t-\t-\t(V*)", 1, "column 9: found the predicate '\\xa0', wanted a word"),
        ("d\t0\t0\tcats\tN\t*\t-\t-\t*\nd\t0\t1\tpurr\tV", 2, "found 5 columns, wanted 9 as in line 1"),
        ("cats\tN", 1, "found 2 columns, wanted 8 and one more for each predicate"),
    ],
)  # fmt: skip
def test_a_bad_proposition_is_named_by_line(tmp_path: Path, lines: str, place: int, problem: str) -> None:
    path = tmp_path / "a.gold_conll"
    path.write_text(lines + "\n\n" + GOOD * 200)
    reading = read_propositions(path)
    assert len(reading.rows) == 200
    assert [fault.where for fault in reading.skipped] == [f"{path}:{place}"]
    assert reading.skipped[0].problem.startswith(problem)
