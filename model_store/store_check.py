"""The store's integrity check: everything reread and rehashed, and every fault told apart.

One broken artifact does not end it, and leftovers in the staging folder are no fault. It mends nothing.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from prefixbank.model_store import artifact, generation, inventory
from prefixbank.model_store.address import Address, is_name, is_revision
from prefixbank.model_store.errors import PrefixbankError
from prefixbank.model_store.layout import ALIAS_SUFFIX, ALIASES, KNOWN, REVISIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prefixbank.model_store.layout import StoreLayout


class Finding(NamedTuple):
    """One fault: where, of which kind (an error class's name, or `Foreign`), and in words."""

    path: str
    """Relative to the store's root."""
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}: {self.message}"


def findings(layout: StoreLayout) -> Iterator[Finding]:
    """Everything that is wrong with the store, in order of its paths."""
    check = _Check(layout)
    yield from check.foreign(layout.root, lambda entry: entry.name in KNOWN)
    yield from check.attempt(layout.generation, lambda: generation.current(layout))
    yield from check.foreign(layout.tenants, _is_named_folder)
    for tenant in filter(is_name, inventory.folders(layout.tenants)):
        yield from check.foreign(layout.tenants / tenant, _is_named_folder)
        for name in filter(is_name, inventory.folders(layout.tenants / tenant)):
            yield from check.task(Address(tenant, name))


class _Check:
    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout

    def task(self, address: Address) -> Iterator[Finding]:
        layout = self._layout
        yield from self.foreign(
            layout.task(address),
            lambda entry: entry.name in (REVISIONS, ALIASES) and entry.is_dir(follow_symlinks=False),
        )
        yield from self.foreign(layout.revisions(address), lambda entry: is_revision(entry.name))
        for revision in inventory.revisions_of(layout, address):
            folder = layout.revision(address, revision)
            yield from self.attempt(folder, partial(artifact.read, folder, expect_digest=revision))
        yield from self.foreign(layout.aliases(address), _is_alias_file)
        for _, path in inventory.alias_paths(layout, address):
            yield from self.alias(address, path)

    def alias(self, address: Address, path: Path) -> Iterator[Finding]:
        faults = list(self.attempt(path, lambda: inventory.read_alias(path)))
        yield from faults
        record = None if faults else inventory.alias_or_none(path)
        if record and not self._layout.revision(address, record.revision).is_dir():
            yield self._finding(path, "NoSuchRevision", f"it points at {record.revision}, which is not there")

    def attempt(self, path: Path, deed: Callable[[], object]) -> Iterator[Finding]:
        """What goes wrong when `deed` is done; nothing when `path` was removed meanwhile."""
        try:
            deed()
        except (PrefixbankError, OSError) as error:
            if os.path.lexists(path):
                yield self._finding(path, type(error).__name__, str(error))

    def foreign(self, folder: Path, belongs: Callable[[os.DirEntry[str]], bool]) -> Iterator[Finding]:
        """Entries of `folder` that are no part of a store."""
        try:
            with os.scandir(folder) as entries:
                strange = sorted(entry.path for entry in entries if entry.is_symlink() or not belongs(entry))
        except FileNotFoundError:
            return
        for path in strange:
            yield self._finding(path, "Foreign", "is a link" if os.path.islink(path) else "is no part of a store")

    def _finding(self, path: Path | str, kind: str, message: str) -> Finding:
        return Finding(os.path.relpath(path, self._layout.root), kind, message)


def _is_named_folder(entry: os.DirEntry[str]) -> bool:
    return is_name(entry.name) and entry.is_dir(follow_symlinks=False)


def _is_alias_file(entry: os.DirEntry[str]) -> bool:
    is_alias = entry.name.endswith(ALIAS_SUFFIX) and is_name(entry.name.removesuffix(ALIAS_SUFFIX))
    return is_alias and entry.is_file(follow_symlinks=False)
