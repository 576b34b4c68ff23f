"""Study: which settings to try next, by Optuna's samplers; told of every epoch and every end.

What it proposes is a function of the seed, the trial's number and what it was told, and it keeps no files: a sweep
that resumes tells it again. It refuses to know recipes, trainers and files.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

    from prefixbank.trainer.recipe import SearchInterval, SweepSection
    from prefixbank.trainer.sweep.space import Dimension, Space

STARTUP = 5
"""Trials that must have ended before TPE takes them for evidence."""
ATTEMPTS = 20
"""How often a sampler may propose what has been tried before the space counts as tried whole."""
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Study:
    """Proposes settings.

    Args:
        most: how many trials there may be, for a grid's end and the even spread of the first ones.
    """

    def __init__(self, space: Space, section: SweepSection, seed: int, most: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.kind = section.sampler
        self.seed = seed
        self.distributions = {one.name: _distribution(one) for one in space.dimensions}
        self._study = optuna.create_study(direction="maximize")
        self._trials: list[Trial] = []
        self._planned = self._plan(min(section.together, most))

    def ask(self) -> dict[str, float] | None:
        """Places of the next trial's settings, its number being that of the trials before; None when all were tried."""
        number = len(self._trials)
        if number < len(self._planned):
            return self._begin(self._planned[number])
        if self.kind == "grid":
            return None
        return next((found for attempt in range(ATTEMPTS) if (found := self._propose(attempt)) is not None), None)

    def again(self, places: Mapping[str, float]) -> None:
        """Begin the next trial where it was begun before an interruption."""
        self._begin(places)

    def report(self, number: int, scores: Sequence[float]) -> None:
        """All validation scores of a trial so far; more is better."""
        trial = self._trials[number]
        known = len(self._study.trials[trial.number].intermediate_values)
        for epoch, score in enumerate(scores[known:], known + 1):
            trial.report(score, epoch)

    def tell(self, number: int, state: str, score: float | None) -> None:
        """A trial has ended: complete, pruned or failed; `score` counts for complete ones, and more is better."""
        self._study.tell(self._trials[number], score if state == "complete" else None, state=STATES[state])

    def _begin(self, places: Mapping[str, float]) -> dict[str, float]:
        self._study.enqueue_trial(dict(places))
        self._trials.append(self._study.ask(self.distributions))
        return dict(places)

    def _propose(self, attempt: int) -> dict[str, float] | None:
        """None where the sampler chose what has been tried: nothing new would be learnt."""
        self._study.sampler = self._sampler(attempt)
        trial = self._study.ask(self.distributions)
        tried = [self.space.settings(one.params) for one in self._trials]
        if self.space.settings(trial.params) in tried:
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        self._trials.append(trial)
        return dict(trial.params)

    def _sampler(self, attempt: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.default_rng([self.seed, len(self._trials), attempt]).integers(2**31))
        if self.kind == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
        return optuna.samplers.RandomSampler(seed=seed)

    def _plan(self, first: int) -> list[dict[str, float]]:
        """What is tried before the sampler is asked: the whole grid; or the recipe's settings and an even spread."""
        dimensions = self.space.dimensions
        names = [one.name for one in dimensions]
        if self.kind == "grid":
            return [
                dict(zip(names, point, strict=True)) for point in itertools.product(*(d.places() for d in dimensions))
            ]
        if self.kind == "random":
            return []
        return _unlike([self.space.own(), *_spread(dimensions, first - 1, self.seed)])


def _spread(dimensions: Sequence[Dimension], count: int, seed: int) -> list[dict[str, float]]:
    """A Latin hypercube: in every dimension, each of `count` equal parts is met once."""
    random = np.random.default_rng([seed, count])
    shares = {one.name: (random.permutation(count) + random.random(count)) / max(count, 1) for one in dimensions}
    return [{one.name: one.at(float(shares[one.name][point])) for one in dimensions} for point in range(count)]


def _unlike(points: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    return [point for place, point in enumerate(points) if point not in points[:place]]


def _distribution(dimension: Dimension) -> BaseDistribution:
    interval, last = dimension.interval, len(dimension.values) - 1
    if interval is None:
        return IntDistribution(0, last) if dimension.is_ordered else CategoricalDistribution(range(last + 1))
    if interval.is_whole:
        step = int(interval.step or 1)
        return IntDistribution(int(interval.low), int(interval.high), log=interval.log, step=step)
    return _floats(interval)


def _floats(interval: SearchInterval) -> FloatDistribution:
    low, step = float(interval.low), interval.step
    high = float(interval.high) if step is None else low + math.floor((interval.high - low) / step + 1e-9) * step
    return FloatDistribution(low, high, log=interval.log, step=step)
