"""Columns: CoNLL files as blocks of cells, one block per sentence.

Cells part at tabs where the line has one, else at blanks; sentences at empty lines, -DOCSTART- lines (CoNLL-2003) and
document marks (CoNLL-2012). It refuses to know what columns mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefixbank.trainer.readers.faults import Fault
from prefixbank.trainer.readers.files import lines_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARKS = ("-DOCSTART-", "#begin document", "#end document")
"""What lines between sentences begin with."""


class Cells(NamedTuple):
    """One line of a sentence."""

    line: int
    cells: tuple[str, ...]


class Block(NamedTuple):
    """One sentence."""

    path: Path
    number: int
    """Of the sentence in its file, from 0."""
    rows: tuple[Cells, ...]

    @property
    def line(self) -> int:
        """Where it begins."""
        return self.rows[0].line

    @property
    def where(self) -> str:
        """For people: it goes with the example."""
        return f"{self.path.name}:{self.line}"

    def place(self, line: int | None = None) -> str:
        """For messages about the file."""
        return f"{self.path}:{line or self.line}"


def blocks_of(path: Path) -> Iterator[Block | Fault]:
    """The sentences of a file; one with a line that is not UTF-8 is a Fault."""
    rows: list[Cells] = []
    fault: Fault | None = None
    number = 0
    for line in lines_of(path):
        if isinstance(line, Fault):
            fault = fault or line
        elif _parts(line.text):
            if rows or fault:
                yield fault or Block(path, number, tuple(rows))
                number += 1
            rows, fault = [], None
        else:
            rows.append(Cells(line.number, _cells(line.text)))
    if rows or fault:
        yield fault or Block(path, number, tuple(rows))


def _parts(text: str) -> bool:
    """The line stands between sentences."""
    return not text.strip() or text.startswith(MARKS)


def _cells(text: str) -> tuple[str, ...]:
    text = text.rstrip(" \t")
    if "\t" in text:
        return tuple(cell.strip(" ") for cell in text.split("\t"))
    return tuple(cell for cell in text.split(" ") if cell)
