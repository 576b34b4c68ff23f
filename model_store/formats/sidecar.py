"""`prefixbank.json`: what an exported prompt is beyond what the other tool's files can say.

Labels, preprocessing, the backbone's fingerprint, metrics, provenance; bound to the weights beside it by their hash, so
that it says nothing about weights that were changed since. An import that finds it gives back the prompt that was
exported. It refuses to know formats.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from prefixbank.model_store.errors import BackboneMismatch, SourceInvalid
from prefixbank.model_store.formats.source_config import READ_STRICTLY, parse_config
from prefixbank.model_store.formats.source_files import read_json
from prefixbank.model_store.task_prompt import BackboneRef, Preprocessing, Provenance, TaskFamily

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.task_prompt import TaskPrompt

NAME = "prefixbank.json"


class Sidecar(BaseModel):
    """The file's fields; `TaskPrompt` documents those that the two share."""

    model_config = READ_STRICTLY

    sidecar_version: Literal[1]
    family: TaskFamily
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    backbone: BackboneRef
    metrics: dict[str, float]
    provenance: Provenance
    weights_file: str
    weights_sha256: str


def sidecar_bytes(prompt: "TaskPrompt", weights_file: str, weights: bytes) -> bytes:
    """The file for `prompt`, whose weights are the bytes in `weights_file`."""
    sidecar = Sidecar(
        sidecar_version=1,
        family=prompt.family,
        labels=prompt.labels,
        preprocessing=prompt.preprocessing,
        backbone=prompt.backbone,
        metrics=dict(prompt.metrics),
        provenance=prompt.provenance,
        weights_file=weights_file,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    return spell(sidecar.model_dump(mode="json"))


def spell(fields: dict[str, object]) -> bytes:
    """JSON for people."""
    return json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_sidecar(folder: "Path", backbone: BackboneRef, weights: "Path | None") -> Sidecar | None:
    """The file in `folder`, true to the weights that were read and to the backbone; None where there is none.

    Args:
        weights: the file that was read.

    Raises:
        SourceInvalid: it is malformed, or about other weights than those that lie there.
        BackboneMismatch: it names another backbone.
    """
    path = folder / NAME
    if not path.exists():
        return None
    sidecar = parse_config(Sidecar, read_json(path), path)
    _check_weights(sidecar, folder)
    if weights is not None and weights.name != sidecar.weights_file:
        raise SourceInvalid(f"{path} speaks of {sidecar.weights_file}, and {weights.name} is what is read: remove one")
    if sidecar.backbone.fingerprint != backbone.fingerprint:
        raise BackboneMismatch(
            f"the prompt was made for {sidecar.backbone.name!r} ({sidecar.backbone.fingerprint[:12]}); "
            f"this is {backbone.name!r} ({backbone.fingerprint[:12]})"
        )
    return sidecar


def _check_weights(sidecar: Sidecar, folder: "Path") -> None:
    name = sidecar.weights_file
    weights = folder / name
    if "/" in name or name.startswith(".") or not weights.is_file():
        raise SourceInvalid(f"{folder / NAME} speaks of {name[:80]!r}, which is not there")
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sidecar.weights_sha256:
        raise SourceInvalid(f"{folder / NAME} is about other weights than {name} holds now: remove it, or the change")
