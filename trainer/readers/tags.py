"""Tags: every way of writing spans to IOB2.

It refuses to know words, files and which kinds of spans there are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_STARTS = {"iob1": "B", "iob2": "B", "bilou": "BU", "iobes": "BS"}
_INSIDE = {"iob1": "I", "iob2": "I", "bilou": "IL", "iobes": "IE"}
_ENDS = "LUES"
SCHEMES = (*_STARTS, "brackets")
BRACKETS = re.compile(r"(?:\(([^()*]+))?\*(\))?")


def iob2(tags: Sequence[str], scheme: str) -> tuple[str, ...]:
    """Rewrite tags of `scheme`, one of SCHEMES, as IOB2; a span that begins with I- begins with B- afterwards.

    Raises:
        ValueError: a tag is none of the scheme's.
    """
    if scheme == "brackets":
        return from_brackets(tags)
    starts, inside = _STARTS[scheme], _INSIDE[scheme]
    written = []
    before = "O"
    for tag in tags:
        mark, _, kind = tag.partition("-")
        if tag != "O" and (not kind or mark not in {*starts, *inside}):
            raise ValueError(f"found tag {tag!r}, wanted O or {'-, '.join(starts + inside)}- and a type")
        continues = tag != "O" and mark in inside and before == kind
        written.append(tag if tag == "O" else f"{'I' if continues else 'B'}-{kind}")
        before = "O" if tag == "O" or mark in _ENDS else kind
    return tuple(written)


def from_brackets(tags: Sequence[str]) -> tuple[str, ...]:
    """IOB2 of CoNLL-2005 and CoNLL-2012 brackets: `(ARG0*`, `*`, `*)`, `(V*)`. Spans may not overlap.

    Raises:
        ValueError: a tag is no bracket, a span begins inside another, or one is not closed.
    """
    written = []
    kind = ""
    for tag in tags:
        match = BRACKETS.fullmatch(tag)
        if match is None:
            raise ValueError(f"found {tag!r}, wanted *, (X*, *) or (X*)")
        begun, closes = match[1], match[2]
        if begun and kind:
            raise ValueError(f"found {tag!r} inside {kind!r}, wanted spans that do not overlap")
        if closes and not (begun or kind):
            raise ValueError(f"found {tag!r}, wanted no end where nothing began")
        written.append(f"B-{begun}" if begun else f"I-{kind}" if kind else "O")
        kind = "" if closes else begun or kind
    if kind:
        raise ValueError(f"found no end of {kind!r}")
    return tuple(written)
