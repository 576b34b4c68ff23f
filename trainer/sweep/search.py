"""Search: the trials of one recipe - asked for, begun or continued, followed and ended - and what is kept of them.

The folder of a sweep holds `trials/0000` and so on: a record each, and the checkpoint of those that run and of the best
that is complete. It refuses to know how steps are shared, when a trial ought to end, and what becomes of the best.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from prefixbank.model_store.durable import replace_file
from prefixbank.model_store.errors import PrefixbankError, TrainingError
from prefixbank.trainer import checkpoint
from prefixbank.trainer.build import build
from prefixbank.trainer.metrics import lower_is_better, signed
from prefixbank.trainer.sweep import record as records
from prefixbank.trainer.sweep.pruning import Standing, pruner_of
from prefixbank.trainer.sweep.record import COMPLETE, FAILED, PRUNED, Record
from prefixbank.trainer.sweep.shared_rows import SharedRows
from prefixbank.trainer.sweep.space import space_of
from prefixbank.trainer.sweep.study import Study
from prefixbank.trainer.sweep.trial_display import TrialDisplay, show_progress
from prefixbank.trainer.trial import MEAN, Epoch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefixbank.trainer.build import Built
    from prefixbank.trainer.pack import Pack
    from prefixbank.trainer.prepare import Prepared
    from prefixbank.trainer.recipe import Recipe
    from prefixbank.trainer.sweep_display import SweepDisplay
    from prefixbank.trainer.trial import Trial

logger = logging.getLogger(__name__)

TRIALS_FOLDER = "trials"
IDENTITY_FILE = "identity.json"
UNLIMITED = 10_000
"""Trials where only time ends a sweep."""


class Job(NamedTuple):
    """A recipe to sweep."""

    name: str
    recipe: Recipe
    """With a sweep section, which says how many trials and how they are chosen."""
    root: Path
    """What its paths are relative to."""
    out: Path
    most: int | None
    """Trials in all; None where only time ends the sweep."""
    best_file: str = "best.toml"
    """The recipe of the best settings, in `out`."""


class Search:
    """One recipe's sweep.

    Args:
        pack: the backbone that all trials share; full fine-tuning makes a copy for each.

    Raises:
        InvalidRecipe: the space does not fit the recipe.
    """

    def __init__(self, job: Job, pack: Pack, display: SweepDisplay) -> None:
        assert job.recipe.sweep is not None, "a sweep without its section. This is a bug."
        self.job = job
        self.section = job.recipe.sweep
        self.space = space_of(job.recipe)
        self.base = self.space.base
        self.pack = pack
        self.display = display
        self.most = UNLIMITED if job.most is None else job.most
        self.rows = SharedRows(job.root, pack.backbone)
        self.study = Study(self.space, self.section, self.base.seed, self.most)
        self.pruner = pruner_of(self.section.pruner, self.base.optimiser.epochs)
        self.records: list[Record] = []
        self.running: dict[int, Trial] = {}
        self._to_continue: list[Record] = []

    @property
    def prepared(self) -> Prepared:
        """The rows of the recipe itself."""
        return self.rows.of(self.base)

    @cached_property
    def held_out_tokens(self) -> tuple[int, int]:
        """Tokens of the validation rows and of the reported rows."""
        parts = self.prepared.parts.values()
        splits = [(part.items["validation"], part.items[part.reported]) for part in parts]
        chosen = sum(item.num_tokens for validation, _ in splits for item in validation)
        return chosen, sum(item.num_tokens for _, reported in splits for item in reported)

    @property
    def has_unfinished(self) -> bool:
        """Whether trials of an interrupted sweep wait to be continued."""
        return bool(self._to_continue)

    @property
    def best(self) -> Record | None:
        """The complete trial with the best validation score, or the best of the pruned ones where none is complete."""
        for state in (COMPLETE, PRUNED):
            found = [record for record in self.records if record.state == state and record.score is not None]
            if found:
                return max(found, key=lambda record: (self.signed(record.score), -record.number))
        return None

    @property
    def lower_is_better(self) -> bool:
        return lower_is_better(self.metric)

    def signed(self, score: float | None) -> float:
        """A score of which more is better."""
        assert score is not None, "a trial without a score cannot be compared. This is a bug."
        return signed(self.metric, score)

    def folder(self, number: int) -> Path:
        return self.job.out / TRIALS_FOLDER / f"{number:04d}"

    def begin(self, *, resume: bool) -> None:
        """Claim the folder, or take up what an interrupted sweep left in it.

        Raises:
            TrainingError: it holds another sweep, or one that nobody asked to resume.
        """
        identity = self._identity()
        self._check_folder(identity, resume=resume)
        self.job.out.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"identity": identity}).encode()
        replace_file(self.job.out / IDENTITY_FILE, [content], staging=self.job.out)
        for record in records.read_all(self.job.out / TRIALS_FOLDER):
            self._take_up(record)

    def next(self) -> Built | None:
        """The next trial, ready for its first step or its next; None when there is none."""
        while True:
            record = self._next_record()
            if record is None:
                return None
            built = self._build(record)
            if built is not None:
                self.running[record.number] = built.trial
                return built

    def number_of(self, trial: Trial) -> int | None:
        """The number of a running trial; None of another's."""
        return next((number for number, one in self.running.items() if one is trial), None)

    def note(self, trial: Trial) -> None:
        """A trial has closed an epoch."""
        number = self.number_of(trial)
        assert number is not None, "only running trials close epochs. This is a bug."
        self.study.report(number, self._scores(trial.state.curve, trial.metric))

    def standings(self) -> list[Standing]:
        """Of all trials that have an epoch behind them."""
        found = [
            self._standing(record.number, record.curve, is_running=False)
            for record in self.records
            if not record.is_running
        ]
        found += [
            self._standing(number, list(map(asdict, trial.state.curve)), is_running=not trial.state.finished)
            for number, trial in self.running.items()
        ]
        return found

    def end(self, trial: Trial) -> Record:
        """A trial has ended and is at its best epoch."""
        number = self.number_of(trial)
        assert number is not None, "a trial ends once. This is a bug."
        del self.running[number]
        record, state = self.records[number], trial.state
        if state.failure:
            record.state = PRUNED if state.pruned else FAILED
            record.reason = state.failure
        else:
            record.state, record.reason = COMPLETE, state.stopped
        record.curve = [asdict(epoch) for epoch in state.curve]
        record.epochs, record.seconds = state.epoch, state.seconds
        record.score = records.score_of(trial)
        self._close(record)
        return record

    def _next_record(self) -> Record | None:
        if self._to_continue:
            return self._to_continue.pop(0)
        number = len(self.records)
        places = self.study.ask() if number < self.most else None
        if places is None:
            return None
        settings = self.space.settings(places)
        record = Record(number, settings, places, seed=settings.get("seed", self.base.seed))
        records.write(record, self.folder(number))
        self.records.append(record)
        return record

    def _build(self, record: Record) -> Built | None:
        """None where the settings make no trial: it has failed then."""
        self.display.trial(record.number, record.settings, "running")
        folder = self.folder(record.number)
        try:
            built = self.build(record.settings, folder, TrialDisplay(self.display, record.number))
        except PrefixbankError as error:
            record.state, record.reason = FAILED, str(error)
            self._close(record)
            return None
        if checkpoint.is_in(folder):
            built.trial.resume()
            show_progress(self.display, record.number, built.trial)
            self.study.report(record.number, self._scores(built.trial.state.curve, built.trial.metric))
        return built

    def build(self, settings: dict[str, Any], folder: Path | None, display: TrialDisplay) -> Built:
        """A trial of some settings, with its checkpoints in `folder`, and the pack that runs it.

        Raises:
            PrefixbankError: they make none; the message says why.
        """
        recipe = self.space.recipe(settings)
        rows = self.rows.of(recipe)
        built = build(recipe, self.pack.backbone, rows, root=self.job.root, folder=folder, display=display)
        return built if recipe.method == "full" else built._replace(pack=self.pack)

    def _close(self, record: Record) -> None:
        """Write what became of a trial, and keep the best one's checkpoint alone."""
        signed = None if record.score is None else self.signed(record.score)
        records.write(record, self.folder(record.number))
        self.study.tell(record.number, record.state, signed)
        self.display.end(record.number, record.state, record.score)
        if record.state == FAILED:
            logger.warning("trial %d failed: %s", record.number, record.reason)
        for other in self._surpassed():
            checkpoint.remove(self.folder(other.number))

    def _surpassed(self) -> Iterator[Record]:
        best = self.best
        return (record for record in self.records if not record.is_running and record is not best)

    def _take_up(self, record: Record) -> None:
        self.records.append(record)
        self.study.again(record.places)
        if record.is_running:
            self._to_continue.append(record)
            return
        self.display.trial(record.number, record.settings, record.state)
        if record.curve and record.score is not None:
            self.display.epoch(record.number, Epoch(**record.curve[-1]), self.metric, record.score)
        self.study.report(record.number, self._scores(record.curve, self.metric))
        self.study.tell(record.number, record.state, None if record.score is None else self.signed(record.score))
        self.display.end(record.number, record.state, record.score)

    @property
    def metric(self) -> str:
        """What trials are judged by, as `Trial.metric` says it."""
        return MEAN if self.base.tasks is not None and self.base.metric != "loss" else self.base.metric

    def _scores(self, curve: Any, metric: str) -> tuple[float, ...]:
        """Validation scores of a curve's epochs, of which more is better."""
        found = (epoch["validation"] if isinstance(epoch, dict) else epoch.validation for epoch in curve)
        return tuple(self.signed(validation[metric]) for validation in found)

    def _standing(self, number: int, curve: list[dict[str, Any]], *, is_running: bool) -> Standing:
        losses = tuple(epoch["validation"]["loss"] for epoch in curve)
        return Standing(number, self._scores(curve, self.metric), is_running, losses)

    def _identity(self) -> str:
        """Digest of the recipe, the space, the data and the backbone."""
        space = {one.name: repr((one.values, one.interval)) for one in self.space.dimensions}
        facts = json.dumps(
            [self.prepared.identity(self.base, self.job.root), self.section.sampler, space], sort_keys=True
        )
        return hashlib.sha256(facts.encode()).hexdigest()

    def _check_folder(self, identity: str, *, resume: bool) -> None:
        path = self.job.out / IDENTITY_FILE
        found = _identity_in(path)
        if found is None:
            if resume:
                raise TrainingError(f"{self.job.out}: found no sweep, wanted one to resume")
        elif not resume:
            raise TrainingError(f"{self.job.out}: found a sweep, wanted --resume to continue it or another --out")
        elif found != identity:
            raise TrainingError(
                f"{self.job.out}: found the sweep of another recipe, space, backbone or of other data "
                f"({found[:12]}), wanted {identity[:12]}"
            )


def _identity_in(path: Path) -> str | None:
    """Of the sweep that claimed the folder; None where nobody has."""
    try:
        return str(json.loads(path.read_bytes())["identity"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{path}: found no identity of a sweep: {error}") from error
