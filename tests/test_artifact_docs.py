"""The artifact format's contract in `docs/` names every field, limit and error of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefixbank.model_store import errors, manifest, task_prompt
from prefixbank.model_store.task_prompt import (
    AnsweringSpec,
    BackboneRef,
    HeadSpec,
    Preprocessing,
    Provenance,
    RolesSpec,
    VerbalizerSpec,
)

CONTRACT = (Path(__file__).resolve().parent.parent / "docs" / "artifact-format.md").read_text()
_LIMITS = ("LABELS", "LABEL_CHARS", "LAYERS", "PREFIX_LENGTH", "POSITION_OFFSET", "HEADS", "HEAD_DIM", "WIDTH")


_RECORDS = [manifest.Manifest, manifest.TensorEntry, manifest.TensorFileEntry, HeadSpec, Preprocessing, Provenance]
_SETTINGS = [AnsweringSpec, RolesSpec, VerbalizerSpec]


@pytest.mark.parametrize("model", _RECORDS + _SETTINGS)
def test_every_field_is_in_the_contract(model: type[manifest.Manifest]) -> None:
    assert [name for name in model.model_fields if f"`{name}" not in CONTRACT and f"{name}`" not in CONTRACT] == []


def test_every_backbone_field_is_in_the_contract() -> None:
    assert [name for name in BackboneRef.model_fields if f".{name}`" not in CONTRACT] == []


def test_every_artifact_error_is_in_the_contract() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    names = {kind.__name__ for kind in kinds if issubclass(kind, errors.ArtifactError)}
    assert {name for name in names if f"`{name}`" not in CONTRACT} == set()


def test_every_limit_is_in_the_contract() -> None:
    limits = {name: getattr(manifest, f"MAX_{name}") for name in _LIMITS}
    limits |= {name: limit for name, limit in vars(task_prompt).items() if name.startswith("MAX_")}
    assert {name for name, limit in limits.items() if f"{limit:,}" not in CONTRACT} == set()
    assert (manifest.MAX_MANIFEST_BYTES, manifest.MAX_TENSOR_FILE_BYTES) == (1 << 20, 4 << 30)
