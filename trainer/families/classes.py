"""Labels: their order, their numbers, and how a message names them. It refuses to know tokens and losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.errors import InvalidData, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NUM_NAMED = 12
"""Labels that a message names."""
MOST_DIGITS = 18
"""Longer ones are names: Python reads no number of thousands of digits."""


def sorted_labels(found: Iterable[str]) -> tuple[str, ...]:
    """Labels in order: numbers by size, then texts by letter."""
    return tuple(sorted(set(found), key=_place))


def _place(label: str) -> tuple[bool, int, str]:
    is_number = label.isdecimal() and len(label) <= MOST_DIGITS
    return not is_number, int(label) if is_number else 0, label


def two_or_more(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels, where there is something to tell apart.

    Raises:
        TrainingError: there is not.
    """
    if len(labels) < 2:
        raise TrainingError(f"data.train: found the labels {', '.join(labels)}, wanted two or more")
    return tuple(labels)


def numbered(labels: Sequence[str]) -> dict[str, int]:
    """Class by label."""
    return {label: index for index, label in enumerate(labels)}


def class_of(label: str, classes: Mapping[str, int], where: str) -> int:
    """The class of a label of an example that stands at `where`.

    Raises:
        InvalidData: the label is none of the task's.
    """
    if label not in classes:
        raise InvalidData(f"{where}: found label {label!r}, wanted one of the training labels: {named(classes)}")
    return classes[label]


def named(labels: Iterable[str]) -> str:
    """Labels for a message, the first of them where there are many."""
    names = list(labels)
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
