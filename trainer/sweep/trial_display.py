"""What the display of a sweep is told by one of its trials; and a display that shows nothing.

It refuses to know where it is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from prefixbank.trainer.sweep.record import COMPLETE, FAILED, score_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefixbank.trainer.sweep_display import SweepDisplay
    from prefixbank.trainer.trial import Epoch, Trial


class Silent:
    """A sweep's display that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, num_trials: int | None) -> None:
        pass

    def trial(self, number: int, settings: Mapping[str, Any], state: str) -> None:
        pass

    def epoch(self, number: int, epoch: Epoch, metric: str, best: float) -> None:
        pass

    def end(self, number: int, state: str, score: float | None) -> None:
        pass


class TrialDisplay:
    """A trial's display, which passes its epochs on with the trial's number."""

    def __init__(self, sweep: SweepDisplay, number: int) -> None:
        self.sweep = sweep
        self.number = number
        self._best: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, num_steps: int, finished: int) -> None:
        pass

    def step(self, step: int, loss: float) -> None:
        pass

    def epoch(self, epoch: Epoch, metric: str, best_epoch: int) -> None:
        found = epoch.validation[metric]
        if self._best is None or best_epoch == epoch.epoch:
            self._best = found
        self.sweep.epoch(self.number, epoch, metric, self._best)

    def end(self, trial: Trial) -> None:
        """The trial has ended."""
        self.sweep.end(self.number, FAILED if trial.state.failure else COMPLETE, score_of(trial))


def show_progress(display: SweepDisplay, number: int, trial: Trial) -> None:
    """Tell a display how far a trial had come when it was interrupted."""
    score = score_of(trial)
    if score is not None:
        display.epoch(number, trial.state.curve[-1], trial.metric, score)
