"""Starts: where a prompt begins - text of the task, its labels, noise, or another stored prompt.

It refuses to know how prompts move and what they are for.

Shape letters: L layers, N prompted layers, H heads, P prompt tokens, D head dim, M model width, T tokens of text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.errors import TrainingError
from prefixbank.model_store.tasks.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.backbones.packing import PackedTokens
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.trainer.families import Item
    from prefixbank.trainer.recipe import PromptSection

START_ROWS = 64
"""Training rows that a prompt begins from; more when the prompt is longer than their tokens."""
STD = 0.02
"""Of the start named "normal": what transformers gives to the published implementation's prefix."""


class Material(NamedTuple):
    """What a start may be made of."""

    backbone: Backbone
    items: Sequence[Item]
    """Training rows."""
    labels: Sequence[str]
    stored: TaskPrompt | None
    """Of the start named "stored"."""
    seed: int


def deep_start(section: PromptSection, layers: tuple[int, ...], material: Material) -> Tensor:
    """Keys and values [N, 2, H, P, D] to begin from, on the host or the backbone's device.

    Raises:
        TrainingError: the stored prompt does not fit.
    """
    ref, generator = material.backbone.ref, torch.Generator().manual_seed(material.seed)
    shape = (len(layers), 2, ref.num_heads, section.length, ref.head_dim)
    if section.init == "stored":
        return _stored_deep(_stored(material), section, layers)
    if section.init == "normal":
        return torch.randn(shape, generator=generator) * STD
    kv_N2HTD = material.backbone.key_values(_text(section, material, generator))[list(layers)]
    if section.init != "random":
        return kv_N2HTD[:, :, :, _chosen(section, kv_N2HTD.shape[3], generator).to(kv_N2HTD.device)]
    kv_N2HTD = kv_N2HTD.float()
    noise = torch.randn(shape, generator=generator).to(kv_N2HTD.device)
    return kv_N2HTD.mean(3, keepdim=True) + kv_N2HTD.std(3, keepdim=True) * noise


def shallow_start(section: PromptSection, material: Material) -> Tensor:
    """Vectors [P, M] to begin from, on the host or the backbone's device.

    Raises:
        TrainingError: the stored prompt does not fit.
    """
    backbone, generator = material.backbone, torch.Generator().manual_seed(material.seed)
    shape = (section.length, backbone.ref.width)
    if section.init == "stored":
        return _stored_shallow(_stored(material), section)
    if section.init == "normal":
        return torch.randn(shape, generator=generator) * STD
    token_ids_T = _text(section, material, generator).token_ids_T
    embedded_TM = backbone.word_embedding_VM[token_ids_T].float()
    if section.init != "random":
        return embedded_TM[_chosen(section, len(embedded_TM), generator).to(embedded_TM.device)]
    noise = torch.randn(shape, generator=generator).to(backbone.device)
    return embedded_TM.mean(0) + embedded_TM.std(0) * noise


def _chosen(section: PromptSection, num_tokens: int, generator: torch.Generator) -> Tensor:
    """Which tokens a prompt takes, ascending: drawn from text; of labels all in turn."""
    if section.init == "labels":
        return torch.arange(section.length) % num_tokens
    rounds = [torch.randperm(num_tokens, generator=generator) for _ in range(-(-section.length // num_tokens))]
    return torch.cat(rounds)[: section.length].sort().values


def _text(section: PromptSection, material: Material, generator: torch.Generator) -> PackedTokens:
    if section.init == "labels":
        return material.backbone.pack([_label_row(material)])
    rows = _drawn(material.items, section.length, generator)
    return material.backbone.pack([PackRow(row.token_ids, row.type_ids) for row in rows])


def _drawn(items: Sequence[Item], length: int, generator: torch.Generator) -> list[Features]:
    chosen: list[Features] = []
    tokens = 0
    for index in torch.randperm(len(items), generator=generator).tolist():
        if len(chosen) >= START_ROWS and tokens >= length:
            break
        row = items[index].rows[0]
        chosen.append(row)
        tokens += row.num_tokens
    return chosen


def _label_row(material: Material) -> PackRow:
    """The words of all labels as one text, without special tokens, as far as the backbone reads."""
    tokenizer = TextTokenizer(material.backbone.tokenizer)
    text = " ".join(_words(material.labels))
    found = tokenizer.split(text, add_prefix_space=False).ids[: material.backbone.max_tokens(0)]
    if not found:
        raise TrainingError('prompt.init: found "labels" and no word in any label, wanted "text" or another start')
    token_ids = np.array(found, dtype=np.int64)
    return PackRow(token_ids, np.zeros_like(token_ids))


def _words(labels: Iterable[str]) -> list[str]:
    """Labels as people would say them: `B-order_status` is "order status"; the outside tag says nothing."""
    bare = [label.removeprefix("B-").removeprefix("I-") for label in labels if label != "O"]
    return list(dict.fromkeys(name.replace("_", " ").replace("-", " ") for name in bare)) or ["answer"]


def _stored(material: Material) -> TaskPrompt:
    stored, ref = material.stored, material.backbone.ref
    assert stored is not None, "a stored start without a prompt. This is a bug."
    if stored.backbone.fingerprint != ref.fingerprint:
        found = f"{stored.backbone.name or stored.backbone.architecture} ({stored.backbone.fingerprint[:12]})"
        raise TrainingError(f"prompt.start: found a prompt of backbone {found}, wanted one of {ref.name}")
    return stored


def _stored_deep(stored: TaskPrompt, section: PromptSection, layers: tuple[int, ...]) -> Tensor:
    absent = sorted(set(layers) - set(stored.layers))
    if absent or stored.prefix_length != section.length:
        found = f"{stored.prefix_length} tokens in layers {list(stored.layers)}"
        raise TrainingError(f"prompt.start: found {found}, wanted {section.length} tokens in layers {list(layers)}")
    return stored.kv_N2HPD[[stored.layers.index(layer) for layer in layers]].float()


def _stored_shallow(stored: TaskPrompt, section: PromptSection) -> Tensor:
    length = 0 if stored.shallow_PM is None else len(stored.shallow_PM)
    if stored.shallow_PM is None or length != section.length:
        raise TrainingError(f"prompt.start: found {length} shallow tokens, wanted {section.length}")
    return stored.shallow_PM.float()
