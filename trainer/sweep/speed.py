"""Speed: what a trained and an evaluated token cost on this machine, measured on real rows before a plan is made.

It refuses to know plans and clocks' limits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prefixbank.trainer.dropout import stream_of
from prefixbank.trainer.trial import Share

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefixbank.trainer.pack import Pack
    from prefixbank.trainer.trial import Trial

MEASURED_S = 2.0
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
    began, tokens, number = clock(), 0, 1
    while clock() - began < seconds:
        tokens += _step(pack, trial, together, number)
        number += 1
    trained = (clock() - began) / tokens
    part = trial.parts[0]
    items = part.validation[:EVALUATED_ROWS]
    pack.predict(trial, part, items)
    began = clock()
    pack.predict(trial, part, items)
    return Speed(trained, (clock() - began) / sum(item.num_tokens for item in items))


def _step(pack: Pack, trial: Trial, together: int, number: int) -> int:
    """Gradients of one step; return its tokens."""
    shares = [_share(trial, number * together + place) for place in range(together)]
    torch.autograd.backward(torch.stack(pack.losses([trial] * together, shares)).sum())
    trial.optimiser.zero_grad(set_to_none=True)
    return sum(share.num_tokens for share in shares)


def _share(trial: Trial, number: int) -> Share:
    part, rows = trial.parts[0], trial.recipe.optimiser.batch_rows
    places = np.random.default_rng(number).choice(len(part.train), min(rows, len(part.train)), replace=False)
    items = sorted((part.train[place] for place in places), key=lambda item: item.num_tokens)
    return Share(part, items, stream_of(number, 0, trial.device))
