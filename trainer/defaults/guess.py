"""Guessing: what the columns of a file mean, by their names and what stands in them. What is not plain is refused.

It refuses to know how files are read, what there is time for and what is tried.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.errors import InvalidData
from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.model_store.tasks.multiple_choice import CONNECTORS
from prefixbank.trainer.defaults.names import IDS, LABELS, PAIRS, PREMISES, SINGLES, TAGS, WEAK_LABELS, WORDS
from prefixbank.trainer.defaults.sniff import TAG, Columns, Props, Questions, Table, is_most, sniff

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from prefixbank.trainer.defaults.sniff import Found

MOST_LABELS = 200
RARE = 0.6
"""Where one label has this share of the rows, accuracy would choose a prompt that says nothing else."""
_CHOICE = re.compile(r"(?:choice|option|ending|alternative)_?(\d+|[A-Ea-e])", re.ASCII)
_CHOICES = re.compile(r"choices|options|endings|alternatives", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}:", re.ASCII)
"""WikiANN's words begin with the code of their language."""


def guess(path: Path, family: TaskFamily | None = None, said: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The family, the data section without its sources, and the metric that a training file asks for, as a table.

    Args:
        said: fields of the data section that are known already: `text` and `label` are not guessed then.

    Raises:
        InvalidData: the file is not of the family, or its columns could mean several things; the message says what was
            found and how to say what is meant.
    """
    said = said or {}
    # Of any type yet: the recipe, which judges them, is made of what is guessed here.
    known = [str(name) for name in (*said.get("text", ()), *([said["label"]] if "label" in said else ()))]
    found = sniff(path, known) if known else sniff(path)
    guessed = _family(found)
    wanted = family or guessed
    if isinstance(found, Table) and wanted in _TABLES:
        return {"family": wanted.value} | _TABLES[wanted](found, path, said)
    if wanted != guessed:
        raise InvalidData(f"{path}: found rows of {guessed}, wanted {wanted}")
    if isinstance(found, Columns):
        return {"family": wanted.value, "data": _columns(found, path)}
    if isinstance(found, Props):
        return {"family": wanted.value, "data": {"format": "props", "layout": found.layout}}
    return {"family": wanted.value, "data": {"format": "squad"}}


def _family(found: Found) -> TaskFamily:
    match found:
        case Questions():
            return TaskFamily.QUESTION_ANSWERING
        case Props():
            return TaskFamily.SEMANTIC_ROLES
        case Columns():
            return TaskFamily.TOKEN_CLASSIFICATION
        case Table():
            if _choices(found):
                return TaskFamily.MULTIPLE_CHOICE
            lists = [name for name in found.columns if found.holds(name, list)]
            return TaskFamily.TOKEN_CLASSIFICATION if len(lists) > 1 else TaskFamily.TEXT_CLASSIFICATION


def _texts(table: Table, path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    columns = [name for name in table.columns if not table.holds(name, list)]
    known = said.get("text") or _known_texts(table, columns)
    label = said.get("label") or _label_column(table, [name for name in columns if name not in known])
    texts = known or _text_left(table, [name for name in columns if name != label])
    if label is None or not texts or (_is_deeper(table) and not said.get("text")):
        raise _unclear(path, table, "data.text" if label is not None else "data.label", "texts and a label")
    labels = Counter(map(str, table.values(label)))
    if table.form in ("tsv", "csv") and not str(label).isdecimal() and label in labels:
        problem = f"{path}: found {label!r} in the first line, a label of other lines, wanted the names of the columns"
        hint = """where there are none, say --set 'data.text=["0"]' --set 'data.label="1"'"""
        raise InvalidData(f"{problem}: {hint}")
    if len(labels) > min(MOST_LABELS, max(2, len(table.rows) // 2)):
        problem = f"{path}: column {label!r} has {len(labels)} values in {len(table.rows)} rows, wanted labels"
        raise InvalidData(f"{problem}: say which column has them with --set data.label=NAME")
    found: dict[str, Any] = {"data": {"format": table.form, "text": list(texts), "label": label}}
    if max(labels.values(), default=0) > RARE * len(table.rows):
        found["selection"] = {"metric": "macro_f1"}
    return found


def _words(table: Table, path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    lists = [name for name in table.columns if table.holds(name, list)]
    names = (said.get("text", WORDS), [said["label"]] if "label" in said else TAGS)
    words, tags = (next((name for name in one if name in lists), None) for one in names)
    if words is None or tags is None or words == tags:
        raise _unclear(path, table, "data.text", "a list of words and a list of tags")
    rows = [row for row in table.values(tags) if isinstance(row, list)]
    scheme = _scheme([tag for row in rows for tag in row], path, f"column {tags!r}")
    return {"data": {"format": table.form, "text": [words], "label": tags, "scheme": scheme}}


def _multiple_choice(table: Table, path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    premise, *choices = said.get("text") or (None, *_choices(table))
    label = said.get("label") or _label_column(table, table.columns)
    premise = premise or next((name for name in PREMISES if name in table.columns), None)
    if len(choices) < 2 or label is None or premise is None:
        raise _unclear(path, table, "data.text", "premise, choice1, choice2 and label")
    data: dict[str, Any] = {"format": table.form, "text": [premise, *choices], "label": label}
    if "question" in table.columns and premise != "question" and set(table.values("question")) <= set(CONNECTORS):
        data["question"] = "question"
    return {"data": data}


_TABLES = {
    TaskFamily.TEXT_CLASSIFICATION: _texts,
    TaskFamily.TOKEN_CLASSIFICATION: _words,
    TaskFamily.MULTIPLE_CHOICE: _multiple_choice,
}


def _columns(found: Columns, path: Path) -> dict[str, Any]:
    rows = [row.cells for block in found.blocks for row in block.rows]
    scheme = _scheme([cells[-1] for cells in rows], path, "the last column")
    data: dict[str, Any] = {"format": "conll", "scheme": scheme}
    if all(cells[0].isdecimal() for cells in rows) and len(rows[0]) > 2:
        data["word_column"] = 1
    words = [cells[data.get("word_column", 0)] for cells in rows]
    language = _LANGUAGE.match(words[0])
    if language and all(word.startswith(language[0]) for word in words):
        data["word_prefix"] = language[0]
    return data


def _scheme(tags: Sequence[Any], path: Path, where: str) -> str:
    good = [tag for tag in tags if _is_tag(tag)]
    if is_most(len(good), tags):
        marks = {tag[0] for tag in good}
        return "bilou" if marks & {"L", "U"} else "iobes" if marks & {"E", "S"} else "iob2"
    odd = next(tag for tag in tags if not _is_tag(tag))
    raise InvalidData(f"{path}: found {odd!r} in {where}, wanted tags such as B-PER, I-PER and O")


def _is_tag(found: object) -> bool:
    return isinstance(found, str) and TAG.fullmatch(found) is not None


def _is_deeper(table: Table) -> bool:
    """Whether the label goes by what no column holds as a text: choices in a list, or a marked part of the text."""
    parts = any(table.holds(name, dict) for name in WEAK_LABELS)
    return parts or any(table.holds(name, list) for name in table.columns if _CHOICES.fullmatch(name))


def _label_column(table: Table, columns: Sequence[str]) -> str | None:
    """A known name; or the only column that is left; or of two unknown ones that with fewer values."""
    scalar = [name for name in columns if table.holds(name, str | int)]
    strong = next((name for name in LABELS if name in scalar), None)
    weak = [name for name in WEAK_LABELS if name in scalar]
    if strong is not None or len(weak) == 1:
        return strong or weak[0]
    others = [name for name in scalar if name not in IDS]
    if weak or not others or len(others) > 2:
        return None
    return min(others, key=lambda name: len(set(map(str, table.values(name)))))


def _known_texts(table: Table, columns: Sequence[str]) -> tuple[str, ...]:
    """A pair or a column of a known name; the labels of some sets have the names of texts in others."""
    texts = _of_texts(table, columns)
    pair = next((pair for pair in PAIRS if set(pair) <= set(texts)), ())
    return pair or next(((name,) for name in SINGLES if name in texts), ())


def _text_left(table: Table, columns: Sequence[str]) -> tuple[str, ...]:
    """The one column of texts that is left."""
    left = [name for name in _of_texts(table, columns) if name not in IDS]
    return (left[0],) if len(left) == 1 else ()


def _of_texts(table: Table, columns: Sequence[str]) -> list[str]:
    return [name for name in columns if table.holds(name, str)]


def _choices(table: Table) -> list[str]:
    """In the order of their numbers or letters."""
    found = [(len(match[1]), match[1].lower(), match[0]) for match in map(_CHOICE.fullmatch, table.columns) if match]
    return [name for *_, name in sorted(found)]


def _unclear(path: Path, table: Table, field: str, wanted: str) -> InvalidData:
    said = 'data.text=["COLUMN"]' if field == "data.text" else f'{field}="COLUMN"'
    hint = '; without a header the columns are "0", "1" ...' if table.form in ("tsv", "csv") else ""
    odd = f"; {table.odd}" if table.odd else ""
    found = f"found the columns {', '.join(table.columns)}{odd}"
    return InvalidData(f"{path}: {found}, wanted {wanted}: say --set '{said}', or another --family{hint}")
