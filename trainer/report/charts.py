"""Charts as values: axes, lines, dots, bars in pixels, ready for the template that writes them as SVG.

Colours are named by number (`tone`) and chosen by the style sheet, so that a chart follows light and dark. A chart
describes itself in words for whoever cannot see it. It refuses to know reports and sweeps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prefixbank.trainer.report.axes import Axis

NUM_TONES = 6
"""Colours that the style sheet tells apart; a further line takes the first again, with its own dashes."""
QUIET = "quiet"
"""The tone of what stands behind."""
MAX_DOTTED = 32
"""Lines of more points have no dots."""

Point = tuple[float, float]


class Frame(NamedTuple):
    """The plane of a chart: axes and size in pixels, with room for what is written beside them."""

    x: Axis
    y: Axis
    width: int = 480
    height: int = 270
    left: int = 58
    right: int = 14
    top: int = 14
    bottom: int = 42

    def px(self, value: float) -> float:
        """Pixels from the left."""
        return round(self.left + self.x.place(value) * (self.width - self.left - self.right), 1)

    def py(self, value: float) -> float:
        """Pixels from the top."""
        return round(self.height - self.bottom - self.y.place(value) * (self.height - self.top - self.bottom), 1)


class Line(NamedTuple):
    """Points joined in order."""

    name: str
    """For the legend; empty lines have none."""
    points: tuple[Point, ...]
    tone: int | str = 0
    is_dashed: bool = False


class Dot(NamedTuple):
    """One value."""

    x: float
    y: float
    says: str
    """Shown when pointed at."""
    tone: int | str = 0
    radius: float = 4.0
    is_hollow: bool = False


class Bar(NamedTuple):
    """A block from the x-axis up."""

    left: float
    right: float
    y: float
    says: str
    tone: int | str = 0


class Whisker(NamedTuple):
    """How far a value reaches up and down."""

    x: float
    low: float
    high: float
    tone: int | str = 0


class Rule(NamedTuple):
    """A vertical line with a word."""

    x: float
    says: str


class Reading(NamedTuple):
    """What is shown while the pointer is over a strip of the chart."""

    x: float
    left: float
    right: float
    says: str


@dataclass(frozen=True, slots=True)
class Chart:
    """All that is drawn, back to front: bars, rules, lines, whiskers, dots."""

    title: str
    summary: str
    """The chart in one sentence, for whoever cannot see it."""
    frame: Frame
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    bars: tuple[Bar, ...] = ()
    whiskers: tuple[Whisker, ...] = ()
    rules: tuple[Rule, ...] = ()
    readings: tuple[Reading, ...] = ()
    note: str = ""
    """Below the chart: what was chosen to draw it."""

    @property
    def legend(self) -> list[Line]:
        """Lines with a name; a single one needs none."""
        named = [line for line in self.lines if line.name]
        return named if len(named) > 1 else []

    def path(self, line: Line) -> str:
        """The line as an SVG path."""
        return "M" + "L".join(f"{self.frame.px(x)},{self.frame.py(y)}" for x, y in line.points)

    @property
    def corners(self) -> list[tuple[Line, Point]]:
        """Points of named lines short enough to have dots."""
        return [(line, point) for line in self.lines if 0 < len(line.points) <= MAX_DOTTED for point in line.points]


def tone_of(index: int) -> int:
    """A colour for the line of this number."""
    return index % NUM_TONES


def readings(frame: Frame, rows: Sequence[tuple[float, str]]) -> tuple[Reading, ...]:
    """Strips that meet halfway between neighbours; `rows` are value of x and what is said of it."""
    places = [frame.px(x) for x, _ in rows]
    edges = [frame.left, *((a + b) / 2 for a, b in itertools.pairwise(places)), frame.width - frame.right]
    return tuple(
        Reading(place, round(edges[i], 1), round(edges[i + 1], 1), rows[i][1]) for i, place in enumerate(places)
    )


def extent(values: Iterable[float]) -> str:
    """From the first to the last value in words."""
    found = list(values)
    return f"from {found[0]:.3f} to {found[-1]:.3f}" if len(found) > 1 else f"{found[0]:.3f}"
