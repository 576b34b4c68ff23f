"""Sniffing: what kind of file someone hands over, from its name and its first rows.

It refuses to know what the columns mean.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.defaults.names import HEADER
from prefixbank.trainer.readers.columns import MARKS, Block, blocks_of
from prefixbank.trainer.readers.faults import TOLERANT
from prefixbank.trainer.readers.files import json_of, lines_of
from prefixbank.trainer.readers.propositions import LAYOUTS
from prefixbank.trainer.readers.tables import Row, table_rows
from prefixbank.trainer.readers.tags import BRACKETS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import UnionType

SAMPLE = 2000
"""Rows, lines or sentences that are looked at."""
TAG = re.compile(r"O|[BIESLU]-\S+", re.ASCII)
PROPS = ("propbank", "conll2012")
"""Layouts of one file; the words of CoNLL-2005 stand in another."""
FEWEST_BLANK = 500
"""Lines of sentences have an empty one at least so often; tables may end with one."""
FOREIGN = (".parquet", ".xlsx", ".xls", ".arrow", ".zip", ".gz")
NAME = "name"
"""Any name of a column that is no number."""


class Table(NamedTuple):
    """Rows of named fields."""

    form: str
    """As a recipe names it: tsv, csv, jsonl or json."""
    rows: list[Row]
    """The first ones."""

    @property
    def columns(self) -> list[str]:
        """Names of fields that rows have, in order."""
        names = Counter(name for row in self.rows for name in row.fields)
        return [name for name, count in names.items() if is_most(count, self.rows)]

    def values(self, name: str) -> list[Any]:
        """Of those rows that have the field."""
        return [row.fields[name] for row in self.rows if name in row.fields]

    def holds(self, name: str, kind: type | UnionType) -> bool:
        """Whether a column has values of some type."""
        return is_most(sum(isinstance(value, kind) for value in self.values(name)), self.rows)

    @property
    def odd(self) -> str:
        """The first field that is absent or null, for messages; empty where there is none."""
        names = dict.fromkeys(name for row in self.rows for name in row.fields)
        fields = ((row, name) for row in self.rows for name in names if row.fields.get(name) is None)
        return next((f"no {name} in line {row.line}" for row, name in fields), "")


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
        return _table_or_questions(_table(path, "jsonl"))
    if path.suffix == ".csv":
        return _table(path, "csv", names)
    if "|||" in first:
        return Props("tagged")
    if _has_sentences(lines):
        return _columns(path)
    if "\t" in first:
        return _table(path, "tsv", names)
    raise InvalidData(f"{path}: found lines without columns, wanted a table, JSON, or a word and its tag a line")


def _json(path: Path) -> Found:
    found = json_of(path)
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        return Questions()
    if not isinstance(found, list):
        raise InvalidData(f"{path}: found {type(found).__name__}, wanted a list of objects or SQuAD")
    return _table_or_questions(_table(path, "json"))


def _table_or_questions(table: Table) -> Found:
    if {"question", "context", "answers"} <= set(table.columns) and table.form == "jsonl":
        return Questions()
    return table


def _columns(path: Path) -> Found:
    blocks = [block for block in islice(blocks_of(path), SAMPLE) if isinstance(block, Block)]
    for name in PROPS:
        layout = LAYOUTS[name]
        wide = [block for block in blocks if len(block.rows[0].cells) > layout.first + layout.num_after]
        if wide and is_most(sum(_is_predicate(block, layout.first) for block in wide), wide):
            return Props(name)
    return Columns(blocks)


def _is_predicate(block: Block, column: int) -> bool:
    return all(column < len(row.cells) and BRACKETS.fullmatch(row.cells[column]) for row in block.rows)


def _has_sentences(lines: list[str]) -> bool:
    """Empty lines stand between groups of lines with cells, and the first line is no header."""
    blank = sum(not text.strip() for text in lines[:-1])
    cells = [text.split() for text in lines if text.strip() and not text.startswith(MARKS)]
    if not cells or blank <= len(lines) / FEWEST_BLANK:
        return False
    has_header = bool(HEADER & set(cells[0])) and not TAG.fullmatch(cells[0][-1])
    return not has_header and is_most(sum(len(one) >= 2 for one in cells), cells)


def _table(path: Path, form: str, names: Sequence[str] = ()) -> Table:
    found = list(islice(table_rows(path, form, names), SAMPLE))
    rows = [row for row in found if isinstance(row, Row)]
    if not rows:
        raise InvalidData(f"{path}: found no good row" + (f". First: {found[0]}" if found else ""))
    return Table(form, rows)


def is_most(count: int, rows: Sequence[object]) -> bool:
    """Whether no more rows are unlike `count` of them than reading leaves out."""
    return count >= (1 - TOLERANT.share) * len(rows)
