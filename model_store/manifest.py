"""Manifest: everything an artifact says about itself.

It knows each field and limit of `docs/artifact-format.md`, and which tensors the fields imply; how fields may
contradict each other knows `manifest_checks.py`. It refuses to know folders and tensors' bytes, and so loads without
torch.

Shape letters: N prompted layers, H heads, P prompt tokens, D head dim, M model width, C outputs of the head.
"""

from __future__ import annotations

import json
from math import prod
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefixbank.model_store import strict_json
from prefixbank.model_store.complaint import first_complaint
from prefixbank.model_store.errors import ManifestInvalid, ManifestUnreadable, UnsupportedSchema
from prefixbank.model_store.manifest_checks import check_agreement
from prefixbank.model_store.task_prompt import (
    MAX_LABELS,
    BackboneRef,
    HeadSpec,
    Pooler,
    Preprocessing,
    Provenance,
    TaskFamily,
)

SCHEMA_VERSION = 1

MAX_MANIFEST_BYTES = 1 << 20
"""Keeps the worst hostile manifest under half a second of parsing."""
MAX_TENSOR_FILE_BYTES = 4 << 30
MAX_PREFIX_LENGTH = 65_536
MAX_LABEL_CHARS = 1_000
MAX_LAYERS = 1_024
MAX_HEADS = 1_024
MAX_HEAD_DIM = 8_192
MAX_WIDTH = 131_072
MAX_POSITION_OFFSET = 65_536

KV = "prefix.kv"
SHALLOW = "prompt.embeddings"
WEIGHT = "head.weight"
BIAS = "head.bias"
POOLER_WEIGHT = "head.pooler.weight"
POOLER_BIAS = "head.pooler.bias"

DtypeName = Literal["F32", "F16", "BF16"]
ITEM_BYTES: dict[str, int] = {"F32": 4, "F16": 2, "BF16": 2}


def _is_zero(value: int) -> bool:
    return value == 0


class TensorSpec(NamedTuple):
    """What a tensor must be, by the manifest's other fields."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TensorEntry(_Part):
    """One tensor as the manifest's table lists it."""

    dtype: DtypeName
    shape: tuple[Annotated[int, Field(ge=1)], ...]


class TensorFileEntry(_Part):
    """The tensor file as the manifest pins it."""

    num_bytes: Annotated[int, Field(ge=8, le=MAX_TENSOR_FILE_BYTES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)]


