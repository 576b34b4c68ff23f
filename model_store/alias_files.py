"""The alias files of a store: read exactly and cheaply, moved in one step under the task's lock.

It refuses to know artifacts: whether a revision is fit to be pointed at is its caller's question.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from prefixbank.model_store import durable, generation, inventory
from prefixbank.model_store.address import Address, check_name
from prefixbank.model_store.errors import NoSuchAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefixbank.model_store.alias import AliasRecord
    from prefixbank.model_store.layout import StoreLayout


class _Signature(NamedTuple):
    """What changes whenever an alias is replaced: `move` keeps `modified_ns` ascending."""

    modified_ns: int
    changed_ns: int
    inode: int
    num_bytes: int


class _Seen(NamedTuple):
    path: str
    signature: _Signature
    revision: str


class AliasFiles:
    """The aliases of one store. Threads may share it."""

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._seen: dict[tuple[Address, str], _Seen] = {}

    def resolve(self, address: Address, alias: str) -> str:
        """The revision that `alias` points at now: one `stat` when it is where it was.

        Raises:
            NoSuchTask, NoSuchAlias: there is none.
            StoreCorrupt, SymlinkInStore: there is something else.
        """
        seen = self._seen.get((address, alias))
        if seen is not None and _signature_or_none(seen.path) == seen.signature:
            return seen.revision
        return self._read(address, alias)

    def move(self, address: Address, alias: str, change: Callable[[AliasRecord | None], AliasRecord]) -> AliasRecord:
        """Replace the alias's record by what `change` makes of it; the task's lock is held meanwhile.

        Raises:
            NoSuchTask: there is none. And what `change` raises.
        """
        path = self._layout.alias(address, check_name("alias", alias))
        with self._layout.lock_task(address):
            self._layout.check_task(address)
            old = inventory.alias_or_none(path)
            new = change(old)
            if new != old:
                self._replace(address, alias, new)
        return new

    def drop(self, address: Address, alias: str) -> None:
        """Remove an alias; raises `NoSuchAlias`."""
        path = self._layout.alias(address, check_name("alias", alias))
        with self._layout.lock_task(address):
            self._layout.check_task(address)
            try:
                path.unlink()
            except FileNotFoundError as error:
                raise NoSuchAlias(f"{address} has no alias {alias}") from error
            durable.sync_folder(path.parent)
            generation.bump(self._layout)

    def _replace(self, address: Address, alias: str, record: AliasRecord) -> None:
        path = self._layout.alias(address, alias)
        durable.make_folder(path.parent, below=self._layout.root)
        before = _signature_or_none(str(path))
        modified_ns = max(time.time_ns(), before.modified_ns + 1 if before else 0)
        durable.replace_file(path, [record.to_bytes()], staging=self._layout.staging, modified_ns=modified_ns)
        durable.sync_folder(path.parent)
        generation.bump(self._layout)

    def _read(self, address: Address, alias: str) -> str:
        """Look first and read then: a record newer than its signature is read again, never believed for long."""
        path = self._layout.alias(address, check_name("alias", alias))
        self._layout.check_contained(path.parent)
        try:
            signature = _signature(str(path))
            record = inventory.read_alias(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            self._seen.pop((address, alias), None)
            self._layout.check_task(address)
            raise NoSuchAlias(f"{address} has no alias {alias}") from error
        self._seen[(address, alias)] = _Seen(str(path), signature, record.revision)
        return record.revision


def _signature(path: str) -> _Signature:
    found = os.stat(path, follow_symlinks=False)
    return _Signature(found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)


def _signature_or_none(path: str) -> _Signature | None:
    try:
        return _signature(path)
    except OSError:
        return None
