"""The prompt store: revisions by content, aliases that move, names that stay inside."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from prefixbank.model_store import artifact, errors
from prefixbank.model_store.store import PromptStore
from tests.prompt_cases import make_prompt, same_prompt
from tests.store_cases import TASK, alias_file, publish, revision_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return PromptStore(tmp_path / "store")


# publishing


def test_a_published_prompt_loads_as_it_was(store: PromptStore) -> None:
    revision = store.publish(TASK, make_prompt())
    assert same_prompt(store.load(TASK, revision), make_prompt())


def test_a_folder_and_its_prompt_are_the_same_revision(store: PromptStore, tmp_path: Path) -> None:
    digest = artifact.write(make_prompt(), tmp_path / "artifact")
    assert store.publish(TASK, tmp_path / "artifact") == store.publish(TASK, make_prompt()) == digest


def test_publishing_twice_changes_nothing(store: PromptStore) -> None:
    publish(store, 0)
    before = store.generation()
    publish(store, 0)
    assert store.generation() == before
    assert len(store.show(TASK).revisions) == 1


def test_publishing_again_mends_a_damaged_revision(store: PromptStore) -> None:
    [revision] = publish(store, 0)
    os.truncate(revision_folder(store, revision) / "prompt.safetensors", 100)
    publish(store, 0)
    assert same_prompt(store.load(TASK, revision), make_prompt(0))
    assert list(store.verify()) == []


def test_a_broken_artifact_is_not_taken_in(store: PromptStore, tmp_path: Path) -> None:
    artifact.write(make_prompt(), tmp_path / "artifact")
    os.truncate(tmp_path / "artifact" / "prompt.safetensors", 100)
    with pytest.raises(errors.TensorFileTruncated):
        store.publish(TASK, tmp_path / "artifact")
    assert store.list() == ()
    assert store.generation() == 0


def test_publishing_leaves_nothing_in_staging(store: PromptStore) -> None:
    publish(store, 0, 1, 0)
    assert os.listdir(store.root / ".staging") == []


# aliases


def test_promote_points_and_rollback_points_back(store: PromptStore) -> None:
    one, two = publish(store, 1, 2)
    store.promote(TASK, one)
    store.promote(TASK, two)
    assert store.resolve(TASK) == two
    assert store.rollback(TASK) == one == store.resolve(TASK)


def test_two_rollbacks_go_back_two_steps(store: PromptStore) -> None:
    one, two, three = publish(store, 1, 2, 3)
    for revision in (one, two, three):
        store.promote(TASK, revision)
    assert [store.rollback(TASK), store.rollback(TASK)] == [two, one]
    with pytest.raises(errors.NothingToRollBack):
        store.rollback(TASK)
    assert store.resolve(TASK) == one


def test_rollback_after_a_new_promotion_skips_what_was_rolled_back(store: PromptStore) -> None:
    one, two, three = publish(store, 1, 2, 3)
    store.promote(TASK, one)
    store.promote(TASK, two)
    store.rollback(TASK)
    store.promote(TASK, three)
    assert store.rollback(TASK) == one


def test_rollback_skips_a_deleted_revision(store: PromptStore) -> None:
    one, two, three = publish(store, 1, 2, 3)
    for revision in (one, two, three):
        store.promote(TASK, revision)
    store.delete(TASK, two)
    assert store.rollback(TASK) == one


def test_rollback_to_a_broken_revision_is_refused_and_the_alias_stays(store: PromptStore) -> None:
    one, two = publish(store, 1, 2)
    store.promote(TASK, one)
    store.promote(TASK, two)
    os.truncate(revision_folder(store, one) / "prompt.safetensors", 100)
    with pytest.raises(errors.TensorFileTruncated):
        store.rollback(TASK)
    assert store.resolve(TASK) == two


def test_history_forgets_nothing_that_happened(store: PromptStore) -> None:
    one, two = publish(store, 1, 2)
    store.promote(TASK, one)
    store.promote(TASK, two)
    store.rollback(TASK)
    history = store.show(TASK).aliases["live"].history
    assert [(entry.revision, entry.rolled_back is None) for entry in history] == [(one, True), (two, False)]
    assert history[0].promoted < history[1].promoted <= str(history[1].rolled_back)


def test_promoting_what_is_live_changes_nothing(store: PromptStore) -> None:
    [one] = publish(store, 1)
    store.promote(TASK, one)
    before = alias_file(store).read_bytes(), store.generation()
    store.promote(TASK, one)
    assert (alias_file(store).read_bytes(), store.generation()) == before


def test_aliases_move_apart(store: PromptStore) -> None:
    one, two = publish(store, 1, 2)
    store.promote(TASK, one)
    store.promote(TASK, two, alias="canary")
    assert (store.resolve(TASK), store.resolve(TASK, "canary")) == (one, two)


def test_a_broken_revision_is_not_promoted(store: PromptStore) -> None:
    one, two = publish(store, 1, 2)
    store.promote(TASK, one)
    (revision_folder(store, two) / "manifest.json").write_text("{}")
    with pytest.raises(errors.DigestMismatch):
        store.promote(TASK, two)
    assert store.resolve(TASK) == one


def test_an_unknown_revision_is_not_promoted(store: PromptStore) -> None:
    publish(store, 1)
    for revision in ("ab" * 32, "..", "abc", ""):
        with pytest.raises(errors.NoSuchRevision):
            store.promote(TASK, revision)


def test_resolve_names_what_is_missing(store: PromptStore) -> None:
    with pytest.raises(errors.NoSuchTask):
        store.resolve(TASK)
    [one] = publish(store, 1)
    with pytest.raises(errors.NoSuchAlias):
        store.resolve(TASK)
    store.promote(TASK, one)
    assert store.resolve(TASK) == one


def test_resolve_is_exact_across_stores_of_one_folder(store: PromptStore) -> None:
    """Another process is another PromptStore: no change of its is ever missed, however fast they come."""
    other = PromptStore(store.root)
    revisions = publish(store, 0, 1, 2)
    for turn in range(60):
        store.promote(TASK, revisions[turn % 3])
        assert other.resolve(TASK) == revisions[turn % 3]


def test_resolve_is_exact_when_the_clock_goes_back(store: PromptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    other = PromptStore(store.root)
    revisions = publish(store, 0, 1, 2)
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    times = []
    for turn in range(9):
        store.promote(TASK, revisions[turn % 3])
        times.append(alias_file(store).stat().st_mtime_ns)
        assert other.resolve(TASK) == revisions[turn % 3]
    assert times == sorted(set(times))


def test_resolve_of_an_unchanged_alias_reads_nothing(store: PromptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    [one] = publish(store, 1)
    store.promote(TASK, one)
    store.resolve(TASK)
    monkeypatch.setattr(os, "open", None)
    assert store.resolve(TASK) == one


def test_resolve_takes_microseconds(store: PromptStore) -> None:
    [one] = publish(store, 1)
    store.promote(TASK, one)
    assert min(_seconds_per_resolve(store) for _ in range(10)) < 50e-6


def _seconds_per_resolve(store: PromptStore) -> float:
    begin = time.perf_counter()
    for _ in range(500):
        store.resolve(TASK)
    return (time.perf_counter() - begin) / 500


# taking things out


def test_delete_is_refused_while_an_alias_points_there(store: PromptStore) -> None:
    one, two = publish(store, 1, 2)
    store.promote(TASK, one)
    store.promote(TASK, two, alias="canary")
    with pytest.raises(errors.RevisionInUse, match="canary"):
        store.delete(TASK, two)
    store.drop_alias(TASK, "canary")
    store.delete(TASK, two)
    with pytest.raises(errors.NoSuchRevision):
        store.load(TASK, two)


def test_delete_is_refused_when_an_alias_cannot_be_read(store: PromptStore) -> None:
    [one] = publish(store, 1)
    store.promote(TASK, one)
    alias_file(store).write_text("{")
    with pytest.raises(errors.StoreCorrupt):
        store.delete(TASK, one)
    assert revision_folder(store, one).is_dir()


def test_dropping_live_takes_a_task_out_of_service(store: PromptStore) -> None:
    [one] = publish(store, 1)
    store.promote(TASK, one)
    assert store.resolve(TASK) == one
    store.drop_alias(TASK)
    with pytest.raises(errors.NoSuchAlias):
        store.resolve(TASK)
    with pytest.raises(errors.NoSuchAlias):
        store.drop_alias(TASK)


def test_a_task_with_an_alias_is_not_deleted(store: PromptStore) -> None:
    [one] = publish(store, 1)
    store.promote(TASK, one)
    with pytest.raises(errors.RevisionInUse, match="live"):
        store.delete_task(TASK)
    store.drop_alias(TASK)
    store.delete_task(TASK)
    assert store.list() == ()
    with pytest.raises(errors.NoSuchTask):
        store.show(TASK)


def test_a_deleted_task_can_be_published_again(store: PromptStore) -> None:
    [one] = publish(store, 1)
    store.delete_task(TASK)
    assert publish(store, 1) == [one]
    store.promote(TASK, one)
    assert store.resolve(TASK) == one


# looking around


def test_every_change_bumps_the_generation(store: PromptStore) -> None:
    seen = [store.generation()]

    def changed() -> bool:
        seen.append(store.generation())
        return seen[-1] > seen[-2]

    one, two = publish(store, 1, 2)
    assert changed()
    for deed in (
        lambda: store.promote(TASK, one),
        lambda: store.promote(TASK, two),
        lambda: store.rollback(TASK),
        lambda: store.drop_alias(TASK),
        lambda: store.delete(TASK, one),
        lambda: store.delete_task(TASK),
    ):
        deed()
        assert changed()


def test_show_tells_sizes_metrics_and_times_newest_first(store: PromptStore) -> None:
    one, two = publish(store, 1, 2)
    os.utime(revision_folder(store, one), (1, 1))
    newest, oldest = store.show(TASK).revisions
    assert (newest.revision, oldest.revision) == (two, one)
    assert oldest.published.year == 1970
    assert newest.num_bytes == sum(path.stat().st_size for path in revision_folder(store, two).iterdir())
    assert newest.manifest is not None
    assert newest.manifest.metrics == {"accuracy": 0.875}


def test_a_broken_revision_is_shown_as_broken(store: PromptStore) -> None:
    [one] = publish(store, 1)
    (revision_folder(store, one) / "manifest.json").write_text("{}")
    [record] = store.show(TASK).revisions
    assert record.manifest is None
    assert record.fault.startswith("ManifestInvalid")


def test_find_revision_wants_one_answer(store: PromptStore) -> None:
    one, two = publish(store, 1, 2)
    assert store.find_revision(TASK, one[:8]) == one
    for prefix in ("", one[:3], "zzzz", "0" * 64, "*"):
        with pytest.raises(errors.NoSuchRevision):
            store.find_revision(TASK, prefix)
    assert store.find_revision(TASK, two) == two


def test_a_thousand_tasks_are_listed_fast(store: PromptStore) -> None:
    [revision] = publish(store, 0)
    whole = revision_folder(store, revision)
    for number in range(1000):
        folder = store.root / "tenants" / f"tenant-{number % 7}" / f"task-{number:04}" / "revisions" / revision
        folder.mkdir(parents=True)
        for path in whole.iterdir():
            os.link(path, folder / path.name)
    begin = time.perf_counter()
    assert len(store.list()) == 1001
    assert time.perf_counter() - begin < 1.0


def test_foreign_and_broken_folders_do_not_break_list(store: PromptStore, tmp_path: Path) -> None:
    publish(store, 0)
    tenants = store.root / "tenants"
    (tenants / "UPPER" / "task" / "revisions" / ("ab" * 32)).mkdir(parents=True)
    (tenants / "acme" / "no-revisions").mkdir()
    (tenants / "acme" / "a-file").write_text("")
    (tenants / "acme" / "odd" / "revisions" / "not-a-digest").mkdir(parents=True)
    (tenants / "acme" / "revisions-is-a-file").mkdir()
    (tenants / "acme" / "revisions-is-a-file" / "revisions").write_text("")
    (tenants / "lost+found").mkdir()
    (tenants / "elsewhere").symlink_to(tmp_path)
    assert store.list() == (TASK,)
