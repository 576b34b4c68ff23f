"""The store's folder: making it, opening it, and verifying what lies in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from prefixbank.model_store import errors
from prefixbank.model_store.store import PromptStore
from tests.prompt_cases import Forger
from tests.store_cases import TASK, alias_file, publish, revision_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return PromptStore(tmp_path / "store")


def test_another_folder_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(errors.StoreCorrupt):
        PromptStore(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_store_of_another_version_is_refused(store: PromptStore) -> None:
    (store.root / "FORMAT").write_text("prefixbank store, version 2\n")
    with pytest.raises(errors.StoreCorrupt, match="version 2"):
        PromptStore(store.root)


def test_a_store_is_looked_for_without_being_made(tmp_path: Path) -> None:
    with pytest.raises(errors.NoSuchStore):
        PromptStore.existing(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("kept", [[], ["tenants"], ["tenants", ".staging", ".locks"]])
def test_a_store_half_made_is_finished(tmp_path: Path, kept: list[str]) -> None:
    for name in kept:
        (tmp_path / "store" / name).mkdir(parents=True)
    assert PromptStore(tmp_path / "store").list() == ()


def test_opening_a_store_writes_nothing(store: PromptStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in (store.root, *store.root.iterdir())}
    PromptStore(store.root)
    assert {path: path.stat().st_mtime_ns for path in (store.root, *store.root.iterdir())} == before


def test_a_whole_store_has_no_findings(store: PromptStore) -> None:
    one, _ = publish(store, 1, 2)
    store.promote(TASK, one)
    assert list(store.verify()) == []


def test_verify_names_every_fault_and_goes_on(store: PromptStore) -> None:
    one, two, three = publish(store, 1, 2, 3)
    store.promote(TASK, three)
    os.truncate(revision_folder(store, one) / "prompt.safetensors", 100)
    Forger(revision_folder(store, two)).edit_manifest(lambda fields: fields.update(labels=["a", "b"]))
    (revision_folder(store, one).parent / "stray").mkdir()
    alias_file(store, "canary").write_text("{")
    dangling = alias_file(store).read_text().replace(three, "ab" * 32)
    alias_file(store, "old").write_text(dangling)
    (store.root / "notes.txt").write_text("")
    (store.root / "tenants" / "UPPER").mkdir()
    (store.root / "generation").write_text("many")
    found = {(finding.path.rsplit("/", 1)[-1], finding.kind) for finding in store.verify()}
    assert found == {
        (one, "TensorFileTruncated"),
        (two, "DigestMismatch"),
        ("stray", "Foreign"),
        ("canary.json", "StoreCorrupt"),
        ("old.json", "NoSuchRevision"),
        ("notes.txt", "Foreign"),
        ("UPPER", "Foreign"),
        ("generation", "StoreCorrupt"),
    }


def test_staging_leftovers_are_no_fault_and_are_collected_by_age(store: PromptStore) -> None:
    old, young = store.root / ".staging" / "old", store.root / ".staging" / "young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "prompt.safetensors").write_bytes(b"half a pro")
    os.utime(old, (1, 1))
    assert list(store.verify()) == []
    publish(store, 0)
    assert os.listdir(store.root / ".staging") == ["young"]
