"""Tables: TSV and CSV with a header, JSON Lines and JSON lists as rows of named fields.

TSV and CSV without a header, such as GLUE's CoLA, are read where the wanted columns are numbers, from 0.
It refuses to know what fields mean.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers.faults import BadRow, Fault
from prefixbank.trainer.readers.files import Line, json_of, lines_of, no_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "json"}
"""By a file's ending."""
SEPARATORS = (",", ";", "\t")
"""Of a CSV file: the one that gives its first line most cells, the first of equals."""
CELL_CHARACTERS = 1 << 24
"""Most that a cell may have: one whose quote is never closed would be the rest of the file."""
_ESCAPED = re.compile("[\udc80-\udcff]")
"""What bytes that are not UTF-8 become."""
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


class Row(NamedTuple):
    """One row of named fields."""

    path: Path
    line: int
    """From 1; in a JSON list the place in the list."""
    fields: dict[str, Any]

    @property
    def where(self) -> str:
        """For people: it goes with the example."""
        return f"{self.path.name}:{self.line}"

    def place(self, line: int | None = None) -> str:
        """For messages about the file."""
        return f"{self.path}:{line or self.line}"


def table_rows(path: Path, form: str, names: Sequence[str]) -> Iterator[Row | Fault]:
    """The rows of a tsv, csv, jsonl or json file whose columns `names` are wanted."""
    readers: dict[str, Callable[[], Iterator[Row | Fault]]] = {
        "tsv": lambda: _tsv(path, has_header=_has_header(names)),
        "csv": lambda: _csv(path, has_header=_has_header(names)),
        "jsonl": lambda: _jsonl(path),
        "json": lambda: _json(path),
    }
    return readers[form]()


def field(row: Row, name: str) -> Any:
    """A field by its name, or a field of a field by `outer.inner`.

    Raises:
        BadRow: there is none.
    """
    if name in row.fields:
        return row.fields[name]
    found: Any = row.fields
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            raise BadRow(f"found no field {name!r}, wanted it beside {', '.join(row.fields)}")
        found = found[part]
    return found


def filled(row: Row, template: str, text_of: Callable[[str], str]) -> str:
    """A template such as `{word}: {sentence}` with the texts of a row's fields; a bare name is that field."""
    if template in row.fields or not _PLACEHOLDER.search(template):
        return text_of(template)
    return _PLACEHOLDER.sub(lambda match: text_of(match[1]), template)


class _Cells(NamedTuple):
    """A row of a table before its columns have names."""

    lines: tuple[int, ...]
    """Their numbers: all of them are lost where the row is bad."""
    texts: list[str]


def _has_header(names: Sequence[str]) -> bool:
    """Whether a wanted column, or one that a template is filled with, is no number."""
    columns = (column for name in names for column in _PLACEHOLDER.findall(name) or [name])
    return not all(column.isdecimal() for column in columns)


def _tsv(path: Path, *, has_header: bool) -> Iterator[Row | Fault]:
    """GLUE style: no quoting."""
    lines = (
        line if isinstance(line, Fault) else _Cells((line.number,), line.text.split("\t")) for line in lines_of(path)
    )
    return _named(path, lines, has_header=has_header)


def _csv(path: Path, *, has_header: bool) -> Iterator[Row | Fault]:
    """As RFC 4180 has it: a cell in quotes may hold separators, line ends, and quotes written twice."""
    return _named(path, _csv_cells(path), has_header=has_header)


def _csv_cells(path: Path) -> Iterator[_Cells | Fault]:
    csv.field_size_limit(CELL_CHARACTERS)  # the module's own, for all readers
    numbers: list[int] = []

    def texts() -> Iterator[str]:
        for line in _escaped(path):
            numbers.append(line.number)
            yield line.text + "\n"

    rows = csv.reader(texts(), delimiter=_separator(path), strict=True)
    while True:
        numbers.clear()
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield from _faults(path, numbers, f"found no CSV: {error}")
        else:
            if any(map(_ESCAPED.search, cells)):
                yield from _faults(path, numbers, "found bytes that are not UTF-8")
            else:
                yield _Cells(tuple(numbers), cells)


def _escaped(path: Path) -> Iterator[Line]:
    """All lines: a row may have several, and one that is not UTF-8 may begin a cell or end it."""
    return (line for line in lines_of(path, "surrogateescape") if isinstance(line, Line))


def _separator(path: Path) -> str:
    first = next((line.text for line in _escaped(path) if line.text.strip()), "")
    try:
        return max(SEPARATORS, key=lambda separator: len(next(csv.reader([first], delimiter=separator), [])))
    except csv.Error as error:
        raise InvalidData(f"{path}: found no CSV in the first line: {error}") from error


def _named(path: Path, rows: Iterable[_Cells | Fault], *, has_header: bool) -> Iterator[Row | Fault]:
    """Rows under the names that the first has, or by number; empty lines are passed over."""
    header: list[str] = []
    for row in rows:
        if isinstance(row, Fault):
            yield row
            continue
        if row.texts in ([], [""]):
            continue
        if not header:
            header = _header(path, row) if has_header else [str(number) for number in range(len(row.texts))]
            if has_header:
                continue
        if len(row.texts) == len(header):
            yield Row(path, row.lines[0], dict(zip(header, row.texts, strict=True)))
        else:
            problem = f"found {len(row.texts)} columns, wanted {len(header)} as in the first line"
            yield from _faults(path, row.lines, problem)


def _header(path: Path, row: _Cells) -> list[str]:
    names = [text.strip() for text in row.texts]
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        raise InvalidData(f"{path}:{row.lines[0]}: found the column {twice!r} twice, wanted a name for each column")
    return names


def _faults(path: Path, lines: Iterable[int], problem: str) -> list[Fault]:
    return [Fault(f"{path}:{line}", problem) for line in lines]


def _jsonl(path: Path) -> Iterator[Row | Fault]:
    for line in lines_of(path):
        if isinstance(line, Fault):
            yield line
        elif line.text.strip():
            yield _json_line(path, line)


def _json_line(path: Path, line: Line) -> Row | Fault:
    try:
        return _object(path, line.number, json.loads(line.text))
    except (ValueError, RecursionError) as error:
        return Fault(f"{path}:{line.number}", no_json(error))


def _json(path: Path) -> Iterator[Row | Fault]:
    """One list of objects (CoNLL04)."""
    found = json_of(path)
    if not isinstance(found, list):
        raise InvalidData(f"{path}: found {type(found).__name__}, wanted a list of objects")
    for number, row in enumerate(found, 1):
        yield _object(path, number, row)


def _object(path: Path, number: int, found: object) -> Row | Fault:
    if isinstance(found, dict):
        return Row(path, number, found)
    return Fault(f"{path}:{number}", f"found {type(found).__name__}, wanted an object")
