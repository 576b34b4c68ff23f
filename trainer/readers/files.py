"""Files: lines or one JSON value of a UTF-8 text file; what is no such file is refused in one sentence.

It refuses to know what lines and values mean.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAD_BYTES = 4096
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
KINDS = {
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"%PDF": "a PDF",
    b"\x80\x04": "a pickle",
}
"""First bytes of what people hand over by mistake."""


class Line(NamedTuple):
    """One line without its end."""

    number: int
    """From 1."""
    text: str


def lines_of(path: Path, errors: str = "strict") -> Iterator[Line | Fault]:
    """The lines of a file; one that is not UTF-8 is a Fault.

    Args:
        errors: as `bytes.decode` has it: with "surrogateescape" every line is a Line.

    Raises:
        InvalidData: the file cannot be read, is empty, or is no text.
    """
    try:
        with path.open("rb") as lines:
            head = lines.read(HEAD_BYTES)
            _check_head(path, head)
            if b"\r" in head[:-1] and b"\n" not in head:
                raise InvalidData(f"{path}: found lines that end in a carriage return alone, wanted line feeds")
            lines.seek(0)
            for number, line in enumerate(lines, 1):
                yield _line(path, number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line, errors)
    except OSError as error:
        raise _unreadable(path, error) from error


def json_of(path: Path) -> Any:
    """The one JSON value of a file.

    Raises:
        InvalidData: the file cannot be read, is empty, is no text, or is no JSON.
    """
    try:
        content = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    except OSError as error:
        raise _unreadable(path, error) from error
    _check_head(path, content[:HEAD_BYTES])
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidData(f"{path}:{line}: found bytes that are not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path}:{getattr(error, 'lineno', 1)}: {no_json(error)}") from error


def no_json(error: ValueError | RecursionError) -> str:
    """What is wrong with text that was to be JSON."""
    return f"found no JSON: {getattr(error, 'msg', error)}"


def _line(path: Path, number: int, content: bytes, errors: str) -> Line | Fault:
    try:
        return Line(number, content.decode(errors=errors).rstrip("\r\n"))
    except UnicodeDecodeError as error:
        return Fault(f"{path}:{number}", f"found bytes that are not UTF-8 at byte {error.start + 1} of the line")


def _check_head(path: Path, head: bytes) -> None:
    if not head:
        raise InvalidData(f"{path}: found no rows: the file is empty")
    for start, kind in KINDS.items():
        if head.startswith(start):
            raise InvalidData(f"{path}: found {kind}, wanted UTF-8 text")
    if b"\0" in head:
        raise InvalidData(f"{path}: found a binary file (a zero at byte {head.index(0) + 1}), wanted UTF-8 text")


def _unreadable(path: Path, error: OSError) -> InvalidData:
    if isinstance(error, IsADirectoryError):
        return InvalidData(f"{path}: found a folder, wanted a file")
    return InvalidData(f"{path}: cannot be read: {error.strerror}")
