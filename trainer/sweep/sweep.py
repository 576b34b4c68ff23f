"""The sweep: trials of one or several recipes through one backbone, pruned and timed, then the best of each in full.

All of it is on disk at every moment, so an interrupted sweep continues where it was. It composes the other modules and
refuses to know how settings are chosen, what a display shows and how serving works.
"""

from __future__ import annotations

import logging
import operator
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.errors import InvalidRecipe, TrainingError, TrainingInterrupted
from prefixbank.trainer import report
from prefixbank.trainer.loop import Loop
from prefixbank.trainer.pack import Pack
from prefixbank.trainer.provenance import now
from prefixbank.trainer.recipe.write import moved, write
from prefixbank.trainer.sweep.finals import conclude_search, forget, seeds_of
from prefixbank.trainer.sweep.record import seconds_in
from prefixbank.trainer.sweep.referee import Referee, Timekeeper
from prefixbank.trainer.sweep.search import TRIALS_FOLDER, Search
from prefixbank.trainer.sweep.speed import fit_threads, measure
from prefixbank.trainer.sweep.time_limit import Pace
from prefixbank.trainer.sweep.trial_display import Silent, TrialDisplay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.build import Built
    from prefixbank.trainer.outcome import Verify
    from prefixbank.trainer.sweep.finals import Result
    from prefixbank.trainer.sweep.search import Job
    from prefixbank.trainer.sweep.speed import Speed
    from prefixbank.trainer.sweep.time_limit import TimeLimit
    from prefixbank.trainer.sweep.watch import Watch
    from prefixbank.trainer.sweep_display import SweepDisplay
    from prefixbank.trainer.trial import Trial

    Show = Callable[[str], SweepDisplay]
    """A display for what is named so."""

logger = logging.getLogger(__name__)


def sweep(
    jobs: Sequence[Job],
    backbone: Backbone,
    *,
    show: Show,
    limit: TimeLimit | None = None,
    resume: bool = False,
    verify: Verify | None = None,
    speed: Speed | None = None,
) -> list[Result]:
    """Search the settings of each job's recipe, run the best once per seed, and write all of it under the job's folder.

    Args:
        limit: by when all must be done. What trials took before an interruption counts.
        resume: continue interrupted sweeps.
        verify: asks the serving engine for its logits, as for a run.
        speed: as measured already; by default it is measured where there is a limit.

    Raises:
        InvalidRecipe: a space does not fit its recipe, or the recipes cannot share a backbone.
        InvalidData, TrainingError: a sweep cannot begin, or no trial of it succeeds.
        TrainingInterrupted: Ctrl-C or SIGTERM; `resume` continues.
        ServingMismatch: the served logits differ from the trained ones.
    """
    _check_shared(jobs)
    if resume and all(report.is_finished(job.out) for job in jobs):
        raise TrainingError(
            f"{jobs[0].out}: found a sweep that is finished, wanted an interrupted one, or another --out"
        )
    pack = Pack(backbone)
    with ExitStack() as shown:
        searches = [Search(job, pack, shown.enter_context(show(job.name))) for job in jobs]
        for search in searches:
            search.display.start(search.job.most)
            search.begin(resume=resume)
        if limit is not None and resume:
            limit = limit.shortened(sum(seconds_in(job.out / TRIALS_FOLDER) for job in jobs))
        if limit is not None and speed is None:
            speed = measured_speed(searches[0])
        referee = Referee(searches, _pace(limit), limit, speed)
        referee.warn()
        _search(searches, referee)
    return _conclude(searches, referee, show, verify)


def measured_speed(search: Search) -> Speed:
    """What tokens cost in packs of this search's trials, with as many threads as are of use."""
    built = search.build(search.space.settings(search.space.own()), None, TrialDisplay(search.display, 0))
    is_full = search.base.method == "full"
    fit_threads(built.pack, built.trial)
    return measure(built.pack, built.trial, 1 if is_full else search.section.together)


def record_of(search: Search, result: Result | None) -> dict[str, Any]:
    """What sweep.json holds."""
    return {
        "recipe": search.base.model_dump(mode="json"),
        "metric": search.metric,
        "created": now(),
        "environment": {} if result is None else result.trained.report["environment"],
        "trials": [asdict(record) for record in search.records],
        "best": None if result is None else result.to_json(),
    }


class _Supply:
    """Trials as there is room and time for them: what there is none for now, there may be later."""

    def __init__(self, searches: Sequence[Search], referee: Referee) -> None:
        self.searches = searches
        self.referee = referee

    def __iter__(self) -> Iterator[Built]:
        return self

    def __next__(self) -> Built:
        for search in sorted(self.searches, key=lambda search: len(search.running)):
            if self.referee.may_begin(search):
                built = search.next()
                if built is not None:
                    return built
        raise StopIteration


