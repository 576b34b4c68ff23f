"""Pruning: which running trials are behind, judged by nothing but their validation scores.

Trials that share steps come to an epoch together, so a trial is compared with all that have come as far, running ones
too: to wait for complete trials, as Optuna's own pruners do, would let a whole pack run to its end.
It refuses to know trainers, clocks and how settings are chosen.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Standing(NamedTuple):
    """Where a trial is."""

    number: int
    scores: tuple[float, ...]
    """After each epoch; more is better."""
    is_running: bool
    losses: tuple[float, ...] = ()
    """After each epoch, on the same rows: they tell trials apart that have no score yet."""

    def best(self, epochs: int) -> float:
        """Within the first so many epochs, or within all where it had fewer."""
        return max(self.scores[:epochs], default=-math.inf)

    def rank(self, epochs: int) -> tuple[float, float, int]:
        """Within the first so many epochs; the best comes first."""
        return -self.best(epochs), min(self.losses[:epochs], default=math.inf), self.number


class Pruner(Protocol):
    """Ends trials that are behind."""

    def losers(self, standings: Sequence[Standing]) -> set[int]:
        """Numbers of running trials that are not worth their further epochs."""

    def survival(self, epoch: int) -> float:
        """The share of trials that run on after some epoch of those that ran to it, as far as can be foreseen."""


@dataclass(frozen=True, slots=True)
class Never:
    """All trials run to their ends."""

    def losers(self, standings: Sequence[Standing]) -> set[int]:
        return set()

    def survival(self, epoch: int) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Median:
    """Ends a trial whose best score is below the median of what all others had reached by the same epoch.

    Args:
        warmup: epochs in which nothing is ended.
        least_others: how many others must have come as far.
    """

    warmup: int
    least_others: int = 3

    def losers(self, standings: Sequence[Standing]) -> set[int]:
        return {one.number for one in standings if one.is_running and self._is_behind(one, standings)}

    def survival(self, epoch: int) -> float:
        return 1.0

    def _is_behind(self, one: Standing, standings: Sequence[Standing]) -> bool:
        epoch = len(one.scores)
        others = [other.best(epoch) for other in standings if other is not one and self._came_as_far(other, epoch)]
        if epoch < self.warmup or len(others) < self.least_others:
            return False
        return one.best(epoch) < statistics.median(others)

    def _came_as_far(self, other: Standing, epoch: int) -> bool:
        """Ended trials count with what they had, or later rounds would compare the good with the best alone."""
        return len(other.scores) >= (epoch if other.is_running else self.warmup)


@dataclass(frozen=True, slots=True)
class Halving:
    """At each rung, ends all but the better part of the trials that have come to it.

    Args:
        rungs: epochs, ascending.
    """

    rungs: tuple[int, ...]
    factor: int = 2

    def losers(self, standings: Sequence[Standing]) -> set[int]:
        return {number for rung in self.rungs for number in self._losers_at(rung, standings)}

    def survival(self, epoch: int) -> float:
        return 1 / self.factor if epoch in self.rungs else 1.0

    def _losers_at(self, rung: int, standings: Sequence[Standing]) -> Iterator[int]:
        came = [one for one in standings if len(one.scores) >= rung]
        ranked = sorted(came, key=lambda one: one.rank(rung))
        behind = ranked[math.ceil(len(ranked) / self.factor) :]
        return (one.number for one in behind if one.is_running and len(one.scores) == rung)


def pruner_of(name: str, epochs: int) -> Pruner:
    """The pruner that a sweep section names, for trials of so many epochs."""
    if name == "median":
        return Median(warmup=max(1, math.ceil(epochs / 4)))
    if name == "halving":
        return Halving(tuple(sorted({math.ceil(epochs / parts) for parts in (8, 4, 2)} - {epochs})))
    return Never()


def expected_epochs(pruner: Pruner, done: int, epochs: int, trials: int = 1, least: int = 0) -> float:
    """How many more epochs some trials will run, all together, that have `done` of `epochs` behind them.

    Args:
        least: how many of them will run to the end whatever happens: 1 where the leader is among them.
    """
    total, alive = 0.0, float(trials)
    for epoch in range(done + 1, epochs + 1):
        total += alive
        alive = max(alive * pruner.survival(epoch), least)
    return total
