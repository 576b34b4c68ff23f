"""Axes: values to places between 0 and 1, and the ticks that people read them by.

It refuses to know pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LOG_FROM = 8.0
"""Largest over smallest value, all positive, from which a setting is drawn by its logarithm."""
SMALLEST = 1e-12
"""Values up to it are not drawn by their logarithm."""
MAX_VALUE_TICKS = 9
"""Up to so many different values each has its tick."""


class Tick(NamedTuple):
    """A value that is written at the axis."""

    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a chart."""

    name: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one; values beyond lie at the ends."""
        low, high = (math.log(end) if self.is_log else end for end in (self.low, self.high))
        place = ((math.log(value) if self.is_log else value) - low) / (high - low)
        return min(1.0, max(0.0, place))


def number(value: float) -> str:
    """A value as an axis or a table writes it: 0.05, 1e-05, 64, 12,000."""
    if value == round(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def linear_axis(name: str, values: Iterable[float], lowest: float = -math.inf, highest: float = math.inf) -> Axis:
    """An axis that begins and ends at round numbers, within [lowest, highest]."""
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    if low == high:
        room = abs(low) / 10 or 0.5
        low, high = low - room, high + room
    step = _round_step((high - low) / 5)
    low = max(lowest, math.floor(low / step + 1e-9) * step)
    high = min(highest, math.ceil(high / step - 1e-9) * step)
    count = int((high - low) / step + 1e-9)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(name, low, high, tuple(Tick(low + i * step, f"{low + i * step:.{places}f}") for i in range(count + 1)))


def step_axis(name: str, values: Sequence[int]) -> Axis:
    """An axis of whole numbers, such as epochs, that ends where the values do."""
    low, high = min(values), max(values)
    step = max(1, round(_round_step((high - low) / 6)))
    inner = [value for value in range(low, high + 1) if value % step == 0 and value - low > step / 2]
    ticks = tuple(Tick(value, f"{value:,}") for value in (low, *inner))
    return Axis(name, low, high, ticks) if low < high else Axis(name, low - 0.5, high + 0.5, ticks)


def number_axis(name: str, values: Iterable[float]) -> Axis:
    """An axis for numbers of a setting: a tick at each where they are few, by logarithm where they lie far apart."""
    found = sorted(set(values))
    is_log = len(found) > 1 and found[0] > SMALLEST and found[-1] / found[0] >= LOG_FROM
    if len(found) > MAX_VALUE_TICKS:
        if not is_log:
            return linear_axis(name, found)
        ticks = _decades(found[0], found[-1])
    else:
        ticks = tuple(Tick(value, number(value)) for value in found)
    if is_log:
        room = (found[-1] / found[0]) ** 0.06
        return Axis(name, found[0] / room, found[-1] * room, ticks, is_log=True)
    room = (found[-1] - found[0]) * 0.06 or 0.5
    return Axis(name, found[0] - room, found[-1] + room, ticks)


def choice_axis(name: str, choices: Sequence[str]) -> Axis:
    """An axis of names: choice i lies at value i."""
    return Axis(name, -0.5, len(choices) - 0.5, tuple(Tick(i, choice) for i, choice in enumerate(choices)))


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next((factor * power for factor in (1, 2, 5) if factor * power >= rough * (1 - 1e-9)), 10 * power)


def _decades(low: float, high: float) -> tuple[Tick, ...]:
    """1, 2 and 5 of every power of ten between the ends; only the powers where those are many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        values = [value for value in values if low <= value <= high]
        if 2 <= len(values) <= MAX_VALUE_TICKS:
            break
    return tuple(Tick(value, number(value)) for value in values)
