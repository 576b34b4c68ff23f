"""The tensor file: a safetensors file whose header is believed only after it is checked.

It knows the safetensors layout (8 bytes of header length, a JSON header, the bytes of the tensors) and refuses to
know what the tensors mean, and every liberty of the format that an artifact does not need: metadata, holes,
other dtypes.
"""

from __future__ import annotations

import math
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from prefixbank.model_store import strict_json
from prefixbank.model_store.errors import (
    FileTooLarge,
    ManifestUnreadable,
    NotFinite,
    OverflowsHalf,
    TensorFileOverlong,
    TensorFileTruncated,
    TensorFileUnreadable,
    TensorLayoutInvalid,
    TensorMissing,
    TensorUnexpected,
    WrongDtype,
    WrongShape,
)
from prefixbank.model_store.manifest import ITEM_BYTES, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from numpy.typing import NDArray
    from torch import Tensor

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 65_536
MAX_HALF = 65_504.0
"""The largest finite number of fp16, in which a server may hold any prompt."""

_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BITS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
_DTYPE_NAMES = {dtype: name for name, dtype in _TORCH_DTYPES.items()}


class Extent(NamedTuple):
    """Where one tensor lies in the bytes after the header."""

    spec: TensorSpec
    begin: int
    end: int


def check_size(found: int, promised: int, specs: Mapping[str, TensorSpec]) -> None:
    """Refuse a file size before a byte is read.

    Raises:
        FileTooLarge: more than any honest file of these tensors.
        TensorFileTruncated, TensorFileOverlong: not what the manifest promises.
    """
    limit = LENGTH_BYTES + MAX_HEADER_BYTES + sum(spec.num_bytes for spec in specs.values())
    if found > limit:
        raise FileTooLarge(f"the tensor file has {found} bytes; one of these shapes has at most {limit}")
    if found < promised:
        raise TensorFileTruncated(f"the tensor file has {found} bytes; the manifest promises {promised}")
    if found > promised:
        raise TensorFileOverlong(f"the tensor file has {found} bytes; the manifest promises {promised}")


