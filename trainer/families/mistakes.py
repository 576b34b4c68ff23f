"""Mistakes: the wrong answers that a report shows, worst first, with the places in their texts that matter.

It refuses to know what makes an answer wrong, and how a report draws it.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

SHOWN_CHARACTERS = 2000
"""Of a text; a longer one is shown around its first mark."""
LEAD_CHARACTERS = 500
"""Shown before the first mark of a longer text."""
ELLIPSIS = "…"


class Mark(NamedTuple):
    """A span of one text: characters `start` to `end`, the end excluded."""

    text: int
    """Which of the texts."""
    start: int
    end: int
    kind: Literal["expected", "found", "both"]
    label: str = ""


class Mistake(NamedTuple):
    """One wrong answer."""

    cost: float
    """How bad it is beside others of the same task."""
    where: str
    texts: tuple[str, ...]
    expected: str
    found: str
    confidence: float
    marks: tuple[Mark, ...] = ()


def worst(mistakes: Iterable[Mistake], count: int) -> list[dict[str, Any]]:
    """The `count` worst as JSON, worst first; equally bad ones in their order."""
    return [_as_json(mistake) for mistake in heapq.nlargest(count, mistakes, key=lambda mistake: mistake.cost)]


def _as_json(mistake: Mistake) -> dict[str, Any]:
    shown, marks = [], []
    for number, text in enumerate(mistake.texts):
        own = [mark for mark in mistake.marks if mark.text == number]
        excerpt, moved = _excerpt(text, sorted(own, key=lambda mark: mark.start))
        shown.append(excerpt)
        marks += [mark._asdict() for mark in moved]
    return {
        "where": mistake.where,
        "texts": shown,
        "expected": mistake.expected[:SHOWN_CHARACTERS],
        "found": mistake.found[:SHOWN_CHARACTERS],
        "confidence": mistake.confidence,
        "marks": marks,
    }


def _excerpt(text: str, marks: list[Mark]) -> tuple[str, list[Mark]]:
    """What is shown of a text, and the marks in it, moved along; marks beyond it are left out."""
    if len(text) <= SHOWN_CHARACTERS:
        return text, marks
    begin = max(0, marks[0].start - LEAD_CHARACTERS) if marks else 0
    end = min(len(text), begin + SHOWN_CHARACTERS)
    before, after = ELLIPSIS if begin else "", ELLIPSIS if end < len(text) else ""
    shift = len(before) - begin
    kept = [mark._replace(end=min(mark.end, end)) for mark in marks if mark.start < end]
    moved = [mark._replace(start=mark.start + shift, end=mark.end + shift) for mark in kept]
    return f"{before}{text[begin:end]}{after}", moved
