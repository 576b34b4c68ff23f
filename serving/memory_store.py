"""MemoryStore: a prompt source without files, for predictions from a prompt in hand, for checks and for tests.

It has the reading side of a PromptStore, and publish and promote in one. It refuses to keep history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store import artifact
from prefixbank.model_store.address import LIVE
from prefixbank.model_store.errors import NoSuchAlias, NoSuchRevision, NoSuchTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefixbank.model_store.address import Address
    from prefixbank.model_store.task_prompt import TaskPrompt


class MemoryStore:
    """Tasks with one live revision each."""

    def __init__(self, prompts: Mapping[Address, TaskPrompt] | None = None) -> None:
        self._live: dict[Address, str] = {}
        self._prompts: dict[str, TaskPrompt] = {}
        self._generation = 0
        for address, prompt in (prompts or {}).items():
            self.promote(address, prompt)

    def promote(self, address: Address, prompt: TaskPrompt) -> str:
        """Make `prompt` answer for `address` from now on; return its revision, the one a PromptStore would give."""
        revision = artifact.seal(prompt).digest
        self._prompts[revision] = prompt
        self._live[address] = revision
        self._generation += 1
        return revision

    def resolve(self, address: Address, alias: str = LIVE) -> str:
        if address not in self._live:
            raise NoSuchTask(f"there is no task {address}")
        if alias != LIVE:
            raise NoSuchAlias(f"{address} has no alias {alias}")
        return self._live[address]

    def load(self, address: Address, revision: str) -> TaskPrompt:
        return self._prompts[self.find_revision(address, revision)]

    def find_revision(self, address: Address, prefix: str) -> str:
        if prefix not in self._prompts:
            raise NoSuchRevision(f"{address} has no revision {prefix}")
        return prefix

    def list(self) -> tuple[Address, ...]:
        return tuple(sorted(self._live))

    def generation(self) -> int:
        return self._generation
