"""An artifact: one TaskPrompt as a folder of two files, `manifest.json` and `prompt.safetensors`.

`docs/artifact-format.md` is the contract. Nothing is handed out before everything is checked, and what is handed
out is memory of its own: no file stays open or mapped. It refuses to know stores, aliases, tenants and devices.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from prefixbank.model_store import artifact_folder, tensor_file
from prefixbank.model_store.artifact_folder import read_manifest
from prefixbank.model_store.errors import (
    DigestMismatch,
    TensorFileOverlong,
    TensorFileTruncated,
    TensorMissing,
    TensorUnexpected,
    WrongShape,
)
from prefixbank.model_store.manifest import (
    BIAS,
    KV,
    POOLER_BIAS,
    POOLER_WEIGHT,
    SCHEMA_VERSION,
    SHALLOW,
    WEIGHT,
    Manifest,
    build_manifest,
    parse_manifest,
)
from prefixbank.model_store.task_prompt import Head, Pooler, TaskPrompt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any, BinaryIO

    from torch import Tensor

    from prefixbank.model_store.tensor_file import Extent

__all__ = ["Manifest", "SealedArtifact", "digest", "open_sealed", "read", "read_manifest", "seal", "write"]


@dataclass(frozen=True, eq=False, slots=True)
class SealedArtifact:
    """The bytes of an artifact in memory. Holding one means all is checked but the numbers in the tensors."""

    manifest: Manifest
    manifest_bytes: bytes
    header: bytes
    payload: bytearray
    extents: Mapping[str, Extent]

    @property
    def digest(self) -> str:
        """Sha-256 of the manifest, which pins the tensor file: the name of the whole content."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()

    def unseal(self) -> TaskPrompt:
        """The prompt, its tensors checked and in memory of their own.

        Raises:
            NotFinite: or its subclass, naming the tensor.
        """
        return _assemble(self.manifest, tensor_file.cut(self.payload, self.extents))

    def write(self, folder: Path) -> None:
        """Put the two files into `folder`, which is made if it is absent and may hold nothing else."""
        artifact_folder.write(folder, self.manifest_bytes, [self.header, self.payload])


def read(folder: Path, *, expect_digest: str | None = None) -> TaskPrompt:
    """The prompt of an artifact folder.

    Raises:
        ArtifactError: the subclass that names the lie.
        OSError: the disk or its permissions failed; the artifact may be honest.
    """
    return open_sealed(folder, expect_digest=expect_digest).unseal()


def open_sealed(folder: Path, *, expect_digest: str | None = None) -> SealedArtifact:
    """The checked bytes of an artifact folder; raises as `read` does."""
    with artifact_folder.open_folder(folder) as files:
        manifest_bytes = files.read_manifest()
        if expect_digest is not None:
            _check_digest("the manifest", hashlib.sha256(manifest_bytes), expect_digest)
        return _take(manifest_bytes, files.tensors, files.tensor_bytes)


def write(prompt: TaskPrompt, folder: Path) -> str:
    """Write `prompt` as an artifact and return its digest. The same prompt gives the same bytes.

    Raises:
        ArtifactError: the subclass that reading it would raise; nothing is written then.
    """
    artifact = seal(prompt)
    artifact.unseal()
    artifact.write(folder)
    return artifact.digest


def seal(prompt: TaskPrompt) -> SealedArtifact:
    """The bytes of `prompt`, checked by the same code that reads them."""
    tensors = _tensors_of(prompt)
    blob = safetensors.torch.save({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})
    manifest = build_manifest(_fields_of(prompt, tensors, blob))
    return _take(manifest.to_bytes(), io.BytesIO(blob), len(blob))


def digest(folder: Path) -> str:
    """The name of the folder's content: what its revision is called. Reads the manifest only; `read` checks it."""
    with artifact_folder.open_folder(folder) as files:
        return hashlib.sha256(files.read_manifest()).hexdigest()


