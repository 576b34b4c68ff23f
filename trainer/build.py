"""Build: a recipe, a backbone and read data put together as a trial, ready for its first step.

It refuses to know files, steps and what becomes of the result.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.model_store import artifact
from prefixbank.model_store.backbones.cpu_products import amx_is_allowed
from prefixbank.model_store.errors import TrainingError
from prefixbank.model_store.task_prompt import Pooler
from prefixbank.trainer.deep_prompt import DeepPrompt, Mlp
from prefixbank.trainer.heads import LinearHead, WordHead
from prefixbank.trainer.pack import Pack
from prefixbank.trainer.shallow_prompt import ShallowPrompt
from prefixbank.trainer.starts import Material, deep_start, shallow_start
from prefixbank.trainer.trial import Part, Trial

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.trainer.families import Item
    from prefixbank.trainer.prepare import Prepared
    from prefixbank.trainer.progress import Display
    from prefixbank.trainer.recipe import Recipe


class Built(NamedTuple):
    """A trial and the pack that runs it."""

    trial: Trial
    pack: Pack


def build(
    recipe: Recipe, backbone: Backbone, prepared: Prepared, *, root: Path, folder: Path | None, display: Display
) -> Built:
    """A run of its own: full fine-tuning gets a private copy of the backbone.

    Args:
        root: what the recipe's paths are relative to.
        folder: where checkpoints go; None keeps none.

    Raises:
        TrainingError: the backbone lacks what the recipe asks for, or a stored start does not fit.
    """
    if recipe.method != "full":
        trial = build_trial(recipe, backbone, prepared, root=root, folder=folder, display=display)
        return Built(trial, Pack(backbone))
    backbone = _movable(backbone)
    modules: dict[str, nn.Module] = {"backbone": backbone.model}
    modules |= {} if backbone.pooler is None else {"backbone_pooler": backbone.pooler}
    trial = build_trial(recipe, backbone, prepared, root=root, folder=folder, display=display, backbone_modules=modules)
    autocast = None if precision_of(recipe, backbone.device) == torch.float32 else torch.bfloat16
    return Built(trial, Pack(backbone, autocast, keep_states=False))


def build_trial(
    recipe: Recipe,
    backbone: Backbone,
    prepared: Prepared,
    *,
    root: Path,
    folder: Path | None,
    display: Display,
    backbone_modules: dict[str, nn.Module] | None = None,
) -> Trial:
    """Prompt and heads as the recipe's seed says, for a pack; see `build`."""
    stored = _stored(recipe, root)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        parts = [_part(name, part, backbone, prepared, stored) for name, part in recipe.parts.items()]
        material = Material(backbone, _items(parts), _labels(parts), stored, recipe.seed)
        prompt = _prompt(recipe, material)
    return Trial(
        recipe,
        prompt,
        parts,
        device=backbone.device,
        identity=prepared.identity(recipe, root),
        folder=folder,
        display=display,
        backbone_modules=backbone_modules,
    )


def pooler_of(recipe: Recipe, backbone: Backbone, *, reads_tokens: bool) -> Pooler:
    """What a linear head reads, with `auto` resolved.

    Raises:
        TrainingError: the backbone's own pooler is asked for and it has none.
    """
    if reads_tokens:
        return Pooler.NONE
    if recipe.head.pooler == "auto":
        return Pooler.BACKBONE if backbone.has_pooler else Pooler.OWN
    if recipe.head.pooler == "backbone" and not backbone.has_pooler:
        raise TrainingError(f'head.pooler: found "backbone", wanted "own" or "none": {recipe.backbone} has no pooler')
    return Pooler(recipe.head.pooler)


def precision_of(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The arithmetic of a run, with `auto` resolved: bfloat16 where the device multiplies it fast."""
    if recipe.dtype != "auto":
        return torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
    return torch.bfloat16 if _is_fast_in_bfloat16(device) else torch.float32


def _is_fast_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cpu":
        has_it = torch.cpu._is_avx512_bf16_supported()
        return has_it and (amx_is_allowed() or not torch.cpu._is_amx_tile_supported())  # fp32 is faster without AMX
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _part(name: str, recipe: Recipe, backbone: Backbone, prepared: Prepared, stored: TaskPrompt | None) -> Part:
    data = prepared.parts[name]
    head = _head(recipe, backbone, prepared, name)
    if stored is not None and stored.labels == data.labels and stored.family == recipe.family:
        head.begin_from(stored.head)
    return Part(
        name, data.family, data.labels, head, recipe.head.dropout, data.items["train"], data.items["validation"]
    )


def _head(recipe: Recipe, backbone: Backbone, prepared: Prepared, name: str) -> LinearHead | WordHead:
    data = prepared.parts[name]
    if data.prep.verbalizer is not None:
        return WordHead(backbone, data.prep.verbalizer.outputs)
    task = data.family.task
    pooler = pooler_of(recipe, backbone, reads_tokens=task.is_token_level)
    return LinearHead(backbone.ref.width, task.num_outputs(data.labels), pooler).to(backbone.device)


def _prompt(recipe: Recipe, material: Material) -> DeepPrompt | ShallowPrompt | None:
    if recipe.method == "shallow":
        return ShallowPrompt(shallow_start(recipe.prompt, material).to(material.backbone.device))
    if recipe.method != "prompt":
        return None
    section, ref, device = recipe.prompt, material.backbone.ref, material.backbone.device
    layers = section.resolve(ref.num_layers)
    start_N2HPD = deep_start(section, layers, material).to(device)
    if section.parameterisation == "embedding":
        return DeepPrompt(start_N2HPD, layers)
    outputs = 2 * len(layers) * ref.num_heads * ref.head_dim
    as_published = section.init == "normal"
    mlp = Mlp(section.length, ref.width, section.mlp_width, outputs, is_still=not as_published).to(device)
    return DeepPrompt(start_N2HPD * (not as_published), layers, mlp)


def _items(parts: list[Part]) -> list[Item]:
    return [item for part in parts for item in part.train]


def _labels(parts: list[Part]) -> list[str]:
    return list(dict.fromkeys(label for part in parts for label in part.labels))


def _stored(recipe: Recipe, root: Path) -> TaskPrompt | None:
    return None if recipe.start is None else artifact.read(root / recipe.start)


def _movable(backbone: Backbone) -> Backbone:
    """A private copy whose weights take gradients."""
    copied = replace(backbone, model=copy.deepcopy(backbone.model), pooler=copy.deepcopy(backbone.pooler))
    copied.model.requires_grad_(True)
    if copied.pooler is not None:
        copied.pooler.requires_grad_(True)
    return copied
