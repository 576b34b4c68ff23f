"""Trials of a sweep: in order, by the settings that vary, and over seeds.

It refuses to know charts.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.trainer.metrics import lower_is_better
from prefixbank.trainer.report.wording import flat, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

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

    def beside(self, apart: Collection[str]) -> str:
        """All settings but those, as one comparable text."""
        return value_of({name: value for name, value in self.settings.items() if name not in apart})

    @property
    def seed(self) -> int | None:
        return self.trial.seed if self.trial.seed is not None else self.trial.settings.get(SEED)


class Ablation(NamedTuple):
    """Score by one setting."""

    lines: dict[str, list[tuple[float, Seeds]]]
    """By line and value, the best over the other settings, in order of the value."""
    others: set[str]
    """Combinations of the other settings that were looked at."""


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
        return sorted(over_seeds(self.complete), key=lambda group: -sign * group.mean)

    def ablation(self, x: str, line: Callable[[Tried], str | None], apart: Collection[str]) -> Ablation:
        """Complete trials by the setting `x`, like compared with like.

        Where some combination of the other settings was tried at two values of `x` or more, combinations that were
        not are left out: a value that was tried more often would else win by luck.

        Args:
            line: which line a trial belongs to; None for none.
            apart: settings that do not count as others, `x` among them.
        """
        found = [t for t in self.complete if line(t) is not None and _is_number(t.settings.get(x))]
        values: dict[str, set[float]] = {}
        for tried in found:
            values.setdefault(tried.beside(apart), set()).add(tried.settings[x])
        shared = {others for others, seen in values.items() if len(seen) > 1} or set(values)
        places: dict[tuple[str, float], list[Tried]] = {}
        for tried in found:
            if tried.beside(apart) in shared:
                places.setdefault((str(line(tried)), tried.settings[x]), []).append(tried)
        lines: dict[str, list[tuple[float, Seeds]]] = {}
        for (name, value), here in sorted(places.items()):
            lines.setdefault(name, []).append((value, self.best_of(over_seeds(here))))
        return Ablation(lines, shared)


def trials_of(sweep: Sweep) -> Trials:
    """The trials of a sweep, sorted. What a trial does not set is as the recipe has it, where others set it."""
    lower = lower_is_better(sweep.metric)
    names = {name: None for trial in sweep.trials for name in _flat(trial.settings)}
    usual = {name: value for name, value in flat(sweep.recipe) if name in names}
    best = None if sweep.best is None else _whole(sweep.best.settings, usual)
    tried = [Tried(trial, own := _whole(trial.settings, usual), own == best) for trial in sweep.trials]
    varying = tuple(name for name in names if len({value_of(one.settings.get(name)) for one in tried}) > 1)
    return Trials(tuple(sorted(tried, key=lambda one: _rank(one, lower))), varying, lower)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(settings) if name != SEED}


def _whole(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the usual ones beside them; `prompt.layers` gives way to `prompt.layers.from`, and conversely."""
    own = _flat(settings)
    clear = {
        n: v for n, v in usual.items() if not any(f"{n}.".startswith(f"{o}.") or o.startswith(f"{n}.") for o in own)
    }
    return clear | own


def _rank(tried: Tried, lower_is_better: bool) -> tuple[bool, float, int]:
    """Complete trials before others, then by score, then by number."""
    if tried.score is None:
        return True, float("inf"), tried.number
    return not tried.is_complete, tried.score if lower_is_better else -tried.score, tried.number


def over_seeds(trials: Sequence[Tried]) -> list[Seeds]:
    """Trials with a score by settings, in the order of the first of each."""
    groups: dict[str, list[Tried]] = {}
    for tried in trials:
        groups.setdefault(value_of(tried.settings), []).append(tried)
    return [Seeds(group[0].settings, tuple(t.score for t in group if t.score is not None)) for group in groups.values()]


def _is_number(found: object) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)
