"""Faults: bad rows by file and line, and how many of them a file may have.

A bad row never stops the reading by itself: it becomes a Fault among the good rows, and `settle` decides. Strict
stops at the first; otherwise up to a share of the rows is left out, and the log says how many and names the first.
It refuses to know formats and examples.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from prefixbank.model_store.errors import InvalidData

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

SHOWN_CHARACTERS = 60
_SURROGATE = re.compile("[\ud800-\udfff]")


class Placed(Protocol):
    """A row that knows where it stands."""

    def place(self, line: int | None = None) -> str:
        """Path and line, by default the row's first."""


RowT = TypeVar("RowT", bound=Placed)
ExampleT = TypeVar("ExampleT")


class Fault(NamedTuple):
    """One bad row."""

    where: str
    """Path and line."""
    problem: str
    """What was found, and what was wanted."""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class BadRow(ValueError):
    """Raised while an example is made of a row; it never leaves the readers.

    Args:
        problem: what was found, and what was wanted.
        line: where, when that is not the row's first line.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How many bad rows a file may have."""

    share: float = 0.01
    """Left out up to this share of the rows. Raise it for a file known to be dirty, never to make a run start."""


TOLERANT = Tolerance()
NUM_NAMED = 3
"""Bad rows that a message names."""


class Reading(NamedTuple, Generic[ExampleT]):
    """What a file gave."""

    rows: list[ExampleT]
    skipped: tuple[Fault, ...] = ()
    """Bad rows that were left out."""


def settle(
    results: Iterable[ExampleT | Fault], path: Path | str, tolerance: Tolerance, part: str = ""
) -> Reading[ExampleT]:
    """The good rows of a file, or of a `part` of it, unless the bad ones are too many.

    Raises:
        InvalidData: there are no rows, all are bad, or more than the share; or one is, where no share is left out.
    """
    rows: list[ExampleT] = []
    faults: list[Fault] = []
    for result in results:
        if not isinstance(result, Fault):
            rows.append(result)
            continue
        if tolerance.share == 0:
            raise InvalidData(str(result))
        faults.append(result)
    total = len(rows) + len(faults)
    named = "; ".join(map(str, faults[:NUM_NAMED]))
    if not total:
        raise InvalidData(f"{path}: found no rows{part}")
    if not rows:
        raise InvalidData(f"{path}: found no good row among {total}, is it of another format? First: {named}")
    if len(faults) > tolerance.share * total:
        limit = f"wanted at most {tolerance.share:.2%}"
        raise InvalidData(f"{path}: found {len(faults)} bad rows of {total}, {limit}. First: {named}")
    if faults:
        logger.warning("%s: left out %s of %s rows as bad. First: %s", path, len(faults), total, named)
    return Reading(rows, tuple(faults))


def built(rows: Iterable[RowT | Fault], build: Callable[[RowT], ExampleT]) -> Iterator[ExampleT | Fault]:
    """Examples of rows; a row of which none can be made becomes a Fault."""
    for row in rows:
        if isinstance(row, Fault):
            yield row
            continue
        try:
            yield build(row)
        except BadRow as error:
            yield Fault(row.place(error.line), str(error))


def text_of(found: object, name: str) -> str:
    """A field that must be a text with something in it.

    Raises:
        BadRow: it is not.
    """
    if not isinstance(found, str) or not found.strip():
        raise BadRow(f"{name}: found {shown(found)}, wanted a text that is not empty")
    return unicode_of(found, name)


def unicode_of(found: str, name: str) -> str:
    """A text that can be written as UTF-8: JSON may hold halves of characters.

    Raises:
        BadRow: it cannot.
    """
    if _SURROGATE.search(found):
        raise BadRow(f"{name}: found a lone surrogate in {shown(found)}, wanted Unicode text")
    return found


def shown(found: object) -> str:
    """A wrong value, short enough for a message."""
    text = repr(found)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
