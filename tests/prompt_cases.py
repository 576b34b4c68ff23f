"""Small honest prompts, and the means to make them lie."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from prefixbank.model_store import artifact, errors
from prefixbank.model_store.task_prompt import (
    BackboneRef,
    Head,
    HeadSpec,
    Pooler,
    Preprocessing,
    Provenance,
    TaskFamily,
    TaskPrompt,
    VerbalizerSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = BackboneRef(fingerprint="ab" * 32, architecture="bert", num_layers=4, num_heads=2, head_dim=4, width=8)
OWN_POOLER = HeadSpec(pooler=Pooler.OWN, activation="tanh")
NO_POOLER = HeadSpec(pooler=Pooler.NONE)


def make_prompt(
    seed: int = 0,
    *,
    layers: tuple[int, ...] = (0, 1, 3),
    prefix_length: int = 5,
    spec: HeadSpec = OWN_POOLER,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> TaskPrompt:
    """A prompt of random numbers for the backbone `TINY`."""
    generator = torch.Generator().manual_seed(seed)
    kv_N2HPD = torch.randn(len(layers), 2, TINY.num_heads, prefix_length, TINY.head_dim, generator=generator)
    labels = fields.pop("labels", ("no", "yes"))
    honest: dict[str, Any] = {
        "family": TaskFamily.TEXT_CLASSIFICATION,
        "labels": labels,
        "layers": layers,
        "kv_N2HPD": kv_N2HPD.to(dtype),
        "position_offset": prefix_length,
        "head": make_head(generator, len(labels), spec),
        "preprocessing": Preprocessing(max_tokens=64, pair=True, text_fields=("question", "passage")),
        "backbone": TINY,
        "metrics": {"accuracy": 0.875},
        "provenance": Provenance(created="2026-01-02T03:04:05+00:00", recipe={"lr": 0.005, "steps": [1, 2]}),
    }
    return TaskPrompt(**(honest | fields))


def make_shallow(seed: int = 0, *, length: int = 6, dtype: torch.dtype = torch.float32, **fields: Any) -> TaskPrompt:
    """A shallow prompt of random numbers for the backbone `TINY`."""
    vectors = torch.randn(length, TINY.width, generator=torch.Generator().manual_seed(seed))
    return make_prompt(seed, layers=(), prefix_length=0, shallow_PM=vectors.to(dtype), **fields)


WORDS = VerbalizerSpec(
    template="{text} It is {mask}: {text_pair}", words=("bad", "very good"), token_ids=((7,), (30, 9))
)
"""A verbalizer of two labels and three distinct tokens."""


def make_verbalizer(seed: int = 0, *, verbalizer: VerbalizerSpec = WORDS, **fields: Any) -> TaskPrompt:
    """A prompt that answers with words, for the backbone `TINY`."""
    spec = HeadSpec(pooler=Pooler.LM, lm_digest="cd" * 32)
    head = make_head(torch.Generator().manual_seed(seed), len(verbalizer.outputs), spec)
    preprocessing = Preprocessing(max_tokens=64, pair=True, verbalizer=verbalizer)
    return make_prompt(seed, **({"head": head, "preprocessing": preprocessing} | fields))


def make_head(generator: torch.Generator, num_labels: int, spec: HeadSpec) -> Head:
    weight_CM = torch.randn(num_labels, TINY.width, generator=generator)
    bias_C = torch.randn(num_labels, generator=generator)
    if spec.pooler is not Pooler.OWN:
        return Head(spec, weight_CM, bias_C)
    pooler_weight_MM = torch.randn(TINY.width, TINY.width, generator=generator)
    return Head(spec, weight_CM, bias_C, pooler_weight_MM, torch.randn(TINY.width, generator=generator))


def same_prompt(one: TaskPrompt, other: TaskPrompt) -> bool:
    """Whether every field agrees, tensors bit for bit."""
    of_tensors = ("kv_N2HPD", "head", "shallow_PM")
    plain = [field.name for field in dataclasses.fields(TaskPrompt) if field.name not in of_tensors]
    return (
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and one.head.spec == other.head.spec
        and all(_same_tensor(a, b) for a, b in zip(_tensors(one), _tensors(other), strict=True))
    )


def _tensors(prompt: TaskPrompt) -> list[torch.Tensor | None]:
    head = prompt.head
    return [prompt.kv_N2HPD, prompt.shallow_PM, head.weight_CM, head.bias_C, head.pooler_weight_MM, head.pooler_bias_M]


def _same_tensor(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


class Forger:
    """Edits the artifact in `folder` and repairs what would give the edit away: hashes and sizes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest_path = folder / "manifest.json"
        self.tensor_path = folder / "prompt.safetensors"

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.manifest_path.read_bytes())

    def edit_manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        fields = self.manifest
        change(fields)
        self.manifest_path.write_text(json.dumps(fields))

    def edit_tensor_file(self, change: Callable[[dict[str, Any], bytearray], bytes | None]) -> None:
        """Let `change` alter header and payload (or return a whole file), then make the manifest agree."""
        raw = self.tensor_path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header, payload = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
        forged = change(header, payload)
        self.put_tensor_file(forged if forged is not None else spell(header, payload))

    def put_tensor_file(self, raw: bytes) -> None:
        self.tensor_path.write_bytes(raw)
        pin = {"num_bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        self.edit_manifest(lambda fields: fields.update(tensor_file=pin))


def spell(header: dict[str, Any], payload: bytes | bytearray) -> bytes:
    """A safetensors file."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(payload)


def forge(folder: Path, prompt: TaskPrompt | None = None) -> Forger:
    """An honest artifact in `folder`, ready to be turned into a lie."""
    artifact.write(prompt if prompt is not None else make_prompt(), folder)
    return Forger(folder)


def refused(folder: Path, error: type[errors.ArtifactError], match: str = ".") -> None:
    """Reading raises exactly this class, and its message says `match`."""
    with pytest.raises(error, match=match) as caught:
        artifact.read(folder)
    assert caught.type is error
