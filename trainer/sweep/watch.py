"""Watch: after every step, whether the machine is still as fast as it was measured, and whether time is up.

Other programs come and go while a sweep runs. It refuses to know which trials are worth their time.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prefixbank.trainer.sweep.speed import Speed
    from prefixbank.trainer.sweep.time_limit import TimeLimit
    from prefixbank.trainer.trial import Trial

logger = logging.getLogger(__name__)

SLOW = 3.0
"""Times the measured cost of a token, from which on threads are thought to wait for other programs' cores."""
WINDOW_S = 3.0
"""Of training, over which the cost is taken."""


class Watch:
    """Asked by the loop after every step.

    Args:
        speed: as it was measured.
        reserve: seconds that what follows these trials will take.
    """

    def __init__(self, limit: TimeLimit, speed: Speed, reserve: Callable[[], float]) -> None:
        self.limit = limit
        self.speed = speed
        self.reserve = reserve
        self.slowness = 1.0
        """What a token costs now, over what it was measured to cost."""
        self._seen: dict[Trial, tuple[float, int]] = {}
        self._seconds, self._tokens = 0.0, 0

    def __call__(self, running: Sequence[Trial]) -> None:
        self._note(running)
        if self._seconds >= WINDOW_S:
            self.slowness = self._seconds / max(self._tokens, 1) / self.speed.train
            self._seconds, self._tokens = 0.0, 0
            self._use_fewer_threads(running)
        if self.limit.left < self.reserve():
            for one in stop_judged(running):
                logger.warning("seed %d: stopped in epoch %d, time is up", one.recipe.seed, one.state.epoch + 1)

    def _note(self, running: Sequence[Trial]) -> None:
        """What this step took, by the trials' own accounts: they leave out validation."""
        now = {one: (one.state.seconds, one.state.trained_tokens) for one in running}
        for one, (seconds, tokens) in now.items():
            before = self._seen.get(one, (seconds, tokens))
            self._seconds += seconds - before[0]
            self._tokens += tokens - before[1]
        self._seen = now

    def _use_fewer_threads(self, running: Sequence[Trial]) -> None:
        threads = torch.get_num_threads()
        if self.slowness < SLOW or threads == 1 or any(one.device.type != "cpu" for one in running):
            return
        torch.set_num_threads(threads // 2)
        logger.warning(
            "steps take %.0f times what they took: %d threads instead of %d", self.slowness, threads // 2, threads
        )


def stop_judged(trials: Iterable[Trial]) -> list[Trial]:
    """Time is up: end the trials that have a judged epoch and return them.

    The others go on to their first, for without one there is nothing to keep.
    """
    stopped = [one for one in trials if one.state.best_epoch and not one.state.finished]
    for one in stopped:
        one.stop("time was up")
    return stopped
