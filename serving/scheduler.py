"""Scheduler: decides which queued rows go next.

First in first out within a tenant, deficit round robin by tokens between tenants, a token budget and a row cap per
batch, deadlines and cancellations honoured when the batch is formed, refusal at the door when the queue is full.
It refuses to know tensors, devices, prompts and threads; it is safe to call from any of them.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from prefixbank.model_store.errors import DeadlineExceeded, Overloaded, ShuttingDown

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from prefixbank.serving.encoding import Encoding
    from prefixbank.serving.loaded_prompt import LoadedPrompt

QUANTUM_TOKENS = 128
"""What a tenant may take per turn: small turns interleave tenants finely, and a turn costs a microsecond."""

RATE_MEMORY = 0.8
"""Weight of the past in the running average of the drain rate."""

RETRY_UNKNOWN_S = 1.0
"""Retry advice before the first batch has told how fast the queue drains."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One row in the queue: payload (encoding, prompt) and promise (future, tenant, deadline, enqueue time)."""

    encoding: Encoding
    prompt: LoadedPrompt
    future: Future[NDArray[np.float32]]
    """Receives the row's logits, [1, C] or [T, C]."""
    tenant: str
    deadline: float
    """Time of the scheduler's clock, seconds."""
    enqueued: float
    """Time of the scheduler's clock, seconds."""

    @property
    def num_tokens(self) -> int:
        """What it costs of a batch: its text and, before that, the vectors of a shallow prompt."""
        return self.encoding.num_tokens + self.prompt.num_virtual


class QueueState(NamedTuple):
    """What the queue holds at one moment."""

    depth: int
    tokens: int
    oldest_age_s: float


@dataclass(slots=True)
class _Line:
    """One tenant's queue and what it may still take in its turn."""

    tenant: str
    entries: deque[Entry] = field(default_factory=deque)
    deficit: int = QUANTUM_TOKENS


