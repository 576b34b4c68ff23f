"""Tables: TSV with a header, JSON Lines and JSON lists as rows of named fields.

A TSV file without a header, such as GLUE's CoLA, is read where the wanted columns are numbers, from 0.
It refuses to know what fields mean.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers.faults import BadRow, Fault
from prefixbank.trainer.readers.files import Line, json_of, lines_of, no_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

FORMATS = {".tsv": "tsv", ".jsonl": "jsonl", ".json": "json"}
"""By a file's ending."""
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
    """The rows of a tsv, jsonl or json file whose columns `names` are wanted."""
    readers: dict[str, Callable[[], Iterator[Row | Fault]]] = {
        "tsv": lambda: _tsv(path, has_header=not all(name.isdecimal() for name in names)),
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


def _tsv(path: Path, *, has_header: bool) -> Iterator[Row | Fault]:
    """GLUE style: no quoting."""
    header: list[str] = []
    for line in lines_of(path):
        if isinstance(line, Fault):
            yield line
            continue
        cells = line.text.split("\t")
        if not header:
            header = cells if has_header else [str(number) for number in range(len(cells))]
            if has_header:
                continue
        if cells == [""]:
            continue
        yield _table_row(path, line.number, header, cells)


def _table_row(path: Path, number: int, header: Sequence[str], cells: Sequence[str]) -> Row | Fault:
    if len(cells) == len(header):
        return Row(path, number, dict(zip(header, cells, strict=True)))
    return Fault(f"{path}:{number}", f"found {len(cells)} columns, wanted {len(header)} as in the first line")


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
