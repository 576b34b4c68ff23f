"""SQuAD: the JSON of versions 1.1 and 2.0 to questions with their context and answers.

Both versions are one format: a question of 2.0 without an answer has `is_impossible`, or no answers. Plausible answers
are not read. A row is a question; a bad one is named by the file and the question's id. JSON Lines with a question and
its context each, as Hugging Face's hub has SQuAD, are read too.
It refuses to know tokens and windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers.examples import AnswerSpan, QuestionExample
from prefixbank.trainer.readers.faults import TOLERANT, BadRow, Fault, Reading, Tolerance, settle, shown, text_of
from prefixbank.trainer.readers.files import json_of
from prefixbank.trainer.readers.tables import field

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from prefixbank.trainer.readers.tables import Row

_WANTED = 'wanted SQuAD: {"data": [{"paragraphs": [{"context", "qas": [...]}]}]}'


def read_questions(path: Path, tolerance: Tolerance = TOLERANT) -> Reading[QuestionExample]:
    """Every question of a file, in order.

    Raises:
        InvalidData: the file is no SQuAD, or has too many bad questions.
    """
    return settle(questions_of(path), path, tolerance)


def questions_of(path: Path) -> Iterator[QuestionExample | Fault]:
    """The questions of a file as SQuAD has it; a bad one is a Fault."""
    paragraphs = _listed(json_of(path), "data", path, "file")
    articles = [_listed(article, "paragraphs", path, "article") for article in paragraphs]
    contexts: dict[str, int] = {}
    for number, paragraph in enumerate(paragraph for article in articles for paragraph in article):
        context = contexts.setdefault(str(paragraph.get("context")), len(contexts))
        for place, question in enumerate(_listed(paragraph, "qas", path, f"paragraph {number}")):
            name = question.get("id", place) if isinstance(question, dict) else place
            try:
                yield _example(question, paragraph.get("context"), str(name), context, path)
            except BadRow as error:
                yield Fault(f"{path}: question {shown(name)}", str(error))


def flat_questions(rows: Iterable[Row | Fault]) -> Iterator[QuestionExample | Fault]:
    """A question with its context in every row; a bad one is a Fault."""
    contexts: dict[object, int] = {}
    for row in rows:
        if isinstance(row, Fault):
            yield row
            continue
        try:
            context, name = text_of(field(row, "context"), "context"), str(row.fields.get("id", row.line))
            found = row.fields | {"answers": _transposed(row.fields.get("answers"))}
            yield _example(found, context, name, contexts.setdefault(context, len(contexts)), row.path)
        except BadRow as error:
            yield Fault(row.place(), str(error))


def _transposed(answers: object) -> object:
    """The hub's two lists, as a list of answers."""
    if not isinstance(answers, dict):
        return answers
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise BadRow(f"answers: found {shown(answers)}, wanted as many texts as answer_starts")
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _listed(found: object, name: str, path: Path, what: str) -> list[Any]:
    inner = found.get(name) if isinstance(found, dict) else None
    if not isinstance(inner, list):
        raise InvalidData(f"{path}: found no list {name!r} in the {what}, {_WANTED}")
    return inner


def _example(found: object, context: object, name: str, paragraph: int, path: Path) -> QuestionExample:
    context = text_of(context, "context")
    if not isinstance(found, dict):
        raise BadRow(f"found {shown(found)}, wanted an object")
    question = text_of(found.get("question"), "question")
    impossible = found.get("is_impossible")
    if impossible not in (None, False, True):
        raise BadRow(f"is_impossible: found {shown(impossible)}, wanted true or false")
    answers = [] if impossible else found.get("answers")
    if not isinstance(answers, list):
        raise BadRow(f"answers: found {shown(answers)}, wanted a list")
    spans = tuple(_answer(answer, context) for answer in answers)
    return QuestionExample(question, context, spans, name, paragraph, f"{path.name}: {name}")


def _answer(found: object, context: str) -> AnswerSpan:
    text, start = (found.get("text"), found.get("answer_start")) if isinstance(found, dict) else (None, None)
    if not isinstance(text, str) or not text.strip() or type(start) is not int:
        raise BadRow(f"answers: found {shown(found)}, wanted a text that is not empty and its answer_start")
    if start < 0 or context[start : start + len(text)] != text:
        there = shown(context[max(start, 0) : max(start, 0) + len(text)])
        raise BadRow(f"answers: found {there} at character {start} of the context, wanted the answer {shown(text)}")
    return AnswerSpan(text, start)
