"""Schedules: the factor on the learning rates before each step. It refuses to know what moves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefixbank.trainer.recipe import OptimiserSection


def rate_factor(section: OptimiserSection, step: int, steps_per_epoch: int) -> float:
    """Factor before step `step` (from 0): a linear climb, then as the schedule says.

    `linear` falls to 0 at the end of the run; `exponential` is multiplied by `gamma` at each epoch's end, as in the
    published runs on sequence tasks (torch's ExponentialLR); `constant` stays.
    """
    num_steps = steps_per_epoch * section.epochs
    climb = math.ceil(section.warmup * num_steps)
    if step < climb:
        return (step + 1) / climb
    if section.schedule == "linear":
        return max(0.0, (num_steps - step) / max(1, num_steps - climb))
    return float(section.gamma ** (step // steps_per_epoch)) if section.schedule == "exponential" else 1.0
