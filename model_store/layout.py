"""Where things lie in a store's folder, and the refusal to leave it.

    FORMAT                                         one line: what this folder is, and of which version
    generation                                     a counter: bumped after every change
    tenants/<tenant>/<task>/revisions/<digest>/    an artifact, never changed
    tenants/<tenant>/<task>/aliases/<alias>.json   an `AliasRecord`, replaced in one step
    .staging/                                      what is being written or thrown away
    .locks/                                        lock files, by hash of the address

It refuses to know what artifacts and aliases hold.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefixbank.model_store import durable
from prefixbank.model_store.errors import NoSuchStore, NoSuchTask, StoreCorrupt, SymlinkInStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from prefixbank.model_store.address import Address

FORMAT_LINE = b"prefixbank store, version 1\n"
FORMAT, GENERATION, TENANTS, STAGING, LOCKS = "FORMAT", "generation", "tenants", ".staging", ".locks"
KNOWN = frozenset({FORMAT, GENERATION, TENANTS, STAGING, LOCKS})
REVISIONS, ALIASES, ALIAS_SUFFIX = "revisions", "aliases", ".json"


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """The paths of one store. `root` is free of links: it was resolved when the store was opened."""

    root: Path

    @property
    def tenants(self) -> Path:
        return self.root / TENANTS

    @property
    def staging(self) -> Path:
        return self.root / STAGING

    @property
    def generation(self) -> Path:
        return self.root / GENERATION

    def task(self, address: Address) -> Path:
        return self.tenants / address.tenant / address.name

    def revisions(self, address: Address) -> Path:
        return self.task(address) / REVISIONS

    def aliases(self, address: Address) -> Path:
        return self.task(address) / ALIASES

    def revision(self, address: Address, revision: str) -> Path:
        return self.revisions(address) / revision

    def alias(self, address: Address, alias: str) -> Path:
        return self.aliases(address) / f"{alias}{ALIAS_SUFFIX}"

    def check_contained(self, path: Path) -> None:
        """Refuse a path whose folders lead through a link; a path that does not exist is fine.

        Raises:
            SymlinkInStore: naming the path.
        """
        if Path(os.path.realpath(path)) != path:
            raise SymlinkInStore(f"{path} leads through a link; a store has none below its root")

    def check_task(self, address: Address) -> Path:
        """The task's folder, which exists and lies where it says.

        Raises:
            NoSuchTask, SymlinkInStore: it does not.
        """
        folder = self.task(address)
        self.check_contained(folder / ALIASES)
        self.check_contained(folder / REVISIONS)
        if not folder.is_dir():
            raise NoSuchTask(f"the store has no task {address}")
        return folder

    def lock_task(self, address: Address) -> AbstractContextManager[None]:
        """Hold the right to change a task.

        256 lock files that are never deleted serve all tasks: two may share one, so never hold two.
        """
        return self._lock(f"task-{hashlib.sha256(str(address).encode()).hexdigest()[:2]}")

    def lock_generation(self) -> AbstractContextManager[None]:
        """Hold the right to bump the generation. It may be taken while a task's lock is held, never before."""
        return self._lock("generation")

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Lock among all threads and processes. The kernel drops it when its holder dies."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock_fd = os.open(self.root / LOCKS / name, flags, 0o666)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock_fd)


def open_layout(root: Path) -> StoreLayout:
    """The layout of the store at `root`, which exists.

    Raises:
        NoSuchStore: nothing is there.
        StoreCorrupt: something else is there, or a store of another version.
    """
    layout = StoreLayout(Path(os.path.realpath(root)))
    try:
        line = (layout.root / FORMAT).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if layout.root.is_dir() and not set(os.listdir(layout.root)) <= KNOWN:
            raise StoreCorrupt(f"{root} is not a prompt store: it holds other files and no {FORMAT}") from error
        raise NoSuchStore(f"there is no prompt store at {root}") from error
    if line != FORMAT_LINE:
        raise StoreCorrupt(f"{root} is {line[:60]!r}; this code reads {FORMAT_LINE!r}")
    return layout


def make_layout(root: Path) -> StoreLayout:
    """Make an empty store at `root`, or finish one that a crash left half made. Two makers at once agree.

    Raises:
        StoreCorrupt: `root` is a file, or holds other files.
    """
    layout = StoreLayout(Path(os.path.realpath(root)))
    if layout.root.exists() and not layout.root.is_dir():
        raise StoreCorrupt(f"{root} is not a folder")
    layout.root.mkdir(parents=True, exist_ok=True)
    if not set(os.listdir(layout.root)) <= KNOWN:
        raise StoreCorrupt(f"{root} is not a prompt store: it holds other files")
    for name in (TENANTS, STAGING, LOCKS):
        (layout.root / name).mkdir(exist_ok=True)
    durable.replace_file(layout.root / FORMAT, [FORMAT_LINE], staging=layout.staging)
    durable.sync_folder(layout.root)
    return layout
