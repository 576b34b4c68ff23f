"""Limits: how much one replica holds, queues and waits for.

Numbers only, with a sentence of advice under each. It refuses to know where they were read from.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one engine may hold and for how long."""

    token_budget: int = 4096
    """Tokens of one batch. Where the device is saturated, more only adds latency."""
    max_rows: int = 256
    """Rows of one batch."""
    max_queued_tokens: int = 262_144
    """Beyond this a request is refused with Overloaded: the tokens of a few seconds of full work."""
    pool_bytes: int = 512 * MIB
    """Device memory for prefixes and heads. The working set should fit: eviction costs a copy per use."""
    head_share: float = 0.25
    """Part of `pool_bytes` for heads. Raise it where every task brings its own pooler (RoBERTa)."""
    host_cache_bytes: int = 1024 * MIB
    """Host memory for loaded prompts, from which an evicted one returns to the device without a disk read."""
    timeout_s: float = 30.0
    """Deadline of a request that names none."""
    follow_interval_s: float = 0.1
    """How often the store's generation is looked at, to load what was promoted before somebody asks for it."""
    max_task_labels: int = 1000
    """Tasks with metric series of their own; the rest are counted as "other"."""
