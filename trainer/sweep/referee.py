"""Referee: after every epoch, ends the trials that are behind, and those that time has no room for.

It judges by validation scores alone. It refuses to know how trials are chosen and how steps are computed.
"""

from __future__ import annotations

import logging
import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

from prefixbank.trainer.sweep.pruning import expected_epochs
from prefixbank.trainer.sweep.watch import Watch, stop_judged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefixbank.trainer.sweep.search import Search
    from prefixbank.trainer.sweep.speed import Speed
    from prefixbank.trainer.sweep.time_limit import Pace, TimeLimit
    from prefixbank.trainer.trial import Trial

logger = logging.getLogger(__name__)

MARGIN = 1.05
"""What is foreseen takes that much longer."""
NO_TIME = "no time for more"
CLOSING_S = 3.0
"""Reports, folding and the start of the serving engine."""


class Running(NamedTuple):
    """A trial that runs, and whose it is."""

    search: Search
    number: int
    trial: Trial

    @property
    def score(self) -> tuple[float, float]:
        """More is better; among equals, less loss."""
        losses = [epoch.validation["loss"] for epoch in self.trial.state.curve]
        return self.trial.state.best_score, -min(losses, default=math.inf)


class Referee:
    """Judges the trials of some searches that share steps.

    Args:
        limit: by when all must be done; None where there is time.
        speed: measured before the first step; needed where there is a limit.
    """

    def __init__(self, searches: Sequence[Search], pace: Pace, limit: TimeLimit | None, speed: Speed | None) -> None:
        assert limit is None or speed is not None, "a limit without a measured speed. This is a bug."
        self.searches = searches
        self.pace = pace
        self.limit = limit
        self.speed = speed
        self.watch = None if limit is None or speed is None else Watch(limit, speed, self._reserve)

    def __call__(self, trial: Trial) -> None:
        """Asked by the loop after a trial's epoch; trials that close theirs in the same step are judged together."""
        running = list(self._running())
        owner = next(one.search for one in running if one.trial is trial)
        owner.note(trial)
        self.pace.note(trial.state.curve[-1].seconds)
        if any(one.trial is not trial and _is_about_to_close(one.trial) for one in running):
            return
        for search in self.searches:
            self._prune(search)
        if self.limit is not None:
            self._fit(self.limit)

    def may_begin(self, search: Search) -> bool:
        """Whether there is time for one more trial: always for the first of a search."""
        if self.limit is None or not search.records or search.has_unfinished:
            return True
        epochs = search.base.optimiser.epochs
        cost = self._epoch_seconds(search) * expected_epochs(search.pruner, 0, epochs)
        return (self._foreseen(self._alive()) + cost) * MARGIN + self._reserve() < self.limit.left

    def warn(self) -> None:
        """Say before the first step that whole runs do not fit."""
        if self.limit is None:
            return
        runs = sum(one.base.optimiser.epochs * self._epoch_seconds(one) for one in self.searches)
        needed = runs * MARGIN + self._reserve()
        if needed > self.limit.left:
            found = f"a whole run and its seeds take about {needed:,.0f} s, {self.limit.left:,.0f} s are left"
            logger.warning("%s: runs will end before their schedules do. Lower optimiser.epochs or seeds", found)

    def final_seconds(self, search: Search) -> float:
        """What the runs of the best settings and all that follows will take."""
        again = (search.section.seeds - 1) * search.base.optimiser.epochs * self._epoch_seconds(search)
        return again + self._closing_seconds(search)

    def closing(self) -> float:
        """What is to be done after the last step of the best settings' runs, for all searches."""
        return sum(map(self._closing_seconds, self.searches))

    def _closing_seconds(self, search: Search) -> float:
        """Evaluation, the served check and reports."""
        chosen, reported = search.held_out_tokens
        tokens = search.section.seeds * (chosen + reported) + reported
        return tokens * self._evaluated_token_seconds() + CLOSING_S

    def _prune(self, search: Search) -> None:
        for number in search.pruner.losers(search.standings()):
            search.running[number].prune("others have come further")

    def _fit(self, limit: TimeLimit) -> None:
        """End the worst trials until the rest fits into the time; of the last one, stop what does not."""
        left = limit.left - self._reserve()
        alive = self._alive()
        while len(alive) > len({id(one.search) for one in alive}) and self._foreseen(alive) * MARGIN > left:
            worst = _worst(alive)
            worst.trial.prune(NO_TIME)
            alive.remove(worst)
        if sum(self._epoch_seconds(one.search, one.trial) for one in alive) * MARGIN <= left:
            return
        stopped = stop_judged(one.trial for one in alive)
        for one in alive:
            if one.trial in stopped:
                logger.warning("trial %d: stopped after epoch %d, time is up", one.number, one.trial.state.epoch)
            elif one.search.best is not None:
                one.trial.prune(NO_TIME)

    def _foreseen(self, alive: Sequence[Running]) -> float:
        """Seconds until the last of these ends: the best of each search in full, the others as they are pruned."""
        leaders = {id(one.search): one.trial for one in sorted(alive, key=lambda one: one.score)}
        total = 0.0
        for search, done in {(one.search, one.trial.state.epoch): None for one in alive}:
            alike = [one.trial for one in alive if one.search is search and one.trial.state.epoch == done]
            least = int(leaders[id(search)] in alike)
            epochs = expected_epochs(search.pruner, done, search.base.optimiser.epochs, len(alike), least)
            total += epochs * statistics.fmean(self._epoch_seconds(search, trial) for trial in alike)
        return total

    def _reserve(self) -> float:
        return sum(map(self.final_seconds, self.searches))

    def _epoch_seconds(self, search: Search, trial: Trial | None = None) -> float:
        """Wall time of an epoch: the trial's last one, or the mean of its search, or what was measured before."""
        if trial is not None and trial.state.curve:
            return trial.state.curve[-1].seconds * self._overhead()
        seconds = [float(epoch["seconds"]) for record in search.records for epoch in record.curve]
        seconds += [epoch.seconds for one in search.running.values() for epoch in one.state.curve]
        if seconds:
            return sum(seconds) / len(seconds) * self._overhead()
        return self._measured_epoch(search)

    def _measured_epoch(self, search: Search) -> float:
        assert self.speed is not None, "asked for a time without a limit. This is a bug."
        chosen, _ = search.held_out_tokens
        return epoch_tokens(search) * self.speed.train + chosen * self.speed.evaluate

    def _overhead(self) -> float:
        """Wall time for a second of training steps: validation stands between them."""
        under_way = sum(one.trial.state.epoch_seconds for one in self._running())
        return self.pace.wall / (self.pace.trained + under_way) if self.pace.trained else 1.0

    def _evaluated_token_seconds(self) -> float:
        assert self.speed is not None, "asked for a time without a limit. This is a bug."
        return self.speed.evaluate * max(1.0, self.watch.slowness if self.watch is not None else 1.0)

    def _running(self) -> list[Running]:
        return [Running(search, *item) for search in self.searches for item in search.running.items()]

    def _alive(self) -> list[Running]:
        return [one for one in self._running() if not one.trial.state.finished]


