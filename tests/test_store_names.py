"""Names of tenants, tasks and aliases: a grammar, and nothing that leads out of the store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixbank.model_store import errors
from prefixbank.model_store.address import is_name
from prefixbank.model_store.store import Address, PromptStore
from tests.prompt_cases import make_prompt, same_prompt
from tests.store_cases import TASK, alias_file, publish

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return PromptStore(tmp_path / "store")


_BAD = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "A",
    "-a",
    "_a",
    ".a",
    "a b",
    "a\n",
    "ä",
    "a" * 65,
    "a\0",
    "~",
    "a%2e",
    "\u0661",
]


@pytest.mark.parametrize("name", _BAD)
def test_a_name_outside_the_grammar_is_refused_everywhere(store: PromptStore, name: str) -> None:
    [revision] = publish(store, 0)
    for deed in (
        lambda: Address(name, "task"),
        lambda: Address("tenant", name),
        lambda: Address.parse(f"{name}/task"),
        lambda: store.promote(TASK, revision, alias=name),
        lambda: store.rollback(TASK, alias=name),
        lambda: store.resolve(TASK, alias=name),
        lambda: store.drop_alias(TASK, alias=name),
    ):
        with pytest.raises(errors.InvalidName):
            deed()


@pytest.mark.parametrize("text", ["", "/", "a", "a/", "/b", "a/b/c", "a//b"])
def test_an_address_is_two_names(text: str) -> None:
    with pytest.raises(errors.InvalidName):
        Address.parse(text)


@given(st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,63}\Z"), st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,63}\Z"))
def test_an_address_survives_its_spelling(tenant: str, name: str) -> None:
    assert Address.parse(str(Address(tenant, name))) == Address(tenant, name)


@given(st.text())
def test_a_name_is_a_single_plain_path_component(text: str) -> None:
    if is_name(text):
        assert text not in (".", "..")
        assert os.path.normpath(text) == os.path.basename(text) == text == text.lower()


@pytest.mark.parametrize("part", ["tenants/acme", "tenants/acme/intents", "tenants/acme/intents/revisions"])
def test_a_link_out_of_the_store_is_refused(store: PromptStore, tmp_path: Path, part: str) -> None:
    [revision] = publish(store, 0)
    store.promote(TASK, revision)
    (store.root / part).rename(tmp_path / "outside")
    (store.root / part).symlink_to(tmp_path / "outside")
    fresh = PromptStore(store.root)
    for deed in (
        lambda: fresh.load(TASK, revision),
        lambda: fresh.publish(TASK, make_prompt(9)),
        lambda: fresh.promote(TASK, revision, "canary"),
        lambda: fresh.delete(TASK, revision),
        lambda: fresh.delete_task(TASK),
        lambda: fresh.show(TASK),
    ):
        with pytest.raises(errors.SymlinkInStore):
            deed()
    assert any("is a link" in finding.message for finding in fresh.verify())
    assert (tmp_path / "outside").is_dir()


def test_a_linked_aliases_folder_is_not_resolved(store: PromptStore, tmp_path: Path) -> None:
    [revision] = publish(store, 0)
    store.promote(TASK, revision)
    alias_file(store).parent.rename(tmp_path / "aliases")
    alias_file(store).parent.symlink_to(tmp_path / "aliases")
    with pytest.raises(errors.SymlinkInStore):
        PromptStore(store.root).resolve(TASK)


def test_a_linked_alias_is_not_followed(store: PromptStore, tmp_path: Path) -> None:
    [revision] = publish(store, 0)
    store.promote(TASK, revision)
    store.resolve(TASK)
    alias_file(store).rename(tmp_path / "alias.json")
    alias_file(store).symlink_to(tmp_path / "alias.json")
    with pytest.raises(errors.SymlinkInStore):
        store.resolve(TASK)


def test_the_root_itself_may_be_a_link(store: PromptStore, tmp_path: Path) -> None:
    [revision] = publish(store, 0)
    (tmp_path / "current").symlink_to(store.root)
    assert same_prompt(PromptStore(tmp_path / "current").load(TASK, revision), make_prompt(0))