def read_header(file: BinaryIO, file_bytes: int) -> bytes:
    """The length field and the JSON header, as they lie in the file.

    Raises:
        TensorFileUnreadable, TensorFileTruncated: the length field cannot be true.
    """
    length_field = file.read(LENGTH_BYTES)
    if len(length_field) < LENGTH_BYTES:
        raise TensorFileTruncated(f"the tensor file ends inside its length field, after {len(length_field)} bytes")
    length = int.from_bytes(length_field, "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise TensorFileUnreadable(f"the tensor file's header claims {length} bytes, not 2 to {MAX_HEADER_BYTES}")
    if LENGTH_BYTES + length > file_bytes:
        raise TensorFileTruncated(f"the tensor file's header claims {length} bytes of a file of {file_bytes}")
    header = file.read(length)
    if len(header) < length:
        raise TensorFileTruncated(f"the tensor file ends inside its header, after {len(header)} of {length} bytes")
    return length_field + header


def check_header(header: bytes, specs: Mapping[str, TensorSpec], file_bytes: int) -> dict[str, Extent]:
    """The extents of the tensors, which are those of `specs` and fill the file to its last byte.

    Raises:
        TensorFileUnreadable: not a header; `TensorLayoutInvalid` for extents that cannot be.
        TensorMissing, TensorUnexpected, WrongDtype, WrongShape: not the tensors of `specs`.
        TensorFileTruncated, TensorFileOverlong: the extents do not end where the file ends.
    """
    entries = _parse(header[LENGTH_BYTES:])
    _check_names(entries, specs)
    extents = {name: _extent(name, entries[name], specs[name]) for name in specs}
    _check_layout(extents, file_bytes - len(header))
    return extents


def cut(payload: bytearray, extents: Mapping[str, Extent]) -> dict[str, Tensor]:
    """The tensors of a payload, each in memory of its own and fit to be served.

    Raises:
        NotFinite: NaN or infinity; `OverflowsHalf` when fp16 would make it so.
    """
    tensors = {}
    for name, (spec, begin, _) in extents.items():
        bits = np.frombuffer(payload, dtype=_BITS[spec.dtype], count=prod(spec.shape), offset=begin).copy()
        _check_finite(name, _largest(bits, spec.dtype))
        tensors[name] = torch.from_numpy(bits).view(_TORCH_DTYPES[spec.dtype]).reshape(spec.shape)
    return tensors


def spec_of(name: str, tensor: Tensor) -> TensorSpec:
    """The spec of a tensor that is to be written.

    Raises:
        WrongDtype: an artifact cannot hold it.
    """
    if tensor.dtype not in _DTYPE_NAMES:
        raise WrongDtype(f"{name} is {tensor.dtype}; an artifact holds {', '.join(ITEM_BYTES)}")
    return TensorSpec(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        entries = strict_json.parse(raw, "the tensor file's header")
    except ManifestUnreadable as error:
        raise TensorFileUnreadable(str(error)) from error
    if not isinstance(entries, dict):
        raise TensorFileUnreadable("the tensor file's header is not a JSON object")
    if "__metadata__" in entries:
        raise TensorFileUnreadable("the tensor file's header holds __metadata__, which an artifact does not")
    return entries


def _check_names(entries: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> None:
    for name in specs:
        if name not in entries:
            raise TensorMissing(f"the tensor file lacks {name}")
    for name in entries:
        if name not in specs:
            raise TensorUnexpected(f"the tensor file holds {name[:80]!r}, which the manifest does not imply")


def _extent(name: str, entry: Any, spec: TensorSpec) -> Extent:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorFileUnreadable(f"{name}: its header entry does not have just dtype, shape and data_offsets")
    shape, offsets = _naturals(name, entry["shape"]), _naturals(name, entry["data_offsets"])
    if entry["dtype"] != spec.dtype:
        raise WrongDtype(f"{name} is {str(entry['dtype'])[:20]!r} in the tensor file, {spec.dtype} in the manifest")
    if tuple(shape) != spec.shape:
        raise WrongShape(f"{name} is {shape[:8]} in the tensor file; the manifest implies {list(spec.shape)}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != spec.num_bytes:
        raise TensorLayoutInvalid(f"{name}: extent {offsets[:3]} does not hold {spec.num_bytes} bytes")
    return Extent(spec, *offsets)


def _naturals(name: str, values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise TensorFileUnreadable(f"{name}: its shape or extent is not a list of natural numbers")
    return values


def _check_layout(extents: Mapping[str, Extent], payload_bytes: int) -> None:
    position = 0
    for name, extent in sorted(extents.items(), key=lambda item: item[1].begin):
        if extent.begin != position:
            fault = "overlaps the tensor before it" if extent.begin < position else "leaves a hole before it"
            raise TensorLayoutInvalid(f"{name} begins at byte {extent.begin}, not {position}: it {fault}")
        position = extent.end
    if position > payload_bytes:
        raise TensorFileTruncated(f"the tensors end at byte {position} of {payload_bytes} after the header")
    if position < payload_bytes:
        raise TensorFileOverlong(f"{payload_bytes - position} bytes follow the last tensor")


def _largest(bits: NDArray[Any], dtype: str) -> float:
    """The largest magnitude, NaN and infinity included: without the sign, floats are ordered as their bits are.

    In numpy, so that loading a prompt does not contend for the threads that serve.
    """
    signless = np.iinfo(bits.dtype).max >> 1
    largest = (bits & signless).max(keepdims=True)
    return torch.from_numpy(largest).view(_TORCH_DTYPES[dtype]).item()


def _check_finite(name: str, largest: float) -> None:
    if not math.isfinite(largest):
        raise NotFinite(f"{name} holds NaN or infinity")
    if largest > MAX_HALF:
        raise OverflowsHalf(f"{name} holds {largest:.6g}, which is infinite in fp16 (largest {MAX_HALF:.0f})")
