"""Files that a crash leaves whole: written aside, synced, renamed, and the folder synced after.

It refuses to know what the files hold.
"""

from __future__ import annotations

import os
import re
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_STAGED = re.compile(r"\.[0-9a-f]{32}\.tmp")
"""Names of files that are being written."""


def write_file(path: Path, chunks: Sequence[bytes | bytearray]) -> None:
    """Write a new file and force it to disk.

    Raises:
        FileExistsError: there is one already.
        OSError: it cannot be written; the error names the file.
    """
    try:
        with path.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk has none
        raise


def replace_file(
    path: Path, chunks: Sequence[bytes | bytearray], *, staging: Path, modified_ns: int | None = None
) -> None:
    """Put a file in place of `path` in one step; `staging` is a folder of the same file system.

    `modified_ns` sets the new file's time. The caller syncs the folder when it matters.
    """
    aside = staging / f".{uuid.uuid4().hex}.tmp"
    try:
        write_file(aside, chunks)
        if modified_ns is not None:
            os.utime(aside, ns=(modified_ns, modified_ns))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def clear_staging(folder: Path) -> None:
    """Remove what a process that was killed left half written in a folder in which nobody else writes."""
    for path in folder.glob(".*.tmp"):
        if _STAGED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force the folder's entries to disk."""
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)


def make_folder(folder: Path, *, below: Path) -> None:
    """Make `folder` and its parents up to `below`, which exists; each new entry is forced to disk."""
    missing = []
    while folder != below and not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        sync_folder(new.parent)
