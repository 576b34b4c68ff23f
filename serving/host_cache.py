"""HostCache: loaded prompts in host memory, by bytes, least recently used out first.

Any thread may use it. It refuses to know where prompts come from.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from prefixbank.serving.tier import TierState

if TYPE_CHECKING:
    from prefixbank.serving.loaded_prompt import LoadedPrompt


class HostCache:
    """At most `budget_bytes` of prompts, or a single larger one."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._prompts: OrderedDict[str, LoadedPrompt] = OrderedDict()  # least recently used first
        self._num_bytes = 0
        self._hits = self._misses = 0
        self._evictions: Counter[str] = Counter()

    def find(self, revision: str) -> LoadedPrompt | None:
        """The prompt of a revision, now the most recently used; None when it is not here."""
        with self._lock:
            prompt = self._prompts.get(revision)
            if prompt is None:
                self._misses += 1
                return None
            self._hits += 1
            self._prompts.move_to_end(revision)
            return prompt

    def put(self, prompt: LoadedPrompt) -> None:
        with self._lock:
            self._remove(prompt.revision)
            self._prompts[prompt.revision] = prompt
            self._num_bytes += prompt.staged.num_bytes
            while self._num_bytes > self._budget_bytes and len(self._prompts) > 1:
                self._remove(next(iter(self._prompts)))
                self._evictions["room"] += 1

    def drop(self, revision: str) -> None:
        """Let go of a revision that is no longer wanted."""
        with self._lock:
            self._evictions["dropped"] += self._remove(revision)

    @property
    def revisions(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._prompts)

    def state(self) -> TierState:
        with self._lock:
            return TierState(len(self._prompts), self._num_bytes, self._hits, self._misses, self._evictions.copy())

    def check_integrity(self) -> None:
        """Raise AssertionError when the books disagree with the contents."""
        with self._lock:
            num_bytes = sum(prompt.staged.num_bytes for prompt in self._prompts.values())
            assert num_bytes == self._num_bytes, f"{self._num_bytes} bytes booked, {num_bytes} held. This is a bug."

    def _remove(self, revision: str) -> bool:
        prompt = self._prompts.pop(revision, None)
        if prompt is None:
            return False
        self._num_bytes -= prompt.staged.num_bytes
        return True
