"""Trials of a sweep: in order, by the settings that vary, and over seeds.

It refuses to know charts.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.trainer.report.wording import flat, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prefixbank.trainer.report.schema import Sweep, Trial

COMPLETE = "complete"
SEED = "seed"


class Seeds(NamedTuple):
    """What trials reached that differ in nothing but the seed."""

    settings: dict[str, Any]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def std(self) -> float | None:
        """Of the sample; None of a single score."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial with its settings by dotted name, the seed apart."""

    trial: Trial
    settings: dict[str, Any]
    is_best: bool

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def score(self) -> float | None:
        return self.trial.score

    @property
    def is_complete(self) -> bool:
        """Whether the score is that of a whole run."""
        return self.trial.state == COMPLETE and self.trial.score is not None

    @property
    def seed(self) -> int | None:
        return self.trial.seed if self.trial.seed is not None else self.trial.settings.get(SEED)


@dataclass(frozen=True, slots=True)
class Trials:
    """All trials of a sweep, the best first."""

    tried: tuple[Tried, ...]
    varying: tuple[str, ...]
    """Settings that have more than one value."""
    lower_is_better: bool

    @property
    def complete(self) -> list[Tried]:
        """Those that ran to their end."""
        return [tried for tried in self.tried if tried.is_complete]

    def count(self, state: str) -> int:
        """How many ended so."""
        return sum(tried.trial.state == state for tried in self.tried)

    def best_of(self, groups: Iterable[Seeds]) -> Seeds:
        """The one with the best mean."""
        sign = -1 if self.lower_is_better else 1
        return max(groups, key=lambda group: sign * group.mean)

    def over_seeds(self) -> list[Seeds]:
        """Complete trials by settings, the best mean first."""
        sign = -1 if self.lower_is_better else 1
        return sorted(_over_seeds(self.complete), key=lambda group: -sign * group.mean)

    def best_by(self, line: Callable[[Tried], str | None], x: str) -> dict[str, list[tuple[Any, Seeds]]]:
        """For every line and every value of the setting `x`, the best over all other settings, in order of `x`.

        Args:
            line: which line a trial belongs to; None for none.
        """
        places: dict[tuple[str, Any], list[Tried]] = {}
        for tried in self.complete:
            name = line(tried)
            if name is not None and _is_number(tried.settings.get(x)):
                places.setdefault((name, tried.settings[x]), []).append(tried)
        lines: dict[str, list[tuple[Any, Seeds]]] = {}
        for (name, value), found in sorted(places.items()):
            lines.setdefault(name, []).append((value, self.best_of(_over_seeds(found))))
        return lines


def trials_of(sweep: Sweep) -> Trials:
    """The trials of a sweep, sorted."""
    lower = sweep.metric == "loss"
    best = None if sweep.best is None else _settings(sweep.best.settings)
    tried = [Tried(trial, own := _settings(trial.settings), own == best) for trial in sweep.trials]
    names = dict.fromkeys(name for one in tried for name in one.settings)
    varying = tuple(name for name in names if len({value_of(one.settings.get(name)) for one in tried}) > 1)
    return Trials(tuple(sorted(tried, key=lambda one: _rank(one, lower))), varying, lower)


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(settings) if name != SEED}


def _rank(tried: Tried, lower_is_better: bool) -> tuple[bool, float, int]:
    """Complete trials before others, then by score, then by number."""
    if tried.score is None:
        return True, float("inf"), tried.number
    return not tried.is_complete, tried.score if lower_is_better else -tried.score, tried.number


def _over_seeds(trials: Sequence[Tried]) -> list[Seeds]:
    groups: dict[str, list[Tried]] = {}
    for tried in trials:
        groups.setdefault(value_of(tried.settings), []).append(tried)
    return [Seeds(group[0].settings, tuple(t.score for t in group if t.score is not None)) for group in groups.values()]


def _is_number(found: object) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)
