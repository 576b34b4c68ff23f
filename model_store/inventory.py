"""What a store holds, read from its folders. It changes nothing, takes no lock, and loads without torch.

Readers pass over what does not belong in a store; `store_check` is the one that complains.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prefixbank.model_store import artifact_folder
from prefixbank.model_store.address import Address, is_name, is_revision
from prefixbank.model_store.alias import AliasRecord
from prefixbank.model_store.errors import ArtifactError, StoreCorrupt, SymlinkInStore
from prefixbank.model_store.layout import ALIAS_SUFFIX
from prefixbank.model_store.plain_file import read_small

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from prefixbank.model_store.layout import StoreLayout
    from prefixbank.model_store.manifest import Manifest


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """One revision as `show` tells it. Its tensors were not read."""

    revision: str
    published: datetime
    num_bytes: int
    manifest: Manifest | None
    """None when the artifact is broken: `fault` says how."""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task as `show` tells it."""

    address: Address
    aliases: Mapping[str, AliasRecord]
    revisions: tuple[RevisionRecord, ...]
    """Last published first."""
    faults: tuple[str, ...] = ()
    """Alias files that cannot be read."""


def tasks_of(layout: StoreLayout) -> tuple[Address, ...]:
    """Every task with a revision, in order."""
    return tuple(
        address
        for tenant in folders(layout.tenants)
        if is_name(tenant)
        for name in folders(layout.tenants / tenant)
        if is_name(name) and has_revision(layout, address := Address(tenant, name))
    )


def has_revision(layout: StoreLayout, address: Address) -> bool:
    """Whether anything was published under this address and not deleted."""
    return any(is_revision(name) for name in folders(layout.revisions(address)))


def revisions_of(layout: StoreLayout, address: Address) -> list[str]:
    """The revisions of a task, broken ones included, in order of their names."""
    return [name for name in folders(layout.revisions(address)) if is_revision(name)]


def alias_paths(layout: StoreLayout, address: Address) -> Iterator[tuple[str, Path]]:
    """Name and file of each alias of a task."""
    folder = layout.aliases(address)
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        alias = name.removesuffix(ALIAS_SUFFIX)
        if name.endswith(ALIAS_SUFFIX) and is_name(alias):
            yield alias, folder / name


def aliases_of(layout: StoreLayout, address: Address) -> dict[str, AliasRecord]:
    """The aliases of a task; raises `StoreCorrupt` when one cannot be read."""
    return {alias: read_alias(path) for alias, path in alias_paths(layout, address)}


def read_alias(path: Path) -> AliasRecord:
    """The record in an alias file.

    Raises:
        FileNotFoundError: there is none.
        StoreCorrupt, SymlinkInStore: it is no alias record.
    """
    return AliasRecord.parse(read_small(path), str(path))


def alias_or_none(path: Path) -> AliasRecord | None:
    """The record in an alias file, or None when there is no such file."""
    try:
        return read_alias(path)
    except FileNotFoundError:
        return None


def task_record(layout: StoreLayout, address: Address) -> TaskRecord:
    """Aliases and revisions of a task; what is broken is said in the record, not raised."""
    aliases, faults = {}, []
    for alias, path in alias_paths(layout, address):
        try:
            aliases[alias] = read_alias(path)
        except (StoreCorrupt, SymlinkInStore) as error:
            faults.append(str(error))
        except FileNotFoundError:
            continue  # dropped since the folder was listed
    records = (_revision_record(layout, address, revision) for revision in revisions_of(layout, address))
    known = [record for record in records if record is not None]
    newest_first = sorted(known, key=lambda record: (record.published, record.revision), reverse=True)
    return TaskRecord(address, aliases, tuple(newest_first), tuple(faults))


def folders(parent: Path) -> list[str]:
    """Names of the folders in `parent`, links not counted; none when there is no such folder."""
    try:
        with os.scandir(parent) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _revision_record(layout: StoreLayout, address: Address, revision: str) -> RevisionRecord | None:
    folder = layout.revision(address, revision)
    try:
        published = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None  # deleted since the folder was listed
    try:
        return RevisionRecord(
            revision, published, artifact_folder.num_bytes(folder), artifact_folder.read_manifest(folder)
        )
    except (ArtifactError, OSError) as error:
        return RevisionRecord(revision, published, 0, None, f"{type(error).__name__}: {error}")
