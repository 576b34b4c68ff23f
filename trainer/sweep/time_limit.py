"""Time: how long a sweep may run, and how fast it runs.

It refuses to know trials, and which of them are worth their time.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """A moment by which all must be done."""

    seconds: float
    """From `began`."""
    began: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def starting_now(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> TimeLimit:
        """A limit of so many seconds from now."""
        return cls(seconds, clock(), clock)

    def shortened(self, spent: float) -> TimeLimit:
        """With less time, because some was spent before; a tenth is always left."""
        return replace(self, seconds=max(self.seconds - spent, self.seconds / 10))

    @property
    def left(self) -> float:
        """Seconds; below 0 when it is over."""
        return self.began + self.seconds - self.clock()


def seconds_of(text: str) -> float:
    """A duration such as 90s, 20m, 1h30m, or a number of seconds.

    Raises:
        TrainingError: it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = hours * 3600 + minutes * 60 + seconds
    if not total:
        raise TrainingError(f"--budget: found {text!r}, wanted a duration such as 90s, 20m or 1h30m")
    return total


class Pace:
    """Wall time per second of training: validation and all else that surrounds steps is in it.

    It starts when it is made; what an earlier process did is not counted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.began = clock()
        self.trained = 0.0
        """Seconds of finished epochs."""

    def note(self, epoch_seconds: float) -> None:
        """An epoch of some trial is judged."""
        self.trained += epoch_seconds

    @property
    def wall(self) -> float:
        return self.clock() - self.began
