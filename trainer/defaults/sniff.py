"""Sniffing: what kind of file someone hands over, from its name and its first rows.

It refuses to know what the columns mean.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.defaults.names import HEADER
from prefixbank.trainer.readers.columns import Block, blocks_of
from prefixbank.trainer.readers.files import json_of, lines_of
from prefixbank.trainer.readers.tables import Row, table_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from prefixbank.trainer.readers.faults import Fault

SAMPLE = 2000
"""Rows, lines or sentences that are looked at."""
_BRACKETS = re.compile(r"(\([^()*]+)?\*\)?", re.ASCII)
PREDICATES = {"propbank": 8, "conll2012": 11}
"""The first column of predicates in each layout of props."""
FEWEST_BLANK = 500
"""Lines of sentences have an empty one at least so often; tables may end with one."""
FOREIGN = (".parquet", ".xlsx", ".xls", ".arrow", ".zip", ".gz")
NAME = "name"
"""Any name of a column that is no number."""


class Table(NamedTuple):
    """Rows of named fields."""

    form: str
    """As a recipe names it: tsv, csv, jsonl or json."""
    rows: list[dict[str, Any]]
    """The first ones."""

    @property
    def columns(self) -> list[str]:
        """Names of fields that every row has, in order."""
        return [name for name in self.rows[0] if all(name in row for row in self.rows)]

    def values(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]


class Columns(NamedTuple):
    """Sentences, a word a line."""

    blocks: list[Block]
    """The first ones."""


class Questions(NamedTuple):
    """SQuAD."""


class Props(NamedTuple):
    """Predicates with their arguments."""

    layout: str


Found = Table | Columns | Questions | Props


def sniff(path: Path, names: Sequence[str] = (NAME,)) -> Found:
    """What a file is.

    Args:
        names: of columns that are known already; numbers say that a table has no header.

    Raises:
        InvalidData: it cannot be read, or is of no kind that is known.
    """
    if path.suffix in FOREIGN:
        raise InvalidData(f"{path}: found a {path.suffix} file, wanted .tsv, .csv, .jsonl, .json or CoNLL columns")
    lines = [line.text for line in islice(lines_of(path), SAMPLE) if not hasattr(line, "problem")]
    first = next((text for text in lines if text.strip()), "")
    if path.suffix == ".json" or (path.suffix != ".jsonl" and first.startswith("[")):
        return _json(path)
    if path.suffix == ".jsonl" or first.startswith("{"):
        return _table_or_questions(Table("jsonl", _fields(table_rows(path, "jsonl", ()))), path)
    if path.suffix == ".csv":
        return Table("csv", _some(_fields(table_rows(path, "csv", names)), path))
    if "|||" in first:
        return Props("tagged")
    if _has_sentences(lines):
        return _columns(path)
    if "\t" in first:
        return Table("tsv", _some(_fields(table_rows(path, "tsv", names)), path))
    raise InvalidData(f"{path}: found lines without columns, wanted a table, JSON, or a word and its tag a line")


def _json(path: Path) -> Found:
    found = json_of(path)
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        return Questions()
    if not isinstance(found, list):
        raise InvalidData(f"{path}: found {type(found).__name__}, wanted a list of objects or SQuAD")
    return _table_or_questions(Table("json", [row for row in found[:SAMPLE] if isinstance(row, dict)]), path)


def _table_or_questions(table: Table, path: Path) -> Found:
    _some(table.rows, path)
    if {"question", "context", "answers"} <= set(table.columns) and table.form == "jsonl":
        return Questions()
    return table


def _columns(path: Path) -> Found:
    blocks = [block for block in islice(blocks_of(path), SAMPLE) if isinstance(block, Block)]
    wide = [block for block in blocks if len(block.rows[0].cells) > min(PREDICATES.values())]
    for layout, column in PREDICATES.items():
        if wide and all(_is_predicate(block, column) for block in wide if len(block.rows[0].cells) > column):
            return Props(layout)
    return Columns(blocks)


def _is_predicate(block: Block, column: int) -> bool:
    return all(column < len(row.cells) and _BRACKETS.fullmatch(row.cells[column]) for row in block.rows)


def _has_sentences(lines: list[str]) -> bool:
    """Empty lines stand between groups of lines with cells, and the first line is no header."""
    blank = sum(not text.strip() for text in lines[:-1])
    cells = [text.split() for text in lines if text.strip()]
    header = HEADER & set(cells[0]) if cells else set()
    return blank > len(lines) / FEWEST_BLANK and not header and all(len(one) >= 2 for one in cells)


def _fields(rows: Iterable[Row | Fault]) -> list[dict[str, Any]]:
    return [row.fields for row in islice(rows, SAMPLE) if isinstance(row, Row)]


def _some(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    if not rows:
        raise InvalidData(f"{path}: found no good row")
    return rows
