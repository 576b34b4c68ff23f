"""What a person sees of a sweep: a live table of the running trials on a terminal, log lines elsewhere.

It refuses to know how trials are chosen and trained.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from prefixbank.trainer.metrics import signed
from prefixbank.trainer.report.wording import brief, flat, spoken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from prefixbank.trainer.trial import Epoch

logger = logging.getLogger(__name__)

NOTHING = "-"


class SweepDisplay(Protocol):
    """Told where a sweep is; a context manager around all of it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def start(self, num_trials: int | None) -> None:
        """So many trials are planned; None where time decides."""

    def trial(self, number: int, settings: Mapping[str, Any], state: str) -> None:
        """A trial begins, or its state changes."""

    def epoch(self, number: int, epoch: Epoch, metric: str, best: float) -> None:
        """An epoch of a trial is judged; `best` is the trial's best score so far."""

    def end(self, number: int, state: str, score: float | None) -> None:
        """A trial has ended: complete, pruned or failed."""


@dataclass(slots=True)
class _Running:
    settings: str
    state: str
    epoch: Epoch | None = None
    best: float | None = None


class SweepProgress:
    """Where a sweep is, for either display: what runs, what has ended, who leads."""

    def __init__(self) -> None:
        self.num_trials: int | None = None
        self.running: dict[int, _Running] = {}
        self.metric = "score"
        self.ended = 0
        self.leader: tuple[int, float, str] | None = None
        """Number, score and settings of the best complete trial."""

    def trial(self, number: int, settings: Mapping[str, Any], state: str) -> _Running:
        """The trial's line."""
        line = self.running.setdefault(number, _Running(settings_line(settings), state))
        line.state = state
        return line

    def epoch(self, number: int, epoch: Epoch, metric: str, best: float) -> _Running:
        """The trial's line, an epoch on."""
        line = self.running[number]
        self.metric, line.epoch, line.best = metric, epoch, best
        return line

    def end(self, number: int, state: str, score: float | None) -> str:
        """The trial in one sentence; it runs no more."""
        line = self.running.pop(number)
        self.ended += 1
        is_best = score is not None and state == "complete" and self._leads(score)
        if is_best and score is not None:
            self.leader = (number, score, line.settings)
        reached = "no score" if score is None else f"{spoken(self.metric)} {score:.4f}"
        return f"trial {number:3d}  {state:8}  {reached}  {line.settings}{'  best' if is_best else ''}"

    def headline(self) -> str:
        """How far the sweep is, and who leads."""
        done = f"{self.ended} of {self.num_trials}" if self.num_trials is not None else str(self.ended)
        if self.leader is None:
            return f"{done} trials ended"
        number, score, settings = self.leader
        return f"{done} trials ended, best {spoken(self.metric)} {score:.4f} by trial {number} ({settings})"

    def _leads(self, score: float) -> bool:
        if self.leader is None:
            return True
        return signed(self.metric, score) > signed(self.metric, self.leader[1])


class LogSweepDisplay:
    """A line in the log when a trial begins and when it ends."""

    def __init__(self) -> None:
        self._progress = SweepProgress()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, num_trials: int | None) -> None:
        self._progress.num_trials = num_trials
        logger.info("sweep of %s", "as many trials as time allows" if num_trials is None else f"{num_trials} trials")

    def trial(self, number: int, settings: Mapping[str, Any], state: str) -> None:
        line = self._progress.trial(number, settings, state)
        logger.info("trial %3d  %-8s  %s", number, state, line.settings)

    def epoch(self, number: int, epoch: Epoch, metric: str, best: float) -> None:
        self._progress.epoch(number, epoch, metric, best)

    def end(self, number: int, state: str, score: float | None) -> None:
        logger.info("%s", self._progress.end(number, state, score))
        logger.info("%s", self._progress.headline())


class TableSweepDisplay:
    """A live table, a line a running trial; trials that have ended stay above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._progress = SweepProgress()
        self._live = Live(console=Console(stderr=True), get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def start(self, num_trials: int | None) -> None:
        self._progress.num_trials = num_trials

    def trial(self, number: int, settings: Mapping[str, Any], state: str) -> None:
        self._progress.trial(number, settings, state)

    def epoch(self, number: int, epoch: Epoch, metric: str, best: float) -> None:
        self._progress.epoch(number, epoch, metric, best)

    def end(self, number: int, state: str, score: float | None) -> None:
        self._live.console.print(self._progress.end(number, state, score), highlight=False, markup=False)

    def _table(self) -> Table:
        return progress_table(self._progress)


def sweep_display_for_terminal() -> SweepDisplay:
    """A table where standard error is a terminal, log lines where it is not."""
    return TableSweepDisplay() if sys.stderr.isatty() else LogSweepDisplay()


def progress_table(progress: SweepProgress) -> Table:
    """The running trials, one a line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(progress.headline()), title_justify="left")
    for name in ("trial", "epoch", "loss", spoken(progress.metric), "best"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for number, line in sorted(progress.running.items()):
        table.add_row(str(number), *_figures(line, progress.metric), line.state, Text(line.settings))
    return table


def settings_line(settings: Mapping[str, Any]) -> str:
    """Settings in a line, by the last parts of their names where those are unlike: length=20 rate=0.01."""
    found = list(flat(settings))
    last = [name.rpartition(".")[2] for name, _ in found]
    shown = last if len(set(last)) == len(last) else [name for name, _ in found]
    return " ".join(f"{name}={brief(value)}" for name, (_, value) in zip(shown, found, strict=True))


def _figures(line: _Running, metric: str) -> tuple[str, str, str, str]:
    """Epoch, loss, validation and best."""
    epoch = line.epoch
    if epoch is None:
        return NOTHING, NOTHING, NOTHING, NOTHING
    return str(epoch.epoch), _four(epoch.train_loss), _four(epoch.validation.get(metric)), _four(line.best)


def _four(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"