class Scheduler:
    """The queue in front of the engine.

    `max_queued_tokens` bounds what waits; a request larger than that is taken only by an empty queue.
    """

    def __init__(self, token_budget: int, max_rows: int, max_queued_tokens: int, clock: Callable[[], float]) -> None:
        self._token_budget = token_budget
        self._max_rows = max_rows
        self._max_queued_tokens = max_queued_tokens
        self._clock = clock
        self._changed = threading.Condition()
        self._lines: dict[str, _Line] = {}
        self._ring: deque[_Line] = deque()  # tenants with entries, next turn first
        self._queued_tokens = 0
        self._closed = False
        self._rate: float | None = None  # tokens per second while there was work
        self._last_batch: tuple[float, int] | None = None  # when it was formed, and its tokens

    def submit(self, *entries: Entry) -> None:
        """Queue all entries of one request, or none.

        Raises:
            Overloaded: when the queue has no room for them.
            ShuttingDown: after `close`.
        """
        tokens = sum(entry.num_tokens for entry in entries)
        with self._changed:
            if self._closed:
                raise ShuttingDown("the engine is shutting down")
            if self._queued_tokens and self._queued_tokens + tokens > self._max_queued_tokens:
                raise self._refusal()
            for entry in entries:
                self._append(entry)
            self._changed.notify_all()

    def next_batch(self) -> list[Entry]:
        """Form the next batch; empty when nothing that is still wanted waits.

        Every entry returned is marked running, so its future can no longer be cancelled. Entries past their
        deadline receive DeadlineExceeded here.
        """
        with self._changed:
            now = self._clock()
            self._observe_drain(now)
            batch: list[Entry] = []
            late: list[Entry] = []
            self._fill(batch, late, now)
            tokens = sum(entry.num_tokens for entry in batch)
            self._last_batch = (now, tokens) if batch else None
        for entry in late:  # outside the lock: callbacks run here
            waited = now - entry.enqueued
            entry.future.set_exception(DeadlineExceeded(f"waited {waited:.3f} s in the queue, past its deadline"))
        return batch

    def wait_for_work(self, timeout_s: float | None = None) -> bool:
        """Block until something is queued, the scheduler closes, or the time is over; whether something is queued."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ring) or self._closed, timeout_s)
            return bool(self._ring)

    def close(self) -> None:
        """Refuse new entries; what is queued can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drain(self) -> list[Entry]:
        """Take out everything that waits, whatever its deadline; the futures are left as they are."""
        with self._changed:
            entries = [entry for line in self._ring for entry in line.entries]
            self._ring.clear()
            self._lines.clear()
            self._queued_tokens = 0
            return entries

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def has_work(self) -> bool:
        return bool(self._ring)

    def state(self) -> QueueState:
        with self._changed:
            now = self._clock()
            oldest = min((line.entries[0].enqueued for line in self._ring), default=now)
            depth = sum(len(line.entries) for line in self._ring)
            return QueueState(depth, self._queued_tokens, max(0.0, now - oldest))

    def check_integrity(self) -> None:
        """Raise AssertionError when the queue's own books disagree."""
        with self._changed:
            assert {id(line) for line in self._ring} == {id(line) for line in self._lines.values()}
            assert all(line.entries for line in self._ring), "an empty line waits for a turn. This is a bug."
            tokens = sum(entry.num_tokens for line in self._ring for entry in line.entries)
            assert tokens == self._queued_tokens, (
                f"{self._queued_tokens} tokens booked, {tokens} queued. This is a bug."
            )

    def _append(self, entry: Entry) -> None:
        line = self._lines.get(entry.tenant)
        if line is None:
            line = self._lines[entry.tenant] = _Line(entry.tenant)
            self._ring.append(line)
        line.entries.append(entry)
        self._queued_tokens += entry.num_tokens

    def _fill(self, batch: list[Entry], late: list[Entry], now: float) -> None:
        """Give turns until the batch is full or the ring is empty."""
        room = self._token_budget
        while self._ring and len(batch) < self._max_rows:
            line = self._ring[0]
            self._shed(line, late, now)
            if not line.entries:
                self._retire(line)
            elif line.deficit < line.entries[0].num_tokens:
                line.deficit += QUANTUM_TOKENS
                self._ring.rotate(-1)
            elif batch and line.entries[0].num_tokens > room:
                return  # this line keeps its turn: it goes first in the next batch
            else:
                entry = self._pop(line)
                line.deficit -= entry.num_tokens
                if entry.future.set_running_or_notify_cancel():
                    batch.append(entry)
                    room -= entry.num_tokens

    def _shed(self, line: _Line, late: list[Entry], now: float) -> None:
        """Drop what nobody waits for any more from the head of the line."""
        while line.entries and (line.entries[0].future.cancelled() or line.entries[0].deadline <= now):
            entry = self._pop(line)
            if entry.future.set_running_or_notify_cancel():
                late.append(entry)

    def _pop(self, line: _Line) -> Entry:
        entry = line.entries.popleft()
        self._queued_tokens -= entry.num_tokens
        return entry

    def _retire(self, line: _Line) -> None:
        self._ring.popleft()
        del self._lines[line.tenant]

    def _observe_drain(self, now: float) -> None:
        """Learn the drain rate from the previous batch, if the queue has not run empty since."""
        if self._last_batch is None or not self._ring:
            return
        formed, tokens = self._last_batch
        if now <= formed:
            return
        rate = tokens / (now - formed)
        self._rate = rate if self._rate is None else RATE_MEMORY * self._rate + (1 - RATE_MEMORY) * rate

    def _refusal(self) -> Overloaded:
        seconds = self._queued_tokens / self._rate if self._rate else RETRY_UNKNOWN_S
        return Overloaded(f"the queue holds {self._queued_tokens} tokens of at most {self._max_queued_tokens}", seconds)
