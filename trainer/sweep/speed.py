"""Speed: what a trained and an evaluated token cost on this machine, measured on real rows before a plan is made.

It refuses to know plans and clocks' limits.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prefixbank.trainer.dropout import stream_of
from prefixbank.trainer.trial import StepShare

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefixbank.trainer.pack import Pack
    from prefixbank.trainer.trial import Trial

MEASURED_S = 2.0
TRIED_S = 0.7
TRIED_ROWS = 16
FASTER = 0.95
"""More threads must take at most this share of the time of fewer."""
EVALUATED_ROWS = 64


class Speed(NamedTuple):
    """Seconds a token."""

    train: float
    evaluate: float


def measure(
    pack: Pack, trial: Trial, together: int, *, seconds: float = MEASURED_S, clock: Callable[[], float] = time.monotonic
) -> Speed:
    """Time steps of `together` trials like this one, and evaluations; nothing of the trial is moved."""
    _step(pack, trial, 1, 0)  # compiles, plans and fills caches
    trained = _seconds_a_token(pack, trial, together, seconds, clock)
    part = trial.parts[0]
    items = part.validation[:EVALUATED_ROWS]
    pack.predict(trial, part, items)
    began = clock()
    pack.predict(trial, part, items)
    return Speed(trained, (clock() - began) / sum(item.num_tokens for item in items))


def fit_threads(
    pack: Pack, trial: Trial, *, seconds: float = TRIED_S, clock: Callable[[], float] = time.monotonic
) -> int:
    """Set and return the number of threads with which a forward is fastest on this CPU now, up to as many as are set.

    Threads wait for each other at every operation: on a machine whose cores others use, one alone may be many times
    faster than two.
    """
    most = torch.get_num_threads()
    if trial.device.type != "cpu":
        return most
    fastest, found, number = math.inf, most, 1
    torch.set_num_threads(number)
    _forward(pack, trial)
    while True:
        torch.set_num_threads(number)
        took = _seconds_a_forward(pack, trial, seconds, clock)
        if took > FASTER * fastest:
            break
        fastest, found = took, number
        if number == most:
            break
        number = min(2 * number, most)
    torch.set_num_threads(found)
    return found


def _seconds_a_forward(pack: Pack, trial: Trial, seconds: float, clock: Callable[[], float]) -> float:
    began, count = clock(), 0
    while not count or clock() - began < seconds:
        _forward(pack, trial)
        count += 1
    return (clock() - began) / count


def _forward(pack: Pack, trial: Trial) -> None:
    part = trial.parts[0]
    pack.predict(trial, part, part.train[:TRIED_ROWS])


def _seconds_a_token(pack: Pack, trial: Trial, together: int, seconds: float, clock: Callable[[], float]) -> float:
    began, tokens, number = clock(), 0, 1
    while not tokens or clock() - began < seconds:
        tokens += _step(pack, trial, together, number)
        number += 1
    return (clock() - began) / tokens


def _step(pack: Pack, trial: Trial, together: int, number: int) -> int:
    """Gradients of one step; return its tokens."""
    shares = [_share(trial, number * together + place) for place in range(together)]
    torch.autograd.backward(torch.stack(pack.losses([trial] * together, shares)).sum())
    trial.optimiser.zero_grad(set_to_none=True)
    return sum(share.num_tokens for share in shares)


def _share(trial: Trial, number: int) -> StepShare:
    part, rows = trial.parts[0], trial.recipe.optimiser.batch_rows
    places = np.random.default_rng(number).choice(len(part.train), min(rows, len(part.train)), replace=False)
    items = sorted((part.train[place] for place in places), key=lambda item: item.num_tokens)
    return StepShare(part, items, stream_of(number, 0, trial.device))
