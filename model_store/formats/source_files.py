"""The files of a source: JSON and tensors, read without running what they hold.

safetensors are preferred; pickles are read by torch's restricted reader only, which knows tensors and nothing else.
What comes out are plain dense tensors that the files are large enough to hold. It refuses to know what they mean.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from prefixbank.model_store import strict_json
from prefixbank.model_store.errors import ManifestUnreadable, SourceInvalid, SourceUnreadable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

MAX_JSON_BYTES = 16 << 20
"""Indices of sharded checkpoints have a few MiB."""
INDEX_SUFFIX = ".index.json"
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        SourceUnreadable: there is no such file, or it holds something else.
    """
    _check_plain(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise SourceUnreadable(f"{path} has {path.stat().st_size} bytes, more than {MAX_JSON_BYTES}")
    try:
        value = strict_json.parse(path.read_bytes(), path.name)
    except ManifestUnreadable as error:
        raise SourceUnreadable(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise SourceUnreadable(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def find_tensors(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of `names` that the folder holds, whole or as the index of its shards."""
    places = (folder / f"{name}{suffix}" for name in names for suffix in ("", INDEX_SUFFIX))
    return next((place for place in places if place.exists()), None)


def read_tensors(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the first of `names` that the folder holds, all shards of it.

    Raises:
        SourceUnreadable: there is none, or it cannot be read without running code.
        SourceInvalid: it holds something that is no tensor.
    """
    place = find_tensors(folder, names)
    if place is None:
        raise SourceUnreadable(f"{folder} holds none of {', '.join(names)}")
    if not place.name.endswith(INDEX_SUFFIX):
        return _read_file(place)
    return _read_shards(place)


def read_names(folder: Path, names: Sequence[str]) -> list[str]:
    """The names of those tensors, without their numbers; raises as `read_tensors` does."""
    place = find_tensors(folder, names)
    if place is None or place.suffix == ".bin":
        return list(read_tensors(folder, names))
    if place.name.endswith(INDEX_SUFFIX):
        return list(_weight_map(place))
    _check_plain(place)
    try:
        with safe_open(place, framework="pt") as stored:
            return list(stored.keys())
    except SafetensorError as error:
        raise SourceUnreadable(f"{place} is not a whole safetensors file: {error}") from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors that an index names, each from the file that it names, which lies beside it."""
    weight_map = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        found = _read_file(index.parent / file)
        wanted = {name for name, place in weight_map.items() if place == file}
        odd = next(iter(sorted(wanted ^ found.keys())), None)
        if odd is not None:
            problem = "the index does not say so" if odd in found else "it is not there"
            raise SourceInvalid(f"{index} and {file} disagree about {odd[:80]!r}: {problem}")
        tensors |= found
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor to file, every file one beside the index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceInvalid(f"{index} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or "/" in name or "\\" in name or name.startswith("."):
            raise SourceInvalid(f"{index} names {str(name)[:80]!r}, which is no file beside it")
    return weight_map


def _read_file(path: Path) -> dict[str, Tensor]:
    _check_plain(path)
    loaded = _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)
    file_bytes = path.stat().st_size
    return {name: _plain_tensor(path, name, tensor, file_bytes) for name, tensor in loaded.items()}


def _check_plain(path: Path) -> None:
    """Links are followed: the hub's cache is made of them. Devices and pipes are not read."""
    if not path.exists():
        raise SourceUnreadable(f"{path} is not there")
    if not path.is_file():
        raise SourceUnreadable(f"{path} is no plain file")


def _load_safetensors(path: Path) -> Mapping[str, object]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise SourceUnreadable(f"{path} is not a whole safetensors file: {error}") from error


def _load_pickle(path: Path) -> Mapping[str, object]:
    """The mapping in a file of `torch.save`, read by the restricted reader."""
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_uncompressed(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise SourceUnreadable(f"{path} is not read: {_said(error)}") from error
    except OSError:
        raise
    except Exception as error:  # a malformed pickle fails in any way it likes
        raise SourceUnreadable(f"{path} is not a whole file of torch.save ({type(error).__name__})") from error
    if not isinstance(loaded, dict):
        raise SourceInvalid(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    return loaded


def _said(error: pickle.UnpicklingError) -> str:
    """What the restricted reader met; its own advice, to read the file unrestricted, is not passed on."""
    named = _GLOBAL.search(str(error))
    if named is None:
        return "it is no pickle of tensors"
    return f"its pickle asks for {named[1].rstrip('.')[:80]}, and only tensors are read from a pickle, never code"


def _check_uncompressed(path: Path) -> None:
    """torch.save does not compress: a compressed member would unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise SourceUnreadable(f"{path} is not a whole file of torch.save: {error}") from error
    if packed:
        raise SourceUnreadable(f"{path} holds {packed[0][:80]!r} compressed, as torch.save never does")


def _plain_tensor(path: Path, name: object, tensor: object, file_bytes: int) -> Tensor:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise SourceInvalid(f"{path} holds a {type(tensor).__name__} as {str(name)[:80]!r}, wanted a tensor")
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        raise SourceInvalid(f"{path}: {name[:80]!r} is no plain dense tensor")
    if tensor.numel() * tensor.element_size() > file_bytes:
        raise SourceInvalid(f"{path}: {name[:80]!r} claims {tuple(tensor.shape)}, more than the file can hold")
    return tensor.detach()
