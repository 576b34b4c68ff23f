"""The names of the classes, as configs spell them, and of the families.

It refuses to know heads and files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.errors import LabelsMismatch, SourceInvalid
from prefixbank.model_store.task_prompt import TaskFamily

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FIXED = {TaskFamily.QUESTION_ANSWERING: ("start", "end"), TaskFamily.MULTIPLE_CHOICE: ("score",)}
"""Families whose outputs are no classes of the task."""


def carried_as(family: TaskFamily) -> TaskFamily:
    """The family whose model another tool has for it: roles are classes of tokens everywhere."""
    return TaskFamily.TOKEN_CLASSIFICATION if family is TaskFamily.SEMANTIC_ROLES else family


def from_id2label(id2label: Mapping[str, object]) -> tuple[str, ...]:
    """Labels by class from `{"0": "no", "1": "yes"}`.

    Raises:
        SourceInvalid: the keys are not the classes from 0 on.
    """
    by_class = {str(key): str(label) for key, label in id2label.items()}
    wanted = [str(number) for number in range(len(by_class))]
    if sorted(by_class) != sorted(wanted):
        raise SourceInvalid(f"id2label names the classes {sorted(by_class)[:5]}, not 0 to {len(by_class) - 1}")
    return tuple(by_class[key] for key in wanted)


def from_label2id(label2id: Mapping[str, object]) -> tuple[str, ...]:
    """Labels by class from `{"no": 0, "yes": 1}`; raises SourceInvalid when the numbers are not the classes."""
    return from_id2label({str(number): label for label, number in label2id.items()})


def labels_for(
    family: TaskFamily, num_classes: int, chosen: Sequence[str] | None, named: Sequence[str] | None
) -> tuple[str, ...]:
    """The labels of a head: the fixed ones of its family, the chosen, those the source names, or LABEL_0 and so on.

    Raises:
        LabelsMismatch: as many were chosen as the head does not have.
        SourceInvalid: the source names as many as its head does not have.
    """
    if family in FIXED and chosen is not None:
        raise LabelsMismatch(f"{len(chosen)} labels were given; {family} has none of its own")
    if family in FIXED:
        return FIXED[family]
    if chosen is not None and len(chosen) != num_classes:
        raise LabelsMismatch(f"{len(chosen)} labels were given; the head has {num_classes} classes")
    if chosen is None and named is not None and len(named) != num_classes:
        raise SourceInvalid(f"the source names {len(named)} labels; its head has {num_classes} classes")
    labels = chosen if chosen is not None else named
    return tuple(labels) if labels is not None else tuple(f"LABEL_{number}" for number in range(num_classes))
