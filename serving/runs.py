"""Runs: who holds which contiguous piece of a line of units.

First fit from the front, freed neighbours merge. It refuses to know what a unit is and what is stored there.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple


class Run(NamedTuple):
    """Units `start : start + length`."""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


EMPTY_RUN = Run(0, 0)
"""What a holder of nothing holds; it may be given back any number of times."""


class Runs:
    """The free pieces of `capacity` units, in order, never two adjacent."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free: list[Run] = [Run(0, capacity)] if capacity else []

    @property
    def num_free(self) -> int:
        return sum(run.length for run in self._free)

    @property
    def largest_free(self) -> int:
        return max((run.length for run in self._free), default=0)

    @property
    def first_free(self) -> Run | None:
        return self._free[0] if self._free else None

    @property
    def free(self) -> tuple[Run, ...]:
        return tuple(self._free)

    def can_take(self, length: int) -> bool:
        return length <= self.largest_free

    def take(self, length: int) -> Run:
        """Take the first piece that is long enough; `can_take` has been asked."""
        if length == 0:
            return EMPTY_RUN
        index = next((i for i, run in enumerate(self._free) if run.length >= length), None)
        assert index is not None, f"no free run of {length} units, and can_take was not heeded. This is a bug."
        run = self._free[index]
        rest = Run(run.start + length, run.length - length)
        self._free[index : index + 1] = [rest] if rest.length else []
        return Run(run.start, length)

    def give_back(self, run: Run) -> None:
        """Free a run that was taken; neighbours that are free merge with it."""
        if run.length == 0:
            return
        index = bisect_left(self._free, run)
        before = self._free[index - 1] if index else EMPTY_RUN
        after = self._free[index] if index < len(self._free) else Run(self.capacity, 0)
        assert before.end <= run.start, f"{run} is given back while {before} is free. This is a bug."
        assert run.end <= after.start, f"{run} is given back while {after} is free. This is a bug."
        joins_before, joins_after = index > 0 and before.end == run.start, after.length > 0 and run.end == after.start
        start = before.start if joins_before else run.start
        end = after.end if joins_after else run.end
        self._free[index - joins_before : index + joins_after] = [Run(start, end - start)]


def widest_gap(held: list[Run], capacity: int) -> int:
    """Longest run of units that none of `held` covers."""
    widest, cursor = 0, 0
    for run in sorted(held):
        widest = max(widest, run.start - cursor)
        cursor = max(cursor, run.end)
    return max(widest, capacity - cursor)
