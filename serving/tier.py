"""TierState: what one tier of memory for prompts holds and has done since it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections import Counter


class TierState(NamedTuple):
    """The state of the device tier (the pool) or the host tier (the loaded prompts)."""

    num_prompts: int
    num_bytes: int
    hits: int
    misses: int
    evictions: Counter[str]
    """By reason."""
