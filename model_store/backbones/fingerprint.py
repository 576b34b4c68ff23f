"""The fingerprint of a backbone: what must be equal for a prompt to mean the same.

Config fields that decide the numbers, every frozen tensor in its stored dtype, and what the tokenizer makes of text. It
does not depend on the dtype of serving, on how the tensors are spread over files, on the prefix of their names, or on
tensors that the encoder does not use. It refuses to know models in memory and devices.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor

_PROBES = (
    "The quick brown fox, 3.14% (don't) re-read co-operation's e-mail: a@b.co!",
    "São Paulo, Zürich, Ōsaka; naïve façade. ISTANBUL Straße  two  spaces\ttab\nline",
    "Привет мир. 你好。世界。こんにちは 안녕하세요 مرحبا नमस्ते 🙂",
)
"""Texts that tokenizers of different case, accent, script and white-space handling cut differently."""
_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def canonical_name(name: str, prefix: str) -> str:
    """The name of a stored tensor in the base model: `bert.encoder.x` is `encoder.x`, `gamma` is `weight`."""
    name = name.removeprefix(f"{prefix}.")
    for old, new in _LEGACY.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def fingerprint(
    fields: Mapping[str, object],
    files: Sequence[Path],
    *,
    prefix: str,
    names: Collection[str],
    tokenizer: Tokenizer,
) -> str:
    """Hash config `fields`, the stored tensors whose canonical name is among `names`, and the tokenizer's behaviour."""
    digest = hashlib.sha256(b"prefixbank backbone 1\n")
    digest.update(json.dumps(fields, sort_keys=True).encode())
    digest.update(_hash_tokenizer(tokenizer))
    for name, tensor_hash in sorted(_tensor_hashes(files, prefix, names).items()):
        digest.update(f"\n{name} ".encode() + tensor_hash)
    return digest.hexdigest()


def _tensor_hashes(files: Sequence[Path], prefix: str, names: Collection[str]) -> dict[str, bytes]:
    hashes = {}
    for path in files:
        with safe_open(path, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - a safetensors file is no mapping
                name = canonical_name(key, prefix)
                if name in names:
                    hashes[name] = hash_tensor(stored.get_tensor(key))
    return hashes


def hash_tensor(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _hash_tokenizer(tokenizer: Tokenizer) -> bytes:
    vocabulary = json.dumps(sorted(tokenizer.get_vocab(with_added_tokens=True).items()))
    singles = [tokenizer.encode(probe) for probe in _PROBES]
    pair = tokenizer.encode(*_PROBES[:2])
    answers = json.dumps([[encoding.ids, encoding.type_ids] for encoding in (*singles, pair)])
    return hashlib.sha256(vocabulary.encode() + answers.encode()).digest()