def _take(manifest_bytes: bytes, file: BinaryIO, file_bytes: int) -> SealedArtifact:
    """Check everything that can be checked before the payload is read, then read and hash it once."""
    manifest = parse_manifest(manifest_bytes)
    specs = manifest.implied_tensors()
    tensor_file.check_size(file_bytes, manifest.tensor_file.num_bytes, specs)
    header = tensor_file.read_header(file, file_bytes)
    extents = tensor_file.check_header(header, specs, file_bytes)
    payload = _read_payload(file, file_bytes - len(header))
    hasher = hashlib.sha256(header)
    hasher.update(payload)
    _check_digest("the tensor file", hasher, manifest.tensor_file.sha256)
    return SealedArtifact(manifest, manifest_bytes, header, payload, extents)


def _read_payload(file: BinaryIO, num_bytes: int) -> bytearray:
    payload = bytearray(num_bytes)
    view, filled = memoryview(payload), 0
    while filled < num_bytes:
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]  # every binary file has it
        if not count:
            raise TensorFileTruncated(f"the tensor file ended {num_bytes - filled} bytes early while it was read")
        filled += count
    if file.read(1):
        raise TensorFileOverlong("the tensor file grew while it was read")
    return payload


def _check_digest(what: str, hasher: hashlib._Hash, wanted: str) -> None:
    if hasher.hexdigest() != wanted:
        raise DigestMismatch(f"{what} hashes to {hasher.hexdigest()}, not to {wanted}")


def _assemble(manifest: Manifest, tensors: Mapping[str, Tensor]) -> TaskPrompt:
    ref = manifest.backbone
    no_kv = torch.empty(0, 2, ref.num_heads, 0, ref.head_dim)
    head = Head(
        spec=manifest.head,
        weight_CM=tensors[WEIGHT],
        bias_C=tensors[BIAS],
        pooler_weight_MM=tensors.get(POOLER_WEIGHT),
        pooler_bias_M=tensors.get(POOLER_BIAS),
    )
    return TaskPrompt(
        family=manifest.family,
        labels=manifest.labels,
        layers=manifest.layers,
        kv_N2HPD=tensors.get(KV, no_kv),
        position_offset=manifest.position_offset,
        head=head,
        preprocessing=manifest.preprocessing,
        backbone=manifest.backbone,
        metrics=manifest.metrics,
        provenance=manifest.provenance,
        shallow_PM=tensors.get(SHALLOW),
    )


def _tensors_of(prompt: TaskPrompt) -> dict[str, Tensor]:
    head, kv_N2HPD = prompt.head, prompt.kv_N2HPD
    if kv_N2HPD.dim() != 5:
        raise WrongShape(f"{KV} has {kv_N2HPD.dim()} dimensions, not the 5 of [N, 2, H, P, D]")
    tensors = {WEIGHT: head.weight_CM, BIAS: head.bias_C}
    if kv_N2HPD.numel():
        tensors[KV] = kv_N2HPD
    if prompt.shallow_PM is not None:
        if prompt.shallow_PM.dim() != 2:
            raise WrongShape(f"{SHALLOW} has {prompt.shallow_PM.dim()} dimensions, not the 2 of [P, M]")
        tensors[SHALLOW] = prompt.shallow_PM
    pooler = {POOLER_WEIGHT: head.pooler_weight_MM, POOLER_BIAS: head.pooler_bias_M}
    for name, tensor in pooler.items():
        if tensor is None and head.spec.pooler is Pooler.OWN:
            raise TensorMissing(f"the head has a pooler of its own and lacks {name}")
        if tensor is not None and head.spec.pooler is not Pooler.OWN:
            raise TensorUnexpected(f"the head has {name} and no pooler of its own")
        if tensor is not None:
            tensors[name] = tensor
    return tensors


def _fields_of(prompt: TaskPrompt, tensors: Mapping[str, Tensor], blob: bytes) -> dict[str, Any]:
    specs = {name: tensor_file.spec_of(name, tensor) for name, tensor in tensors.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "family": prompt.family,
        "labels": prompt.labels,
        "layers": prompt.layers,
        "prefix_length": prompt.prefix_length,
        "position_offset": prompt.position_offset,
        "shallow_length": prompt.shallow_length,
        "head": prompt.head.spec.model_dump(),
        "preprocessing": prompt.preprocessing.model_dump(),
        "backbone": prompt.backbone.model_dump(),
        "metrics": dict(prompt.metrics),
        "provenance": prompt.provenance.model_dump(),
        "tensors": {name: spec._asdict() for name, spec in specs.items()},
        "tensor_file": {"num_bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()},
    }
