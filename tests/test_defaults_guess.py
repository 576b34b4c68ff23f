"""What columns mean: published data sets and their like are understood, what could mean several things is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.model_store.errors import InvalidData
from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.trainer.defaults.guess import guess

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = TaskFamily.TEXT_CLASSIFICATION


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tsv(path: Path, header: str, *rows: str) -> Path:
    lines = (
        [header, *rows] if rows else [header, *(header.replace("label", "yes" if n % 2 else "no") for n in range(8))]
    )
    path.write_text("".join(line.replace(" ", "\t") + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("header", "text", "label"),
    [
        ("sentence label", ["sentence"], "label"),
        ("index sentence1 sentence2 label", ["sentence1", "sentence2"], "label"),
        ("premise hypothesis genre gold_label", ["premise", "hypothesis"], "gold_label"),
        ("question sentence label", ["question", "sentence"], "label"),
        ("id qid1 qid2 question1 question2 is_duplicate", ["question1", "question2"], "is_duplicate"),
        ("id text sentiment", ["text"], "sentiment"),
        ("title review label", ["review"], "label"),
        ("label words_of_mouth", ["words_of_mouth"], "label"),
        ("text label label_text", ["text"], "label_text"),
    ],
)
def test_names_of_columns_say_what_they_mean(header: str, text: list[str], label: str, tmp_path: Path) -> None:
    rows = [" ".join(f"{name}{n}" if name != label else "ab"[n % 2] for name in header.split()) for n in range(8)]
    found = guess(tsv(tmp_path / "a.tsv", header, *rows))
    assert found == {"family": TEXTS, "data": {"format": "tsv", "text": text, "label": label}}


def test_a_column_of_two_without_a_name_is_told_by_its_values(tmp_path: Path) -> None:
    rows = [{"what": f"the {n}th", "how": "good" if n % 2 else "bad"} for n in range(10)]
    assert guess(jsonl(tmp_path / "a.jsonl", rows))["data"] == {"format": "jsonl", "text": ["what"], "label": "how"}


def test_where_one_label_prevails_accuracy_does_not_choose(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "passage": f"p{n}", "title": "t", "answer": n % 4 > 0} for n in range(40)]
    found = guess(jsonl(tmp_path / "boolq.jsonl", rows))
    assert found["data"] == {"format": "jsonl", "text": ["question", "passage"], "label": "answer"}
    assert found["selection"] == {"metric": "macro_f1"}


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [(["B-A", "I-A", "O"], "iob2"), (["U-A", "B-A", "L-A"], "bilou"), (["S-A", "O", "B-A", "E-A"], "iobes")],
)
def test_tags_say_how_spans_are_written(tags: list[str], scheme: str, tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(len(tags))]
    rows = [{"tokens": words, "tags": tags, "id": 3}] * 3
    table = {"format": "jsonl", "text": ["tokens"], "label": "tags", "scheme": scheme}
    assert guess(jsonl(tmp_path / "a.jsonl", rows)) == {"family": TaskFamily.TOKEN_CLASSIFICATION, "data": table}
    sentence = "".join(f"{word} NN {tag}\n" for word, tag in zip(words, tags, strict=True))
    for name, content in (("a.conll", sentence), ("b", sentence.replace(" ", "\t"))):
        (tmp_path / name).write_text("\n".join([content] * 3))
        found = guess(tmp_path / name)
        assert found["data"] == {"format": "conll", "scheme": scheme}


def test_a_language_before_every_word_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("en:Rio\tB-LOC\nen::\tO\n\nen:Oslo\tB-LOC\n")
    assert guess(tmp_path / "a")["data"]["word_prefix"] == "en:"
    (tmp_path / "a").write_text("en:Rio\tB-LOC\n\nRio\tB-LOC\n")
    assert "word_prefix" not in guess(tmp_path / "a")["data"]


def test_choices_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    rows = [{"premise": f"p{n}"} | {f"choice{c}": f"c{c}" for c in range(1, 13)} | {"label": n % 12} for n in range(24)]
    found = guess(jsonl(tmp_path / "a.jsonl", rows))
    assert found["data"]["text"] == ["premise", *(f"choice{c}" for c in range(1, 13))]


def test_a_word_that_is_a_columns_name_makes_no_header(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("text\tO\nof\tO\nOslo\tB-LOC\n\nEU\tB-ORG\nmet\tO\n\n" * 10)
    assert guess(tmp_path / "w.txt")["data"]["format"] == "conll"


@pytest.mark.parametrize("bad", [{"label": None}, {"text": None}, {"other": 1}, {"text": 3, "label": []}])
def test_one_bad_row_of_many_changes_no_guess(bad: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": f"a film {n}", "label": "yn"[n % 2]} for n in range(299)]
    rows.insert(7, {"text": "a", "label": "y"} | bad if "other" not in bad else bad)
    found = guess(jsonl(tmp_path / "a.jsonl", rows))["data"]
    assert found == {"format": "jsonl", "text": ["text"], "label": "label"}
    with pytest.raises(InvalidData, match=r"no (label|text) in line 3, wanted" if None in bad.values() else "wanted"):
        guess(jsonl(tmp_path / "few.jsonl", rows[5:20]))


def test_one_question_without_answers_is_no_other_kind_of_file(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": f"q{n}", "context": "c d", "answers": {}} for n in range(200)]
    del rows[3]["answers"]
    assert guess(jsonl(tmp_path / "a.jsonl", rows))["family"] == TaskFamily.QUESTION_ANSWERING


def test_a_list_beside_a_text_is_no_list_of_tags(tmp_path: Path) -> None:
    rows = [{"text": f"a film {n}", "label": "yn"[n % 2], "keywords": ["x"]} for n in range(20)]
    found = guess(jsonl(tmp_path / "a.jsonl", rows))
    assert found == {"family": TEXTS, "data": {"format": "jsonl", "text": ["text"], "label": "label"}}


def test_conll_2012_is_known_with_its_marks_and_sentences_without_a_predicate(tmp_path: Path) -> None:
    cells = "bc 0 {} {} NN * - - - - * {} -"
    told = [cells.format(0, "Oslo", "(A1*)"), cells.format(1, "grows", "(V*)")]
    bare = ["bc 0 0 Yes UH * - - - - * -"]
    blocks = "\n\n".join("\n".join(block) for block in (told, bare) * 9)
    (tmp_path / "a.gold_conll").write_text(f"#begin document (bc); part 000\n{blocks}\n\n#end document\n")
    assert guess(tmp_path / "a.gold_conll")["data"] == {"format": "props", "layout": "conll2012"}


def test_choices_questions_and_roles_are_known_by_their_shape(tmp_path: Path) -> None:
    copa = [{"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": n % 2} for n in range(4)]
    found = guess(jsonl(tmp_path / "copa.jsonl", copa))
    assert found["family"] == TaskFamily.MULTIPLE_CHOICE
    assert (found["data"]["text"], found["data"]["question"]) == (["premise", "choice1", "choice2"], "question")
    (tmp_path / "squad.json").write_text(json.dumps({"version": "1.1", "data": []}))
    assert guess(tmp_path / "squad.json")["family"] == TaskFamily.QUESTION_ANSWERING
    line = "doc\t0\t{n}\tsee\tVB\t*\t{lemma}\t{sense}\t{arg}\n"
    rows = [line.format(n=n, lemma="see", sense="see.01", arg="(V*)" if n else "(ARG0*)") for n in range(2)]
    (tmp_path / "props").write_text(("".join(rows) + "\n") * 2)
    assert guess(tmp_path / "props")["data"] == {"format": "props", "layout": "propbank"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"a": "x", "b": "y", "c": "z"}] * 4, ["found the columns a, b, c", 'data.label="COLUMN"']),
        ([{"a": f"x{n}", "b": "y", "label": n % 2} for n in range(4)], ["a, b, label", 'data.text=["COLUMN"]']),
        ([{"text": f"x{n}", "class": "c", "intent": "i"} for n in range(4)], ["text, class, intent", "data.label"]),
        ([{"text": f"x{n}", "label": f"y{n}"} for n in range(60)], ["'label' has 60 values in 60 rows"]),
        ([{"tokens": ["a"], "tags": [7]}] * 3, ["found 7", "B-PER"]),
        ([{"text": "x", "label": 0.5}] * 3, ["text, label", "data.label"]),
    ],
)
def test_what_is_not_plain_is_refused_with_what_to_say(rows: Any, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(InvalidData) as caught:
        guess(jsonl(tmp_path / "a.jsonl", rows))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_what_is_said_is_not_guessed(tmp_path: Path) -> None:
    rows = [{"a": f"x{n}", "b": "y", "c": "no" if n % 2 else "yes"} for n in range(8)]
    found = guess(jsonl(tmp_path / "a.jsonl", rows), said={"text": ["b", "a"], "label": "c"})
    assert found["data"] == {"format": "jsonl", "text": ["b", "a"], "label": "c"}


def test_the_names_of_mrpc_are_known(tmp_path: Path) -> None:
    rows = "".join(f"{n % 2}\t{n}\t{n + 9}\ta {n}\tb {n}\n" for n in range(8))
    (tmp_path / "a.tsv").write_text(f"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n{rows}")
    assert guess(tmp_path / "a.tsv")["data"] == {
        "format": "tsv",
        "text": ["#1 String", "#2 String"],
        "label": "Quality",
    }


def test_a_csv_file_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",text,label\n" + "".join(f'{n},"{n}, he said","{n % 2}"\n' for n in range(8)))
    assert guess(tmp_path / "a.csv")["data"] == {"format": "csv", "text": ["text"], "label": "label"}


def test_a_table_without_a_header_is_told_by_numbers(tmp_path: Path) -> None:
    (tmp_path / "cola.tsv").write_text("".join(f"gj04\t{n % 2}\t*\tHe came {n}.\n" for n in range(8)))
    with pytest.raises(InvalidData, match='without a header the columns are "0", "1"'):
        guess(tmp_path / "cola.tsv")
    assert guess(tmp_path / "cola.tsv", said={"text": ["3"], "label": 1})["data"]["label"] == 1  # the recipe refuses it
    found = guess(tmp_path / "cola.tsv", said={"text": ["3"], "label": "1"})
    assert found == {"family": TEXTS, "data": {"format": "tsv", "text": ["3"], "label": "1"}}


def test_a_first_row_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("".join(f"film {n}\t{('neg', 'pos')[n % 2]}\n" for n in range(20)))
    with pytest.raises(InvalidData, match=r"found 'neg' in the first line, a label of other lines.*data\.label=\"1\""):
        guess(tmp_path / "a.tsv")
    found = guess(tmp_path / "a.tsv", said={"text": ["0"], "label": "1"})
    assert found["data"] == {"format": "tsv", "text": ["0"], "label": "1"}


@pytest.mark.parametrize("row", [{"ctx": "a", "endings": ["p", "z"]}, {"text": "a", "target": {"span1_text": "b"}}])
def test_a_label_that_goes_by_what_no_column_holds_is_not_guessed(tmp_path: Path, row: dict[str, Any]) -> None:
    rows = [row | {"label": n % 2} for n in range(20)]
    with pytest.raises(InvalidData, match=r"wanted texts and a label: say --set 'data\.text"):
        guess(jsonl(tmp_path / "a.jsonl", rows))
    text = next(iter(row))
    assert guess(tmp_path / "a.jsonl", said={"text": [text]})["data"]["text"] == [text]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text,label\n", ["no good row"]),
        ("a.xlsx", "text,label\n", ["a .xlsx file", "wanted .tsv, .csv"]),
        ("a.txt", "one line\nanother line here\n", ["lines without columns"]),
        ("a.json", '{"rows": []}', ["found dict", "SQuAD"]),
        ("a.jsonl", "", ["the file is empty"]),
        ("a.jsonl", "[\n]\n", ["no good row"]),
    ],
)
def test_a_file_of_no_known_kind_is_refused(name: str, content: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidData) as caught:
        guess(tmp_path / name)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_another_family_than_the_file_is_of_is_refused(tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text(json.dumps({"data": []}))
    with pytest.raises(InvalidData, match="found rows of question-answering, wanted text-classification"):
        guess(tmp_path / "squad.json", TEXTS)


@pytest.mark.parametrize(
    ("path", "family", "columns"),
    [
        ("glue/SST-2/train.tsv", TEXTS, ["sentence"]),
        ("glue/RTE/train.tsv", TEXTS, ["sentence1", "sentence2"]),
        ("mnli/dev_matched.jsonl", TEXTS, ["premise", "hypothesis"]),
        ("boolq/dev.jsonl", TEXTS, ["question", "passage"]),
        ("ner/conll04/conll04_train.json", TaskFamily.TOKEN_CLASSIFICATION, ["tokens"]),
        ("ner/wnut17/wnut17train.conll", TaskFamily.TOKEN_CLASSIFICATION, None),
        ("ner/wikiann_en/dev", TaskFamily.TOKEN_CLASSIFICATION, None),
        ("squad/v2.0/train-v2.0-first10articles.json", TaskFamily.QUESTION_ANSWERING, None),
        ("srl/ewt_propbank/ewt_propbank_dev.gold_conll", TaskFamily.SEMANTIC_ROLES, None),
    ],
)
def test_real_data_sets_are_understood(path: str, family: TaskFamily, columns: Any, shared_data: Path) -> None:
    found = guess(shared_data / path)
    assert (found["family"], found["data"].get("text")) == (family, columns)
