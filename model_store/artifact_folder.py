"""The folder of an artifact, on a disk that somebody else may be writing to: opened once, links not followed.

It knows the two file names and how many bytes they may have, and refuses to know what the bytes mean. It loads
without torch.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from prefixbank.model_store import durable
from prefixbank.model_store.errors import FileTooLarge, MissingFile, SymlinkInArtifact, UnexpectedFile
from prefixbank.model_store.manifest import MAX_MANIFEST_BYTES, MAX_TENSOR_FILE_BYTES, Manifest, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

MANIFEST_FILE = "manifest.json"
TENSOR_FILE = "prompt.safetensors"
FILES = frozenset({MANIFEST_FILE, TENSOR_FILE})


@dataclass(frozen=True, slots=True)
class OpenFolder:
    """Both files of an artifact, open: whatever happens to their names now, these are the files that are read."""

    manifest: BinaryIO
    manifest_bytes: int
    tensors: BinaryIO
    tensor_bytes: int

    def read_manifest(self) -> bytes:
        """The manifest's bytes. Call it once."""
        raw = self.manifest.read(MAX_MANIFEST_BYTES + 1)
        _check_size(MANIFEST_FILE, len(raw), MAX_MANIFEST_BYTES)
        return raw


@contextmanager
def open_folder(folder: Path) -> Iterator[OpenFolder]:
    """Open the two files of `folder` and nothing else.

    Raises:
        MissingFile, UnexpectedFile, SymlinkInArtifact, FileTooLarge: what is wrong with the folder.
        OSError: the disk or its permissions failed.
    """
    with ExitStack() as stack:
        folder_fd = _open_directory(folder)
        stack.callback(os.close, folder_fd)
        _check_names(folder, os.listdir(folder_fd))
        manifest = stack.enter_context(_open_file(folder, folder_fd, MANIFEST_FILE))
        tensors = stack.enter_context(_open_file(folder, folder_fd, TENSOR_FILE))
        opened = OpenFolder(manifest, _size(manifest), tensors, _size(tensors))
        _check_size(MANIFEST_FILE, opened.manifest_bytes, MAX_MANIFEST_BYTES)
        _check_size(TENSOR_FILE, opened.tensor_bytes, MAX_TENSOR_FILE_BYTES)
        yield opened


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact folder, true to itself; the tensor file is not read.

    Raises:
        ArtifactError: the subclass that names the lie.
    """
    with open_folder(folder) as files:
        return parse_manifest(files.read_manifest())


def num_bytes(folder: Path) -> int:
    """Bytes of both files."""
    with open_folder(folder) as files:
        return files.manifest_bytes + files.tensor_bytes


def write(folder: Path, manifest: bytes, tensors: Sequence[bytes | bytearray]) -> None:
    """Write both files durably, the manifest last: an artifact half replaced fails its digest and is refused.

    Raises:
        UnexpectedFile: the folder holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    strange = set(os.listdir(folder)) - FILES
    if strange:
        raise UnexpectedFile(f"{folder} holds {min(strange)[:80]!r}; an artifact is not written beside other files")
    durable.replace_file(folder / TENSOR_FILE, tensors, staging=folder.parent)
    durable.replace_file(folder / MANIFEST_FILE, [manifest], staging=folder.parent)
    durable.sync_folder(folder)


def _open_directory(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingFile(f"{folder} does not exist") from error
    except NotADirectoryError as error:  # what Linux says of a link, too, when a directory is asked for
        if folder.is_symlink():
            raise SymlinkInArtifact(f"{folder} is a link") from error
        raise MissingFile(f"{folder} is not a folder") from error
    except OSError as error:
        _refuse_link(error, folder)


def _open_file(folder: Path, folder_fd: int, name: str) -> BinaryIO:
    """Open a regular file; O_NONBLOCK so that a FIFO in its place cannot hold us."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file_fd = os.open(name, flags, dir_fd=folder_fd)
    except FileNotFoundError as error:
        raise MissingFile(f"{folder} lacks {name}") from error
    except OSError as error:
        _refuse_link(error, folder / name)
    if not stat.S_ISREG(os.fstat(file_fd).st_mode):
        os.close(file_fd)
        raise UnexpectedFile(f"{folder / name} is not a regular file")
    return os.fdopen(file_fd, "rb", buffering=0)


def _refuse_link(error: OSError, path: Path) -> NoReturn:
    if error.errno == errno.ELOOP:
        raise SymlinkInArtifact(f"{path} is a link") from error
    if error.errno == errno.ENXIO:  # a socket
        raise UnexpectedFile(f"{path} is not a regular file") from error
    raise error


def _check_names(folder: Path, names: Sequence[str]) -> None:
    for name in sorted(FILES - set(names)):
        raise MissingFile(f"{folder} lacks {name}")
    for name in sorted(set(names) - FILES):
        raise UnexpectedFile(f"{folder} holds {name[:80]!r}, which is no part of an artifact")


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _check_size(name: str, found: int, limit: int) -> None:
    if found > limit:
        raise FileTooLarge(f"{name} has {found} bytes, more than {limit}")