class Manifest(_Part):
    """`manifest.json`. `TaskPrompt` documents the fields that the two share."""

    schema_version: Literal[1]
    family: TaskFamily
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=MAX_LABELS)]
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=MAX_LAYERS)]
    prefix_length: Annotated[int, Field(ge=0, le=MAX_PREFIX_LENGTH)]
    position_offset: Annotated[int, Field(ge=0, le=MAX_POSITION_OFFSET)]
    shallow_length: Annotated[int, Field(ge=0, le=MAX_PREFIX_LENGTH, exclude_if=_is_zero)] = 0
    head: HeadSpec
    preprocessing: Preprocessing
    backbone: BackboneRef
    metrics: dict[str, float]
    provenance: Provenance
    tensors: dict[str, TensorEntry]
    tensor_file: TensorFileEntry

    @property
    def num_outputs(self) -> int:
        """Rows C of the head: one per label, or per distinct token of a verbalizer's words."""
        verbalizer = self.preprocessing.verbalizer
        return len(self.labels) if verbalizer is None else len(verbalizer.outputs)

    def implied_tensors(self) -> dict[str, TensorSpec]:
        """Name to dtype and shape of every tensor, from the fields that are not the table itself."""
        num_outputs, width, ref = self.num_outputs, self.backbone.width, self.backbone
        specs = {WEIGHT: TensorSpec("F32", (num_outputs, width)), BIAS: TensorSpec("F32", (num_outputs,))}
        if self.layers:
            shape = (len(self.layers), 2, ref.num_heads, self.prefix_length, ref.head_dim)
            specs[KV] = TensorSpec(self._listed_dtype(KV), shape)
        if self.shallow_length:
            specs[SHALLOW] = TensorSpec(self._listed_dtype(SHALLOW), (self.shallow_length, width))
        if self.head.pooler is Pooler.OWN:
            specs[POOLER_WEIGHT] = TensorSpec("F32", (width, width))
            specs[POOLER_BIAS] = TensorSpec("F32", (width,))
        return specs

    def _listed_dtype(self, name: str) -> str:
        """A prompt's dtype is the table's own choice."""
        listed = self.tensors.get(name)
        return listed.dtype if listed else "F32"

    def to_bytes(self) -> bytes:
        """The one spelling of this manifest: sorted keys, two spaces, UTF-8."""
        fields = self.model_dump(mode="json")
        try:
            text = json.dumps(fields, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
            return text.encode("utf-8") + b"\n"
        except ValueError as error:
            raise ManifestInvalid(f"the manifest cannot be said in JSON: {error}") from error


def parse_manifest(raw: bytes) -> Manifest:
    """The manifest spelled by `raw`, true to the schema and to itself.

    Raises:
        ManifestUnreadable, ManifestInvalid, UnsupportedSchema: or a subclass, naming what is wrong.
    """
    fields = strict_json.parse(raw, "the manifest")
    if not isinstance(fields, dict):
        raise ManifestUnreadable(f"the manifest is a JSON {type(fields).__name__}, not an object")
    _check_schema_version(fields)
    try:
        manifest = Manifest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise ManifestInvalid(f"the manifest breaks its schema: {first_complaint(error)}") from error
    _check(manifest)
    return manifest


def build_manifest(fields: dict[str, Any]) -> Manifest:
    """The manifest of `fields`, checked as one that was read.

    Raises:
        ManifestInvalid: or a subclass, naming what is wrong.
    """
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        raise ManifestInvalid(f"the prompt breaks the manifest's schema: {first_complaint(error)}") from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """Refuse a manifest whose fields are each well-formed and together a lie."""
    _check_backbone(manifest.backbone)
    check_agreement(manifest)
    _check_table(manifest)


def _check_schema_version(fields: dict[str, Any]) -> None:
    found = fields.get("schema_version")
    if type(found) is not int:
        raise ManifestInvalid("the manifest has no integer schema_version")
    if found != SCHEMA_VERSION:
        raise UnsupportedSchema(f"the manifest is of schema version {found}; this code reads {SCHEMA_VERSION}")


def _check_backbone(ref: BackboneRef) -> None:
    limits = {"num_layers": MAX_LAYERS, "num_heads": MAX_HEADS, "head_dim": MAX_HEAD_DIM, "width": MAX_WIDTH}
    for name, limit in limits.items():
        if getattr(ref, name) > limit:
            raise ManifestInvalid(f"backbone.{name} is {getattr(ref, name)}, more than {limit}")


def _check_table(manifest: Manifest) -> None:
    implied = manifest.implied_tensors()
    listed = {name: TensorSpec(entry.dtype, entry.shape) for name, entry in manifest.tensors.items()}
    for name in sorted(implied.keys() | listed.keys()):
        if implied.get(name) != listed.get(name):
            raise ManifestInvalid(
                f"tensors.{name[:80]}: the table says {_said(listed.get(name))}, "
                f"the other fields imply {_said(implied.get(name))}"
            )
    num_bytes = sum(spec.num_bytes for spec in implied.values())
    if manifest.tensor_file.num_bytes < num_bytes:
        raise ManifestInvalid(f"tensor_file.num_bytes {manifest.tensor_file.num_bytes} cannot hold {num_bytes}")


def _said(spec: TensorSpec | None) -> str:
    return f"{spec.dtype}{list(spec.shape)}" if spec else "nothing"
