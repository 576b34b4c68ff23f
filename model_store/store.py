"""PromptStore: the durable home of revisions and aliases, in a folder that many processes share.

A revision is named by its content and never changed; an alias moves in one step. A process killed at any moment
leaves the store whole. It refuses to know devices, backbones and requests; it loads torch only to touch tensors.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prefixbank.model_store import alias as alias_rules
from prefixbank.model_store import durable, generation, inventory
from prefixbank.model_store.address import LIVE, Address, is_revision, is_revision_prefix
from prefixbank.model_store.alias_files import AliasFiles
from prefixbank.model_store.errors import (
    ArtifactError,
    MissingFile,
    NoSuchRevision,
    NoSuchStore,
    NoSuchTask,
    NothingToRollBack,
    RevisionInUse,
)
from prefixbank.model_store.layout import make_layout, open_layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.model_store.alias import AliasRecord
    from prefixbank.model_store.artifact import SealedArtifact
    from prefixbank.model_store.inventory import TaskRecord
    from prefixbank.model_store.store_check import Finding
    from prefixbank.model_store.task_prompt import TaskPrompt

__all__ = ["LIVE", "Address", "PromptStore"]

STAGING_AGE_S = 3600.0
"""What lies in `.staging` for longer was left by a process that died."""


class PromptStore:
    """A prompt store in the folder `root`, made if there is none. Threads and processes may share it."""

    def __init__(self, root: Path | str) -> None:
        """Raises `StoreCorrupt` when `root` holds something else."""
        try:
            self._layout = open_layout(Path(root))
        except NoSuchStore:
            self._layout = make_layout(Path(root))
        self._aliases = AliasFiles(self._layout)

    @classmethod
    def existing(cls, root: Path | str) -> PromptStore:
        """The store at `root`; raises `NoSuchStore` when there is none."""
        open_layout(Path(root))
        return cls(root)

    @property
    def root(self) -> Path:
        """The store's folder, links resolved."""
        return self._layout.root

    def publish(self, address: Address, prompt: TaskPrompt | Path) -> str:
        """Take a prompt, or the artifact in a folder, in; return its revision. Doing it twice changes nothing.

        Raises:
            ArtifactError: it is not what it claims; the store is as it was.
        """
        artifact = _sealed(prompt)
        revision = artifact.digest
        self.collect_staging(STAGING_AGE_S)
        staged = self._staged()
        try:
            artifact.write(staged)
            self._install(address, revision, staged)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return revision

    def promote(self, address: Address, revision: str, alias: str = LIVE) -> None:
        """Point `alias` at `revision`, which is read and checked whole first.

        Raises:
            NoSuchTask, NoSuchRevision, ArtifactError: there is nothing fit to point at.
        """
        self.load(address, revision)

        def point(record: AliasRecord | None) -> AliasRecord:
            self._check_revision(address, revision)  # it may have been deleted since it was read
            return alias_rules.promoted(record, revision, _now())

        self._aliases.move(address, alias, point)

    def rollback(self, address: Address, alias: str = LIVE) -> str:
        """Point `alias` where it pointed before, at the last revision that still exists; return that.

        Raises:
            NothingToRollBack: there is no earlier one.
            ArtifactError: the earlier one is broken; the alias stays.
        """

        def earlier(record: AliasRecord | None) -> AliasRecord:
            if record is None:
                raise NothingToRollBack(f"the alias {alias} of {address} was never promoted")
            back = alias_rules.rolled_back(record, _now(), lambda revision: self._exists(address, revision))
            self.load(address, back.revision)
            return back

        return self._aliases.move(address, alias, earlier).revision

    def resolve(self, address: Address, alias: str = LIVE) -> str:
        """The revision that `alias` points at now: exact at the moment of the call, one `stat` when unchanged.

        Raises:
            NoSuchTask, NoSuchAlias: there is none.
            StoreCorrupt, SymlinkInStore: there is something else.
        """
        return self._aliases.resolve(address, alias)

    def load(self, address: Address, revision: str) -> TaskPrompt:
        """The prompt of a revision, rehashed and checked.

        Raises:
            NoSuchTask, NoSuchRevision: there is none.
            ArtifactError: it is broken.
        """
        from prefixbank.model_store import artifact

        self._check_revision(address, revision)
        try:
            return artifact.read(self._layout.revision(address, revision), expect_digest=revision)
        except MissingFile:
            self._check_revision(address, revision)  # it may have been deleted while it was read
            raise

    def find_revision(self, address: Address, prefix: str) -> str:
        """The one revision that begins with `prefix`, 4 digits or more.

        Raises:
            NoSuchRevision: none does, or several do.
        """
        self._layout.check_task(address)
        if not is_revision_prefix(prefix):
            raise NoSuchRevision(f"{prefix[:64]!r} is not 4 to 64 digits of a revision")
        found = [name for name in inventory.revisions_of(self._layout, address) if name.startswith(prefix)]
        if len(found) != 1:
            raise NoSuchRevision(f"{len(found) or 'no'} revisions of {address} begin with {prefix}")
        return found[0]

    def list(self) -> tuple[Address, ...]:
        """Every task that has a revision, in order. Foreign and broken folders are passed over; `verify` names them."""
        return inventory.tasks_of(self._layout)

    def show(self, address: Address) -> TaskRecord:
        """Aliases and revisions of a task; raises `NoSuchTask`, also when a crash left it empty."""
        self._layout.check_task(address)
        record = inventory.task_record(self._layout, address)
        if not (record.revisions or record.aliases or record.faults):
            raise NoSuchTask(f"the store has no task {address}")
        return record

    def delete(self, address: Address, revision: str) -> None:
        """Throw a revision away.

        Raises:
            RevisionInUse: an alias points at it.
        """
        with self._layout.lock_task(address):
            self._check_revision(address, revision)
            aliases = inventory.aliases_of(self._layout, address)
            pointing = sorted(name for name, record in aliases.items() if record.revision == revision)
            if pointing:
                raise RevisionInUse(f"{', '.join(pointing)} of {address} points at {revision}")
            self._throw_away(self._layout.revision(address, revision))

    def delete_task(self, address: Address) -> None:
        """Throw a task away with all its revisions.

        Raises:
            RevisionInUse: it has an alias; `drop_alias` first.
        """
        with self._layout.lock_task(address):
            folder = self._layout.check_task(address)
            aliases = inventory.aliases_of(self._layout, address)
            if aliases:
                raise RevisionInUse(f"{address} has the aliases {', '.join(sorted(aliases))}: drop them first")
            self._throw_away(folder)

    def drop_alias(self, address: Address, alias: str = LIVE) -> None:
        """Remove an alias with its history: without `live`, the task is out of service.

        Raises:
            NoSuchAlias: there is none.
        """
        self._aliases.drop(address, alias)

    def verify(self) -> Iterator[Finding]:
        """Reread and rehash everything; yield what is wrong. One broken artifact does not end it."""
        from prefixbank.model_store import store_check

        return store_check.findings(self._layout)

    def generation(self) -> int:
        """A number that grows after every change: a follower that sees it unchanged has missed nothing.

        Raises:
            StoreCorrupt: the file is not a number.
        """
        return generation.current(self._layout)

    def collect_staging(self, older_than_s: float) -> int:
        """Remove what dead processes left in the staging folder; return how many things that were."""
        oldest, removed = time.time() - older_than_s, 0
        with os.scandir(self._layout.staging) as entries:
            for entry in entries:
                with suppress(OSError):  # another process collects, too, or it is another user's
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        _remove(Path(entry.path))
                        removed += 1
        return removed

    def _staged(self) -> Path:
        """A new name in the staging folder."""
        return self._layout.staging / uuid.uuid4().hex

    def _install(self, address: Address, revision: str, staged: Path) -> None:
        target = self._layout.revision(address, revision)
        with self._layout.lock_task(address):
            self._layout.check_contained(target)
            durable.make_folder(target.parent, below=self._layout.root)
            if target.exists():
                if _is_whole(target, revision):
                    return
                target.rename(self._staged())  # damaged on disk: the copy that was just checked takes its place
            staged.rename(target)
            durable.sync_folder(target.parent)
            generation.bump(self._layout)

    def _exists(self, address: Address, revision: str) -> bool:
        return self._layout.revision(address, revision).is_dir()

    def _check_revision(self, address: Address, revision: str) -> None:
        self._layout.check_task(address)
        if not is_revision(revision):
            raise NoSuchRevision(f"{revision[:64]!r} is not a revision: 64 digits of 0-9 a-f")
        self._layout.check_contained(self._layout.revision(address, revision))
        if not self._exists(address, revision):
            raise NoSuchRevision(f"{address} has no revision {revision}")

    def _throw_away(self, folder: Path) -> None:
        """Take a folder out of the store in one step, then remove it at leisure."""
        discarded = self._staged()
        folder.rename(discarded)
        durable.sync_folder(folder.parent)
        generation.bump(self._layout)
        shutil.rmtree(discarded, ignore_errors=True)


def _sealed(prompt: TaskPrompt | Path) -> SealedArtifact:
    """The checked bytes of what is to be published: of a folder, the very bytes that were checked."""
    from prefixbank.model_store import artifact

    sealed = artifact.open_sealed(prompt) if isinstance(prompt, Path) else artifact.seal(prompt)
    sealed.unseal()
    return sealed


def _is_whole(folder: Path, revision: str) -> bool:
    from prefixbank.model_store import artifact

    try:
        artifact.read(folder, expect_digest=revision)
    except ArtifactError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
