"""What the CPU's 16-bit products remember of every shape they have met, and how much of it is kept.

oneDNN compiles a product for its exact shape and keeps it, and PyTorch keeps what it prepared beside: 1,024 of each by
default. Packed batches are hardly ever of the same length twice, so a server or a training run only grows by them:
`benchmarks.shape_caches` says by how much. It refuses to know what is multiplied.
"""

from __future__ import annotations

import os

KEPT_SHAPES = 128
"""Enough for a model's own shapes over a few batches of one length."""
VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Read once, at the process's first such product."""


def bound_shape_caches() -> None:
    """Keep few shapes, unless the environment says how many."""
    for name in VARIABLES:
        os.environ.setdefault(name, str(KEPT_SHAPES))
