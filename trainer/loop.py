"""The loop: steps, epochs, early ends and checkpoints of trials that share a backbone. A run alone is one trial.

A trial that ends makes room for the next. It refuses to know recipes' origins, metrics' definitions and what becomes
of a trial. Randomness is a function of seed and step alone, so a resumed trial continues bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from itertools import islice
from typing import TYPE_CHECKING

import torch

from prefixbank.model_store.errors import TrainingInterrupted
from prefixbank.trainer.evaluate import evaluate
from prefixbank.trainer.interruption import catch_interruption

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from prefixbank.trainer.pack import Pack
    from prefixbank.trainer.trial import StepShare, Trial

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 30.0
"""A run killed without warning loses at most this much, and the step it is in."""


class Loop:
    """Trains trials to their ends.

    Args:
        most_trials: how many share a step.
        judge: asked after every epoch of a trial; it may end it.
        watch: asked after every step, with the running trials; it may end some as well.
    """

    def __init__(
        self,
        pack: Pack,
        *,
        most_trials: int = 1,
        judge: Callable[[Trial], None] | None = None,
        watch: Callable[[Sequence[Trial]], None] | None = None,
    ) -> None:
        self.pack = pack
        self.most_trials = most_trials
        self.judge = judge
        self.watch = watch
        self.running: list[Trial] = []
        self._saved_at = time.monotonic()

    def run(self, trials: Iterable[Trial]) -> Iterator[Trial]:
        """Yield each trial when it has ended, at its best epoch; the next is asked for when there is room.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; checkpoints are written.
        """
        waiting = iter(trials)
        with catch_interruption() as asked:
            while True:
                self._fill(waiting)
                if not self.running:
                    return
                self._stop_if(asked)
                if not any(trial.state.finished for trial in self.running):
                    self.step()
                    self._close_epochs()
                    if self.watch is not None:
                        self.watch(self.running)
                yield from self._ended()
                self._save_sometimes()

    def _fill(self, waiting: Iterator[Trial]) -> None:
        for trial in islice(waiting, self.most_trials - len(self.running)):
            trial.display.start(trial.num_steps, trial.state.step)
            self.running.append(trial)

    def step(self) -> None:
        """One step of every running trial."""
        began = time.perf_counter()
        shares = [trial.share() for trial in self.running]
        losses = self.pack.losses(self.running, shares)
        values = torch.stack([loss.detach() for loss in losses]).tolist()
        _differentiate([loss for loss, value in zip(losses, values, strict=True) if math.isfinite(value)])
        seconds = time.perf_counter() - began
        tokens = sum(share.num_tokens for share in shares)
        for trial, share, value in zip(self.running, shares, values, strict=True):
            self._move(trial, share, value, seconds * share.num_tokens / tokens)

    def _move(self, trial: Trial, share: StepShare, loss: float, seconds: float) -> None:
        if math.isfinite(loss):
            trial.move(share, loss, seconds)
        else:
            _diverge(trial, f"found a loss of {loss} in step {trial.state.step}")

    def _close_epochs(self) -> None:
        at_end = [trial for trial in self.running if not trial.state.finished and trial.is_at_end_of_epoch]
        judged = [(trial, self._validated(trial)) for trial in at_end]  # a judge of one looks at the others too
        for trial, scores in judged:
            if scores is not None:
                trial.close_epoch(scores)
                if self.judge is not None:
                    self.judge(trial)
            trial.save()

    def _validated(self, trial: Trial) -> dict[str, float] | None:
        try:
            return evaluate(self.pack, trial)
        except FloatingPointError as error:
            _diverge(trial, f"{error} after step {trial.state.step}")
            return None

    def _ended(self) -> Iterator[Trial]:
        for trial in [trial for trial in self.running if trial.state.finished]:
            self.running.remove(trial)
            trial.keep_best()
            yield trial

    def _stop_if(self, asked: threading.Event) -> None:
        if not asked.is_set():
            return
        for trial in self.running:
            trial.save()
        states = ", ".join(f"epoch {trial.state.epoch + 1} after step {trial.state.step}" for trial in self.running)
        folder = self.running[0].folder
        kept = "nothing is kept" if folder is None else f"{folder} holds it, --resume continues"
        raise TrainingInterrupted(f"interrupted in {states}: {kept}")

    def _save_sometimes(self) -> None:
        if time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
            for trial in self.running:
                trial.save()
            self._saved_at = time.monotonic()


def _diverge(trial: Trial, found: str) -> None:
    trial.diverge(found)
    if trial.state.stopped:
        logger.warning("seed %d: %s; epoch %d is kept", trial.recipe.seed, trial.state.stopped, trial.state.best_epoch)


def _differentiate(losses: list[Tensor]) -> None:
    """Gradients of all trials at once: each loss reaches its own trial's parameters alone."""
    if losses:
        torch.autograd.backward(torch.stack(losses).sum())
