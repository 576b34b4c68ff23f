"""Reading a small file of the store, which is no link, no device and no larger than it ought to be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import StoreCorrupt, SymlinkInStore

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1 << 20
"""Alias records and the generation are far smaller."""


def read_small(path: Path) -> bytes:
    """The bytes of the file.

    Raises:
        FileNotFoundError, PermissionError: there is none for us.
        StoreCorrupt, SymlinkInStore: it is too large, or no plain file.
    """
    try:
        file_fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        if path.is_symlink():
            raise SymlinkInStore(f"{path} is a link; a store has none below its root") from error
        raise StoreCorrupt(f"{path} cannot be opened: {error.strerror}") from error
    try:
        raw = os.read(file_fd, MAX_BYTES)
    except OSError as error:
        raise StoreCorrupt(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(file_fd)
    if len(raw) == MAX_BYTES:
        raise StoreCorrupt(f"{path} has {MAX_BYTES} bytes or more")
    return raw
