"""What a person sees of a run: a bar on a terminal, one log line per epoch elsewhere.

It refuses to know how anything is computed.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from prefixbank.trainer.trial import Epoch

logger = logging.getLogger(__name__)


class Display(Protocol):
    """Told where a run is; a context manager around all of it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def start(self, num_steps: int, finished: int) -> None:
        """The run has `num_steps` in all, `finished` of them before an interruption."""

    def step(self, step: int, loss: float) -> None:
        """A step is done; `loss` is the mean of its epoch so far."""

    def epoch(self, epoch: Epoch, metric: str, best_epoch: int) -> None:
        """An epoch is judged."""


class LogDisplay:
    """One line per epoch in the log."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, num_steps: int, finished: int) -> None:
        logger.info("training for %d steps, %d of them done", num_steps, finished)

    def step(self, step: int, loss: float) -> None:
        pass

    def epoch(self, epoch: Epoch, metric: str, best_epoch: int) -> None:
        logger.info("%s", _line(epoch, metric, best_epoch))


class BarDisplay:
    """A progress bar with loss and metric, and a line that stays per epoch."""

    def __init__(self) -> None:
        self._bar = _bar()
        self._task: TaskID | None = None
        self._metric = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, num_steps: int, finished: int) -> None:
        self._task = self._bar.add_task("train", total=num_steps, completed=finished, figures="")

    def step(self, step: int, loss: float) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=step, figures=f"loss {loss:.4f}  {self._metric}")

    def epoch(self, epoch: Epoch, metric: str, best_epoch: int) -> None:
        self._metric = f"{metric} {epoch.validation[metric]:.4f}"
        self._bar.console.print(_line(epoch, metric, best_epoch), highlight=False)


class Displays:
    """Several at once: each is told everything, in the order given."""

    def __init__(self, *displays: Display) -> None:
        self.displays = displays
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        for display in self.displays:
            self._entered.enter_context(display)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def start(self, num_steps: int, finished: int) -> None:
        for display in self.displays:
            display.start(num_steps, finished)

    def step(self, step: int, loss: float) -> None:
        for display in self.displays:
            display.step(step, loss)

    def epoch(self, epoch: Epoch, metric: str, best_epoch: int) -> None:
        for display in self.displays:
            display.epoch(epoch, metric, best_epoch)


def display_for_terminal() -> Display:
    """A bar where standard error is a terminal, log lines where it is not."""
    return BarDisplay() if sys.stderr.isatty() else LogDisplay()


def _line(epoch: Epoch, metric: str, best_epoch: int) -> str:
    figures = f"loss {epoch.train_loss:.4f}  validation {metric} {epoch.validation[metric]:.4f}"
    return f"epoch {epoch.epoch:3d}  {figures}  {epoch.seconds:.1f} s{'  best' if best_epoch == epoch.epoch else ''}"


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
    return Progress(*columns, console=Console(stderr=True))
