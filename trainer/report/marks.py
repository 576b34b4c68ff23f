"""Texts with marked spans, cut into pieces that are each marked alike; long texts are cut to what lies near the marks.

It refuses to know how a piece is drawn.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prefixbank.trainer.report.schema import Mark

LONGEST_WHOLE = 600
"""Characters of a text that is shown whole."""
MARGIN = 180
"""Characters that are shown on either side of a mark in a longer one."""


class Piece(NamedTuple):
    """A stretch of text between two ends of marks."""

    text: str
    kinds: tuple[str, ...] = ()
    """Of the marks that cover it, sorted: expected, found, both."""
    ended: tuple[Mark, ...] = ()
    """Marks that end here: their labels are written behind."""
    is_gap: bool = False
    """Stands for text that is left out."""


def pieces(text: str, marks: Sequence[Mark]) -> list[Piece]:
    """A text in pieces. Marks that reach beyond it end with it; those of no length are passed over."""
    inside = [m for m in marks if max(m.start, 0) < min(m.end, len(text))]
    found: list[Piece] = []
    last = 0
    for start, end in _windows(text, inside):
        if start > last:
            found.append(Piece("", is_gap=True))
        found.extend(_cut(text, inside, start, end))
        last = end
    return [*found, Piece("", is_gap=True)] if last < len(text) else found


def _cut(text: str, marks: Sequence[Mark], start: int, end: int) -> Iterator[Piece]:
    inner = {place for mark in marks for place in (mark.start, mark.end) if start < place < end}
    edges = [start, *sorted(inner), end]
    for low, high in itertools.pairwise(edges):
        covering = [mark for mark in marks if mark.start < high and mark.end > low]
        ended = tuple(mark for mark in covering if mark.end <= high or high == len(text))
        yield Piece(text[low:high], tuple(sorted({mark.kind for mark in covering})), ended)


def _windows(text: str, marks: Sequence[Mark]) -> list[tuple[int, int]]:
    """What is shown of a text, as ascending intervals that do not touch."""
    if len(text) <= LONGEST_WHOLE:
        return [(0, len(text))] if text else []
    if not marks:
        return [(0, _word_end(text, LONGEST_WHOLE))]
    found: list[tuple[int, int]] = []
    for mark in sorted(marks, key=lambda mark: mark.start):
        start, end = _word_start(text, max(mark.start, 0)), _word_end(text, mark.end + MARGIN)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def _word_start(text: str, place: int) -> int:
    """Where to begin before a mark at `place`: after a space within the margin, where there is one."""
    start = place - MARGIN
    return 0 if start <= 0 else text.find(" ", start, place) + 1 or start


def _word_end(text: str, place: int) -> int:
    """Where to end at or before `place`: before a space within the margin, where there is one."""
    if place >= len(text):
        return len(text)
    space = text.rfind(" ", place - MARGIN, place)
    return place if space < 0 else space
