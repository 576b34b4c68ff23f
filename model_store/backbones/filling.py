"""How short a matrix product may be before its rows round otherwise: shorter ones are filled up.

It refuses to know what the rows are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAST_ROWS = {"cpu": 16, "cuda": 256}
"""A matrix product of fewer rows takes another path in the libraries of a device and rounds otherwise, so shorter ones
are filled up with rows that nobody reads: a row then has the same bits alone and in company. On a GPU that is so for
16-bit numbers; see `docs/decisions/0017-rows-on-a-gpu.md`."""


def filled(x: Tensor) -> Tensor:
    """Append zeros along the first dimension, up to what `LEAST_ROWS` says of the tensor's device."""
    missing = LEAST_ROWS.get(x.device.type, 0) - len(x)
    return x if missing <= 0 else torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
