"""How numbers and names are written for people.

It refuses to know HTML.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NOTHING = "\N{EN DASH}"
_SPOKEN = {
    "f1": "F1",
    "em": "exact match",
    "exact": "exact match",
    "matthews": "Matthews correlation",
    "ece": "calibration error",
}


def spoken(name: str) -> str:
    """A metric or field as people say it: macro_f1 is macro F1."""
    return _SPOKEN.get(name) or " ".join(_SPOKEN.get(word, word) if word == "f1" else word for word in _words(name))


def title_of(name: str) -> str:
    """`spoken` with a capital first letter."""
    said = spoken(name)
    return said[:1].upper() + said[1:]


def score(value: float | None) -> str:
    """A metric in three places; a minus is a minus sign."""
    return NOTHING if value is None else f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def share(value: float) -> str:
    """A share as a percentage, with two digits that say something."""
    if 0 < value < 0.001:
        return f"{value * 100:.2g}%"
    return f"{value:.2%}" if value < 0.1 else f"{value:.1%}" if value < 0.9995 else f"{value:.0%}"


def duration(seconds: float | None) -> str:
    """Seconds below two minutes, minutes below two hours, then hours; only short times have their smallest part."""
    if seconds is None:
        return NOTHING
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def value_of(found: Any) -> str:
    """A setting's value as a recipe writes it, without quotes around names."""
    if found is None:
        return NOTHING
    if isinstance(found, str):
        return found
    return json.dumps(found, ensure_ascii=False, sort_keys=True)


def brief(found: Any) -> str:
    """A setting's value in few characters: four digits of a number that a sweep drew."""
    return f"{found:.4g}" if isinstance(found, float) else value_of(found)


def flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested tables by its dotted name; empty tables are values."""
    for name, found in table.items():
        if isinstance(found, dict) and found:
            yield from flat(found, f"{before}{name}.")
        else:
            yield before + name, found


def when(created: str) -> str:
    """A time of ISO 8601 to the minute."""
    return created[:16].replace("T", " ") + (" UTC" if created.endswith(("Z", "+00:00")) else "")


def _words(name: str) -> list[str]:
    return name.replace("_", " ").replace("-", " ").split()
