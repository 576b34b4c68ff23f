"""Choices: rows of SuperGLUE's COPA, and of any table like it, to premises with their choices.

It refuses to know tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prefixbank.model_store.tasks.multiple_choice import CONNECTORS
from prefixbank.trainer.readers import tables
from prefixbank.trainer.readers.examples import ChoicesExample
from prefixbank.trainer.readers.faults import TOLERANT, BadRow, Reading, Tolerance, built, settle, shown, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from prefixbank.trainer.readers.tables import Row


@dataclass(frozen=True, slots=True)
class ChoiceColumns:
    """Which field holds what. The defaults are COPA's."""

    premise: str = "premise"
    choices: tuple[str, ...] = ("choice1", "choice2")
    label: str = "label"
    """Number of the right choice, from 0, or its column's name."""
    question: str | None = "question"
    """Names the connector; None where nothing stands between premise and choice."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """What a label of the file means: unlisted ones stay."""


def read_choices(
    path: Path, columns: ChoiceColumns | None = None, tolerance: Tolerance = TOLERANT
) -> Reading[ChoicesExample]:
    """Every premise of a .jsonl, .json, .tsv or .csv file.

    Raises:
        InvalidData: the file cannot be read, or has too many bad rows.
    """
    chosen = columns or ChoiceColumns()
    rows = tables.table_rows(path, tables.FORMATS.get(path.suffix, "jsonl"), [chosen.premise])
    return settle(built(rows, lambda row: choices_example(row, chosen)), path, tolerance)


def choices_example(row: Row, columns: ChoiceColumns) -> ChoicesExample:
    """The example of a row.

    Raises:
        BadRow: a field is absent, a text is empty, or the label names no choice.
    """
    templates = (columns.premise, *columns.choices)
    texts = [tables.filled(row, one, lambda name: text_of(tables.field(row, name), name)) for one in templates]
    return ChoicesExample(texts[0], tuple(texts[1:]), _connector(row, columns), _right(row, columns), row.where)


def _right(row: Row, columns: ChoiceColumns) -> int:
    """Index of the right choice, given by its number or, as on the hub, by its column's name."""
    found = str(tables.field(row, columns.label)).strip()
    right = columns.rename.get(found, found)
    if right in columns.choices:
        return columns.choices.index(right)
    numbers = [str(number) for number in range(len(columns.choices))]
    if right not in numbers:
        raise BadRow(f"{columns.label}: found {shown(right)}, wanted a number from 0 to {len(columns.choices) - 1}")
    return numbers.index(right)


def _connector(row: Row, columns: ChoiceColumns) -> str:
    if columns.question is None:
        return ""
    question = tables.field(row, columns.question)
    if not isinstance(question, str) or question not in CONNECTORS:
        wanted = " or ".join(map(repr, CONNECTORS))
        raise BadRow(f"{columns.question}: found {shown(question)}, wanted {wanted}")
    return CONNECTORS[question]