class Timekeeper:
    """Stops the runs of the best settings where their time is up, all at the same epoch.

    Args:
        trials: the runs; it may grow.
        referee: the search's, which knows by when all must be done and how fast the machine is.
    """

    def __init__(self, trials: Sequence[Trial], pace: Pace, referee: Referee) -> None:
        self.trials = trials
        self.pace = pace
        self.limit = referee.limit
        self.referee = referee
        self.watch: Watch | None = None
        if referee.limit is not None and referee.speed is not None:
            self.watch = Watch(referee.limit, referee.speed, referee.closing)

    def __call__(self, trial: Trial) -> None:
        """Asked by the loop after a trial's epoch."""
        self.pace.note(trial.state.curve[-1].seconds)
        alive = [one for one in self.trials if not one.state.finished]
        if self.limit is None or any(_is_about_to_close(one) for one in alive):
            return
        overhead = self.pace.wall / max(self.pace.trained, 1e-9)
        next_epoch = sum(one.state.curve[-1].seconds for one in alive if one.state.curve) * overhead
        if next_epoch * MARGIN + self.referee.closing() < self.limit.left:
            return
        for one in stop_judged(alive):
            logger.warning("seed %d: stopped after epoch %d, time is up", one.recipe.seed, one.state.epoch)


def epoch_tokens(search: Search) -> int:
    """Tokens that a trial of the search trains on in an epoch, about."""
    parts = search.prepared.parts.values()
    items = [item.num_tokens for part in parts for item in part.items["train"]]
    rows = min(len(items), search.base.optimiser.epoch_rows or len(items))
    return round(sum(items) * rows / len(items))


def _is_about_to_close(trial: Trial) -> bool:
    return not trial.state.finished and trial.is_at_end_of_epoch


def _worst(alive: Sequence[Running]) -> Running:
    """The worst of the search that runs most trials."""
    most = max(alive, key=lambda one: sum(other.search is one.search for other in alive)).search
    return min((one for one in alive if one.search is most), key=lambda one: (one.score, -one.number))
