"""What the tests of the store share: one task, and where its files lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.address import Address
from tests.prompt_cases import make_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.store import PromptStore

TASK = Address("acme", "intents")


def publish(store: PromptStore, *seeds: int, address: Address = TASK) -> list[str]:
    return [store.publish(address, make_prompt(seed)) for seed in seeds]


def revision_folder(store: PromptStore, revision: str, address: Address = TASK) -> Path:
    return store.root / "tenants" / address.tenant / address.name / "revisions" / revision


def alias_file(store: PromptStore, alias: str = "live") -> Path:
    return store.root / "tenants" / TASK.tenant / TASK.name / "aliases" / f"{alias}.json"