def _search(searches: Sequence[Search], referee: Referee) -> None:
    supply = _Supply(searches, referee)
    try:
        for trial in _run(supply, searches, referee, referee.watch):
            search = next(search for search in searches if search.number_of(trial) is not None)
            search.end(trial)
            report.write_sweep(record_of(search, None), search.job.out)
    except TrainingInterrupted as stop:
        raise _interrupted(searches) from stop


def _conclude(searches: Sequence[Search], referee: Referee, show: Show, verify: Verify | None) -> list[Result]:
    finals: dict[str, list[Built]] = {search.job.name: [] for search in searches}
    trials: list[Trial] = []
    with ExitStack() as shown:

        def supply() -> Iterator[Built]:
            for search in searches:
                display = shown.enter_context(_display_of_seeds(search, show))
                for built in seeds_of(search, display):
                    finals[search.job.name].append(built)
                    trials.append(built.trial)
                    yield built

        timekeeper = Timekeeper(trials, _pace(referee.limit), referee)
        try:
            for trial in _run(supply(), searches, timekeeper, timekeeper.watch):
                _tell_end(trial)
        except TrainingInterrupted as stop:
            raise _interrupted(searches) from stop
    return [_write(search, conclude_search(search, finals[search.job.name], verify)) for search in searches]


def _display_of_seeds(search: Search, show: Show) -> SweepDisplay:
    """Nothing is to be seen where the one seed has been trained already."""
    if search.section.seeds == 1:
        return Silent()
    logger.info("%s: the best settings, once for each seed", search.job.name)
    display = show(f"{search.job.name}, best settings")
    display.start(search.section.seeds)
    return display


def _tell_end(trial: Trial) -> None:
    display = trial.display
    assert isinstance(display, TrialDisplay), "a sweep's trials tell the sweep's display. This is a bug."
    display.end(trial)


def _write(search: Search, result: Result) -> Result:
    out = search.job.out
    path = out / search.job.best_file
    write(moved(result.recipe, search.job.root, out), path, _comment(search, result, path))
    report.write_sweep(record_of(search, result), out)
    forget(search)
    return result


def _comment(search: Search, result: Result, path: Path) -> str:
    seeds = f"over {len(result.seeds)} seeds" if len(result.seeds) > 1 else "of one seed"
    return (
        f"The best of {len(search.records)} trials by validation {search.metric}.\n"
        f"{result.split} {search.metric} {result.mean:.4f} +- {result.std:.4f} {seeds}; this one's artifact was kept.\n"
        f"{_ended_early(result)}Train it again: prefixbank train {path}"
    )


def _ended_early(result: Result) -> str:
    report = result.trained.report
    if not report["stopped"]:
        return ""
    return f"It ended after epoch {len(report['curve'])} of {result.recipe.optimiser.epochs}: {report['stopped']}.\n"


def _run(
    supply: Iterable[Built], searches: Sequence[Search], judge: Callable[[Trial], None], watch: Watch | None
) -> Iterator[Trial]:
    """Trials as they end. Full fine-tuning moves a backbone of its own, so those run one by one."""
    if searches[0].base.method == "full":
        for built in supply:
            yield from Loop(built.pack, judge=judge, watch=watch).run([built.trial])
        return
    together = max(search.section.together for search in searches)
    loop = Loop(searches[0].pack, most_trials=together, judge=judge, watch=watch)
    yield from loop.run(map(operator.attrgetter("trial"), supply))


def _pace(limit: TimeLimit | None) -> Pace:
    return Pace() if limit is None else Pace(limit.clock)


def _check_shared(jobs: Sequence[Job]) -> None:
    first = jobs[0].recipe
    for job in jobs[1:]:
        for name in ("backbone", "dtype"):
            found, wanted = getattr(job.recipe, name), getattr(first, name)
            if found != wanted:
                where = f"{job.name}: {name}: found {found!r}, wanted {wanted!r} as in {jobs[0].name}"
                raise InvalidRecipe(f"{where}: recipes that are swept together share a backbone")
    if len(jobs) > 1 and any(job.recipe.method == "full" for job in jobs):
        raise InvalidRecipe('method: found "full", wanted a sweep of its own: it moves the backbone')
    names = [job.out.resolve() for job in jobs]
    if len(set(names)) != len(names):
        raise InvalidRecipe(f"found recipes of one name ({jobs[0].out}), wanted a folder for each")


def _interrupted(searches: Sequence[Search]) -> TrainingInterrupted:
    ended = sum(not record.is_running for search in searches for record in search.records)
    running = sum(len(search.running) for search in searches)
    folders = ", ".join(str(search.job.out) for search in searches)
    return TrainingInterrupted(
        f"interrupted with {ended} trials ended and {running} running: {folders} holds them, --resume continues"
    )
