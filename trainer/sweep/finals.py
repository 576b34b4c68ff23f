"""Finals: the best settings run once per seed, packed together, and what is reported of them.

The trial that won is one of them already. Validation rows chose the settings and choose the seed whose artifact is
kept; the reported split is looked at here for the first time. It refuses to know how settings were chosen.
"""

from __future__ import annotations

import logging
import shutil
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.errors import TrainingError
from prefixbank.trainer import checkpoint
from prefixbank.trainer.outcome import conclude, round_prompt
from prefixbank.trainer.recipe.sections import MOST_SEEDS
from prefixbank.trainer.run import finish
from prefixbank.trainer.sweep.record import COMPLETE, score_of
from prefixbank.trainer.sweep.trial_display import TrialDisplay, show_progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from prefixbank.trainer.build import Built
    from prefixbank.trainer.outcome import Verify
    from prefixbank.trainer.pack import Pack
    from prefixbank.trainer.prepare import Prepared
    from prefixbank.trainer.recipe import Recipe
    from prefixbank.trainer.run import Trained
    from prefixbank.trainer.sweep.record import Record
    from prefixbank.trainer.sweep.search import Search
    from prefixbank.trainer.sweep_display import SweepDisplay
    from prefixbank.trainer.trial import Trial

logger = logging.getLogger(__name__)

SEEDS_FOLDER = "seeds"


@dataclass(frozen=True, slots=True)
class Result:
    """What a sweep came to."""

    settings: dict[str, Any]
    recipe: Recipe
    """Of the seed whose artifact was kept."""
    seeds: tuple[int, ...]
    validation: tuple[float, ...]
    """A score per seed."""
    reported: tuple[float, ...]
    split: str
    trained: Trained
    """The best seed's by validation."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.reported)

    @property
    def std(self) -> float:
        """Of the sample; 0 of a single seed."""
        return statistics.stdev(self.reported) if len(self.reported) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The `best` of sweep.json."""
        scores = {"split": self.split, "scores": list(self.reported), "mean": self.mean, "std": self.std}
        return {
            "settings": self.settings,
            "seeds": list(self.seeds),
            "validation": list(self.validation),
            "reported": scores,
        }


def seeds_of(search: Search, display: SweepDisplay) -> Iterator[Built]:
    """The best settings' trials, a seed each, as far as they have come.

    Raises:
        TrainingError: no trial of the search has a score.
    """
    best = _best(search)
    for number in range(search.section.seeds):
        seed = (best.seed + number) % MOST_SEEDS
        settings = best.settings | {"seed": seed}
        folder = search.folder(best.number) if number == 0 and best.state == COMPLETE else _folder(search, seed)
        folder.mkdir(parents=True, exist_ok=True)
        display.trial(number, settings, "running")
        built = search.build(settings, folder, TrialDisplay(display, number))
        if checkpoint.is_in(folder):
            built.trial.resume()
            show_progress(display, number, built.trial)
        yield built


def conclude_search(search: Search, finals: Sequence[Built], verify: Verify | None) -> Result:
    """Report the best seed as a run of its own, and what all of them reach.

    Raises:
        TrainingError: all seeds failed.
        ServingMismatch: the served logits differ from the trained ones.
    """
    good = [built for built in finals if not built.trial.state.failure]
    for built in finals:
        if built.trial.state.failure:
            logger.warning("seed %d failed: %s", built.trial.recipe.seed, built.trial.state.failure)
    if not good:
        raise TrainingError(f"{search.job.name}: all seeds failed. First: {finals[0].trial.state.failure}")
    kept = max(good, key=lambda built: built.trial.state.best_score)
    prepared = search.rows.of(kept.trial.recipe)
    trained = finish(kept.pack, kept.trial, prepared, search.job.out, verify)
    reported = [
        _scored_report(trained) if built is kept else _score(built.pack, built.trial, prepared) for built in good
    ]
    return Result(
        _best(search).settings,
        kept.trial.recipe,
        tuple(built.trial.recipe.seed for built in good),
        tuple(score for built in good if (score := score_of(built.trial)) is not None),
        tuple(reported),
        " and ".join(sorted({part.reported for part in prepared.parts.values()})),
        trained,
    )


def forget(search: Search) -> None:
    """Remove the checkpoints of a sweep that is done."""
    for number in range(len(search.records)):
        checkpoint.remove(search.folder(number))
    shutil.rmtree(search.job.out / SEEDS_FOLDER, ignore_errors=True)


def _best(search: Search) -> Record:
    best = search.best
    if best is None:
        reasons = [record.reason for record in search.records if record.reason]
        first = f" First: {reasons[0]}" if reasons else ""
        raise TrainingError(f"{search.job.name}: no trial of {len(search.records)} has a score.{first}")
    return best


def _folder(search: Search, seed: int) -> Path:
    return search.job.out / SEEDS_FOLDER / str(seed)


def _score(pack: Pack, trial: Trial, prepared: Prepared) -> float:
    """On the reported split, as it would be stored and served."""
    round_prompt(trial)
    scores = []
    for part in trial.parts:
        data = prepared.parts[part.name]
        outcome = conclude(pack, trial, part, data)
        scores.append(outcome.scores[data.reported].metrics[outcome.family.metric])
    return statistics.fmean(scores)


def _scored_report(trained: Trained) -> float:
    reports = trained.reports.values()
    return statistics.fmean(one["metrics"][one["reported_split"]][one["selection"]["metric"]] for one in reports)
