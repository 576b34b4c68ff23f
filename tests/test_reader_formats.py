"""What each format yields: GLUE and SuperGLUE tables, bracketed entities, SQuAD, propositions, choices."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers import TextExample, WordsExample, iob2, read
from prefixbank.trainer.readers.choices import ChoiceColumns, read_choices
from prefixbank.trainer.readers.examples import AnswerSpan, ChoicesExample, PropositionExample, QuestionExample
from prefixbank.trainer.readers.propositions import CONLL2005, CONLL2012, read_propositions, read_tagged_lines
from prefixbank.trainer.readers.squad import read_questions
from prefixbank.trainer.recipe import parse

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.trainer.readers.faults import Reading


def texts(folder: Path, name: str, **fields: Any) -> list[TextExample]:
    recipe = parse({"family": "text-classification", "data": {"train": name, **fields}})
    return read(recipe, recipe.data.train, folder).rows


def written(tmp_path: Path, name: str, content: str) -> Path:
    (tmp_path / name).write_text(content, "utf-8")
    return tmp_path / name


def test_a_table_without_a_header_is_read_by_column_numbers(tmp_path: Path) -> None:
    written(tmp_path, "cola.tsv", "gj04\t1\t\tFriends came.\ngj04\t0\t*\tFriends came them.\n")
    rows = texts(tmp_path, "cola.tsv", text=["3"], label="1", rename={"0": "odd", "1": "fine"})
    assert [(row.texts, row.label, row.where) for row in rows] == [
        (("Friends came.",), "fine", "cola.tsv:1"),
        (("Friends came them.",), "odd", "cola.tsv:2"),
    ]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    written(tmp_path, "mrpc.tsv", "\ufeffQuality\t#1 String\n1\ta\n")
    assert texts(tmp_path, "mrpc.tsv", text=["#1 String"], label="Quality")[0].label == "1"


@pytest.mark.parametrize(
    "content",
    [
        "text,label\n'a, b','x'\n'c ''d''\ne','y'\nf,z\n",
        "text;label\r\n'a, b';x\r\n'c ''d''\r\ne';'y'\r\nf;z\r\n\r\n",
        "text\tlabel\na, b\tx\n'c ''d''\ne'\ty\n\nf\tz",
    ],
)
def test_cells_of_csv_may_hold_separators_quotes_and_line_ends(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_bytes(content.replace("'", '"').encode())
    found = [(row.texts, row.label, row.where.split(":")[1]) for row in texts(tmp_path, "a.csv")]
    last = "6" if "\t" in content else "5"
    assert found == [(("a, b",), "x", "2"), (('c "d"\ne',), "y", "3"), (("f",), "z", last)]


def test_csv_without_a_header_is_read_by_column_numbers(tmp_path: Path) -> None:
    written(tmp_path, "a.csv", '7,"one, two"\n8,three\n')
    assert [row.texts for row in texts(tmp_path, "a.csv", text=["1"], label="0")] == [("one, two",), ("three",)]


def test_a_cell_of_csv_may_be_long(tmp_path: Path) -> None:
    written(tmp_path, "a.csv", f"text,label\n{'word ' * 100_000},x\n")
    assert len(texts(tmp_path, "a.csv")[0].texts[0]) == 500_000


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"text\tlabel\r\nfine\tx\r\n")
    assert texts(tmp_path, "a.tsv") == [TextExample(("fine",), "x", "a.tsv:2")]


@pytest.mark.parametrize(
    ("row", "fields", "expected"),
    [
        ({"premise": "p", "hypothesis": "h", "label": "contradiction"}, ["premise", "hypothesis"], ("p", "h")),
        ({"question": "q", "passage": "p", "label": True}, ["question", "passage"], ("q", "p")),
        (
            {"word": "bank", "sentence1": "a", "sentence2": "b", "label": False},
            ["{word}: {sentence1}", "{word}: {sentence2}"],
            ("bank: a", "bank: b"),
        ),
        (
            {"text": "He fell.", "target": {"span1_text": "Tom", "span2_text": "He"}, "label": True},
            ["{target.span2_text}: {text}", "target.span1_text"],
            ("He: He fell.", "Tom"),
        ),
    ],
)  # fmt: skip
def test_superglue_rows_are_read(
    tmp_path: Path, row: dict[str, Any], fields: list[str], expected: tuple[str, ...]
) -> None:
    written(tmp_path, "a.jsonl", json.dumps(row))
    (found,) = texts(tmp_path, "a.jsonl", text=fields)
    assert found.texts == expected


def test_a_template_names_the_field_it_lacks(tmp_path: Path) -> None:
    written(tmp_path, "a.jsonl", '{"text": "a", "target": {}, "label": 1}')
    with pytest.raises(InvalidData, match=r"found no field 'target.span1', wanted it beside text, target, label"):
        texts(tmp_path, "a.jsonl", text=["{target.span1}: {text}"])


@pytest.mark.parametrize(
    ("name", "rows", "fields"),
    [
        ("glue/SST-2/train.tsv", 67349, {"text": ["sentence"]}),
        ("glue/RTE/dev.tsv", 277, {"text": ["sentence1", "sentence2"]}),
        ("boolq/dev.jsonl", 3270, {"text": ["question", "passage"], "label": "answer"}),
        ("mnli/dev_matched.jsonl", 9815, {"text": ["premise", "hypothesis"]}),
        ("mnli/mnli_val_5k.tsv", 5000, {"text": ["sentence1", "sentence2"]}),
    ],
)
def test_real_tables_have_no_bad_row(shared_data: Path, name: str, rows: int, fields: dict[str, Any]) -> None:
    recipe = parse({"family": "text-classification", "data": {"train": name, **fields}})
    reading = read(recipe, recipe.data.train, shared_data)
    assert (len(reading.rows), reading.skipped) == (rows, ())


def test_a_test_file_without_labels_is_refused_in_one_sentence(shared_data: Path) -> None:
    with pytest.raises(InvalidData, match=r"no good row among 1821.*found no field 'label', wanted it beside index"):
        texts(shared_data, "glue/SST-2/test.tsv", text=["sentence"])


@pytest.mark.parametrize(
    ("name", "rows", "fields"),
    [
        ("ner/conll04/conll04_train.json", 922, {"text": ["tokens"], "label": "tags", "scheme": "bilou"}),
        ("ner/wnut17/emerging.test.annotated", 1287, {}),
        ("ner/wikiann_en/dev", 10_000, {"word_prefix": "en:"}),
    ],
)
def test_real_sentences_have_no_bad_row(shared_data: Path, name: str, rows: int, fields: dict[str, Any]) -> None:
    recipe = parse({"family": "token-classification", "data": {"train": name, **fields}})
    reading = read(recipe, recipe.data.train, shared_data)
    assert (len(reading.rows), reading.skipped) == (rows, ())


def test_a_prefix_of_every_word_is_no_part_of_it(tmp_path: Path) -> None:
    written(tmp_path, "a.conll", "en:Rio\tB-LOC\nen::\tO\n\nRio\tB-LOC\n\nen:\tO\n")
    fields = {"train": "a.conll", "word_prefix": "en:", "tolerance": 0.9}
    recipe = parse({"family": "token-classification", "data": fields})
    assert recipe.data is not None
    reading = read(recipe, recipe.data.train, tmp_path)
    assert [row.words for row in reading.rows] == [("Rio", ":")]
    assert [fault.problem for fault in reading.skipped] == [
        "found the word 'Rio', wanted one that begins with 'en:'",
        "found an empty word",
    ]


def test_iobes_and_brackets_are_rewritten() -> None:
    assert iob2(["S-a", "B-a", "E-a", "I-a"], "iobes") == ("B-a", "B-a", "I-a", "B-a")
    assert iob2(["(ORG*", "*", "*)", "*", "(LOC*)", "(LOC*)"], "brackets") == (
        "B-ORG", "I-ORG", "I-ORG", "O", "B-LOC", "B-LOC",
    )  # fmt: skip


def test_ontonotes_columns_are_read_beside_document_marks(tmp_path: Path) -> None:
    lines = ["#begin document (nw/wsj); part 000", "nw/wsj 0 0 EU NNP (TOP* - - - - (ORG*) -", ""]
    written(tmp_path, "a.conll", "\n".join([*lines, "nw/wsj 0 0 Rio NNP * - - - - (GPE*) -", "", "#end document"]))
    fields = {"train": "a.conll", "word_column": 3, "tag_column": 10}
    recipe = parse({"family": "token-classification", "data": fields})
    data = recipe.data.model_copy(update={"scheme": "brackets"})
    found = read(recipe.model_copy(update={"data": data}), data.train, tmp_path).rows
    assert found == [WordsExample(("EU",), ("B-ORG",), "a.conll:2"), WordsExample(("Rio",), ("B-GPE",), "a.conll:4")]


def test_questions_come_with_their_answers_and_paragraph(tmp_path: Path) -> None:
    asked = {"id": "q1", "question": "Where?", "answers": [{"text": "Oslo", "answer_start": 3}]}
    impossible = {"id": "q2", "question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": [{}]}
    paragraphs = [{"context": "In Oslo.", "qas": [asked]}, {"context": "b", "qas": [impossible]}]
    path = written(tmp_path, "a.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
    assert read_questions(path).rows == [
        QuestionExample("Where?", "In Oslo.", (AnswerSpan("Oslo", 3),), "q1", 0, "a.json: q1"),
        QuestionExample("Why?", "b", (), "q2", 1, "a.json: q2"),
    ]
    assert AnswerSpan("Oslo", 3).end == 7


def flat(path: Path) -> Reading[Any]:
    recipe = parse({"family": "question-answering", "data": {"train": path.name}})
    assert recipe.data is not None
    return read(recipe, recipe.data.train, path.parent)


def test_questions_of_the_hub_are_read_line_by_line(tmp_path: Path) -> None:
    answers = [{"text": ["Oslo"], "answer_start": [3]}, {"text": [], "answer_start": []}]
    lines = [{"id": "q", "question": "Where?", "context": "In Oslo.", "answers": answer} for answer in answers]
    path = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert [(row.answers, row.paragraph) for row in flat(path).rows] == [
        ((AnswerSpan("Oslo", 3),), 0),
        ((), 0),
    ]


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        ({"answers": {"text": ["Oslo"], "answer_start": []}}, "answers: found"),
        ({"answers": {"text": ["Oslo"], "answer_start": [0]}}, "answers: found 'In O' at character 0"),
        ({"context": None}, "context: found None"),
    ],
)
def test_a_bad_question_of_the_hub_is_named_by_line(tmp_path: Path, odd: dict[str, object], problem: str) -> None:
    fine = {"id": "q", "question": "Where?", "context": "In Oslo.", "answers": {"text": [], "answer_start": []}}
    path = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, [fine | odd, *[fine] * 120])))
    (fault,) = flat(path).skipped
    assert fault.where.endswith("a.jsonl:1")
    assert fault.problem.startswith(problem)


@pytest.mark.parametrize(
    ("name", "questions", "impossible"),
    [("v1.1/dev-v1.1.json", 10_570, 0), ("v2.0/chrischute-dev-v2.0.json", 6078, 3168)],
)
def test_real_questions_have_no_bad_row(shared_data: Path, name: str, questions: int, impossible: int) -> None:
    reading = read_questions(shared_data / "squad" / name)
    assert (len(reading.rows), reading.skipped) == (questions, ())
    assert sum(not row.answers for row in reading.rows) == impossible


def test_questions_about_one_text_belong_together_wherever_they_stand(tmp_path: Path) -> None:
    paragraphs = [{"context": text, "qas": [{"id": n, "question": "q", "answers": []}]} for n, text in enumerate("aba")]
    path = written(tmp_path, "a.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
    assert [row.paragraph for row in read_questions(path).rows] == [0, 1, 0]


@pytest.mark.parametrize("impossible", ["true", 2, []])
def test_what_is_impossible_is_true_or_false(tmp_path: Path, impossible: object) -> None:
    fine = {"id": "q", "question": "Where?", "context": "In Oslo.", "is_impossible": 1}
    odd = fine | {"is_impossible": impossible}
    path = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, [odd, *[fine] * 120])))
    assert [fault.problem.split(",")[0] for fault in flat(path).skipped] == [f"is_impossible: found {impossible!r}"]


def test_propbank_columns_give_a_row_per_predicate(tmp_path: Path) -> None:
    lines = [
        "d\t0\t0\tcats\tN\t*\t-\t-\t(ARG0*)\t(ARG1*",
        "d\t0\t1\tthat\tW\t*\t-\t-\t(R-ARG0*)\t*",
        "d\t0\t2\tpurr\tV\t*\tpurr\tpurr.01\t(V*)\t*)",
        "d\t0\t3\tcalm\tV\t*\tcalm\tcalm.01\t*\t(V*)",
    ]
    words = ("cats", "that", "purr", "calm")
    assert read_propositions(written(tmp_path, "a", "\n".join(lines))).rows == [
        PropositionExample(words, ("B-ARG0", "B-R-ARG0", "B-V", "O"), 2, 0, "a:1"),
        PropositionExample(words, ("B-ARG1", "I-ARG1", "I-ARG1", "B-V"), 3, 0, "a:1"),
    ]


def test_the_marked_word_of_a_torn_verb_is_the_predicate(tmp_path: Path) -> None:
    """`side - stepping` in PropBank: the verb begins at one word, the roleset stands at another."""
    lines = ["d 0 0 side X * - - (V*)", "d 0 1 stepping X * sidestep sidestep.01 (C-V*)"]
    assert read_propositions(written(tmp_path, "a", "\n".join(lines))).rows[0].predicate == 1
    assert read_propositions(written(tmp_path, "b", "d 0 0 run X * - - (V*)")).rows[0].predicate == 0


def test_conll_2012_columns_are_read(tmp_path: Path) -> None:
    lines = [
        "#begin document (a); part 000",
        "a 0 0 Cats N * - - - - * (ARG0*) -",
        "a 0 1 purr V * purr 01 1 - * (V*) -",
    ]
    (row,) = read_propositions(written(tmp_path, "a", "\n".join([*lines, "", "#end document"])), CONLL2012).rows
    assert (row.words, row.tags, row.predicate) == (("Cats", "purr"), ("B-ARG0", "B-V"), 1)


def test_conll_2005_words_and_props_are_read_side_by_side(tmp_path: Path) -> None:
    words = written(tmp_path, "words", "Cats\npurr\n\nNo\n")
    props = written(tmp_path, "props", "-      (A0*)\npurr   (V*)\n\n-\n")
    (row,) = read_propositions(props, CONLL2005, words=words).rows
    assert (row.words, row.tags, row.predicate) == (("Cats", "purr"), ("B-A0", "B-V"), 1)


@pytest.mark.parametrize(
    ("words", "problem"),
    [("Cats\n", "found 2 lines, wanted 1 as in"), ("Cats\npurr\n\nmore\n", "found another number of sentences than")],
)
def test_words_and_props_that_do_not_go_together_are_refused(tmp_path: Path, words: str, problem: str) -> None:
    props = written(tmp_path, "props", "- (A0*)\npurr (V*)\n")
    with pytest.raises(InvalidData, match=problem):
        read_propositions(props, CONLL2005, words=written(tmp_path, "words", words))


def test_tagged_lines_of_the_same_words_are_of_one_sentence(tmp_path: Path) -> None:
    lines = ["1 a b c ||| O B-V O", "0 d e ||| B-V O", "2 a b c ||| O O B-V"]
    rows = read_tagged_lines(written(tmp_path, "a.txt", "\n".join(lines) + "\n")).rows
    assert [row.sentence for row in rows] == [0, 1, 0]


def test_tagged_lines_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "1 Cats purr . ||| B-A0 B-V O\n")
    assert read_tagged_lines(path).rows == [
        PropositionExample(("Cats", "purr", "."), ("B-A0", "B-V", "O"), 1, 0, "a.txt:1")
    ]


@pytest.mark.parametrize("line", ["1 a b", "2 a b ||| O O", "x a b ||| O O", "0 a b ||| O", "0 a ||| B", "|||"])
def test_a_bad_tagged_line_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(InvalidData, match=r"a\.txt:1: found"):
        read_tagged_lines(written(tmp_path, "a.txt", line + "\n"))


def test_real_propositions_have_no_bad_row(shared_data: Path) -> None:
    reading = read_propositions(shared_data / "srl" / "ewt_propbank" / "ewt_propbank_dev.gold_conll")
    assert (len(reading.rows), reading.skipped) == (4963, ())


COPA = {"premise": "It rained.", "choice1": "I was wet.", "choice2": "I was dry.", "question": "effect", "label": 0}


def test_copa_rows_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, "copa.jsonl", json.dumps(COPA))
    assert read_choices(path).rows == [
        ChoicesExample("It rained.", ("I was wet.", "I was dry."), "so", 0, "copa.jsonl:1")
    ]


def test_other_tables_of_choices_are_read_by_their_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "swag.tsv", "start\te0\te1\te2\tlabel\nHe\truns\tsits\tsings\t2\n")
    columns = ChoiceColumns(premise="start", choices=("e0", "e1", "e2"), question=None)
    assert read_choices(path, columns).rows == [ChoicesExample("He", ("runs", "sits", "sings"), "", 2, "swag.tsv:2")]


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        ({"label": 2}, "label: found '2', wanted a number from 0 to 1"),
        ({"label": -1}, "label: found '-1'"),
        ({"question": "why"}, "question: found 'why', wanted 'cause' or 'effect'"),
        ({"question": ["cause"]}, "question: found"),
        ({"choice2": ""}, "choice2: found ''"),
        ({"choice2": None}, "choice2: found None"),
    ],
)
def test_a_bad_choice_is_named_by_line(tmp_path: Path, odd: dict[str, object], problem: str) -> None:
    lines = [json.dumps(COPA | odd), *[json.dumps(COPA)] * 120]
    (fault,) = read_choices(written(tmp_path, "copa.jsonl", "\n".join(lines))).skipped
    assert fault.where.endswith("copa.jsonl:1")
    assert fault.problem.startswith(problem)
