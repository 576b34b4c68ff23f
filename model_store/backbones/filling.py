"""How short a matrix product may be before its rows round otherwise: shorter ones are filled up.

It refuses to know what the rows are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAST_ROWS = 16
"""A matrix product of fewer rows takes another path in CPU libraries and rounds otherwise, so shorter ones are filled
up with rows that nobody reads: a row then has the same bits alone and in company."""


def filled(x: Tensor) -> Tensor:
    """Append zeros along the first dimension, up to `LEAST_ROWS`."""
    missing = LEAST_ROWS - len(x)
    return x if missing <= 0 else torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
