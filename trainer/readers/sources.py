"""Sources: what a recipe names as one split, opened and read in the format of its family.

It refuses to know how formats are read: the other modules do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from prefixbank.model_store.errors import InvalidData
from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.trainer.readers.choices import ChoiceColumns, choices_example
from prefixbank.trainer.readers.columns import blocks_of
from prefixbank.trainer.readers.faults import Fault, built
from prefixbank.trainer.readers.hub import HubTable, open_hub
from prefixbank.trainer.readers.propositions import LAYOUTS, propositions_of, tagged_lines_of
from prefixbank.trainer.readers.squad import flat_questions, questions_of
from prefixbank.trainer.readers.tables import FORMATS, table_rows
from prefixbank.trainer.readers.texts import text_example
from prefixbank.trainer.readers.words import column_words, listed_words, of_equal_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from prefixbank.trainer.readers.examples import Example
    from prefixbank.trainer.readers.tables import Row
    from prefixbank.trainer.recipe import DataSection, Recipe, Source


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file, and the words file beside it where its format has one."""

    path: Path
    words: Path | None = None

    @property
    def name(self) -> str:
        return str(self.path)

    def digest(self) -> str:
        """SHA-256 of its bytes, and of the words'."""
        found = hashlib.sha256()
        for path in filter(None, (self.path, self.words)):
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: found)
        return found.hexdigest()


Opened: TypeAlias = DataFile | HubTable


def open_source(source: Source, root: Path) -> Opened:
    """What a recipe in the folder `root` names. A file is not touched yet.

    Raises:
        InvalidData: the hub has no such data set.
    """
    if source.path is None:
        return open_hub(source, root)
    return DataFile(root / source.path, None if source.words is None else root / source.words)


def examples_of(opened: Opened, recipe: Recipe, columns: Mapping[str, str]) -> Iterator[Example | Fault]:
    """Every row of a source as an example of the recipe's family; a bad one is a Fault.

    Args:
        opened: the source.
        recipe: for one data set.
        columns: names of a table's columns to the names that the recipe gives them.

    Raises:
        InvalidData: it cannot be read, or is of a format that the family has not.
    """
    assert recipe.data is not None, "a recipe of several data sets is read part by part. This is a bug."
    data = recipe.data
    match recipe.family:
        case TaskFamily.TEXT_CLASSIFICATION:
            labels = data.labels or tuple(recipe.head.words) or None
            rows = _table(opened, data, columns, (*data.text, data.label))
            return built(rows, lambda row: text_example(row, data, labels))
        case TaskFamily.TOKEN_CLASSIFICATION:
            return _sentences(opened, data, columns)
        case TaskFamily.QUESTION_ANSWERING:
            return _questions(opened, columns)
        case TaskFamily.MULTIPLE_CHOICE:
            named = ChoiceColumns(data.text[0], data.text[1:], data.label, data.question or None, data.rename)
            return built(_table(opened, data, columns, data.text), lambda row: choices_example(row, named))
        case TaskFamily.SEMANTIC_ROLES:
            return _propositions(opened, data, columns)


def _questions(opened: Opened, columns: Mapping[str, str]) -> Iterator[Example | Fault]:
    if isinstance(opened, HubTable):
        return flat_questions(_renamed(opened.rows(), columns))
    if FORMATS.get(opened.path.suffix) == "jsonl":
        return flat_questions(_renamed(table_rows(opened.path, "jsonl", ("context",)), columns))
    _check_unnamed(opened, columns)
    return questions_of(opened.path)


def _sentences(opened: Opened, data: DataSection, columns: Mapping[str, str]) -> Iterator[Example | Fault]:
    if isinstance(opened, DataFile) and (_format(opened.path, data) == "conll" or _is_tsv_of_words(opened, data)):
        _check_unnamed(opened, columns)
        blocks = of_equal_width(blocks_of(opened.path))
        return built(blocks, lambda block: column_words(block, data))
    return built(_table(opened, data, columns, (*data.text, data.label)), lambda row: listed_words(row, data))


def _propositions(opened: Opened, data: DataSection, columns: Mapping[str, str]) -> Iterator[Example | Fault]:
    if isinstance(opened, HubTable):
        raise InvalidData(f"{opened.name}: roles are read from files of props, not from tables")
    _check_unnamed(opened, columns)
    if data.layout == "tagged":
        return tagged_lines_of(opened.path)
    return propositions_of(opened.path, LAYOUTS[data.layout], opened.words)


def _table(
    opened: Opened, data: DataSection, columns: Mapping[str, str], names: Sequence[str]
) -> Iterator[Row | Fault]:
    if isinstance(opened, HubTable):
        return _renamed(opened.rows(), columns)
    form = _format(opened.path, data)
    if form == "conll":
        raise InvalidData(f"{opened.path}: would be read as CoNLL columns, wanted data.format tsv, csv, jsonl or json")
    return _renamed(table_rows(opened.path, form, [*names, *columns]), columns)


def _check_unnamed(opened: DataFile, columns: Mapping[str, str]) -> None:
    """Refuse names of columns for a file that has none."""
    if columns:
        raise InvalidData(
            f"{opened.path}: found columns = {dict(columns)}, wanted none: only tables have named columns"
        )


def _renamed(rows: Iterable[Row | Fault], columns: Mapping[str, str]) -> Iterator[Row | Fault]:
    """Rows with fields under the recipe's names beside their own."""
    for row in rows:
        if isinstance(row, Fault):
            yield row
        else:
            more = {name: row.fields[own] for own, name in columns.items() if own in row.fields}
            yield row._replace(fields=row.fields | more)


def _is_tsv_of_words(opened: DataFile, data: DataSection) -> bool:
    """No cell of a table holds a list: a .tsv file of entities has a word and its tag in each line."""
    return data.format == "auto" and FORMATS.get(opened.path.suffix) == "tsv"


def _format(path: Path, data: DataSection) -> str:
    return FORMATS.get(path.suffix, "conll") if data.format == "auto" else data.format
