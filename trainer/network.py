"""Network: a backbone, a prompt and a head put together for one run, and which of their tensors move.

It refuses to know optimisers, epochs and metrics.

Shape letters: T packed tokens, M model width, C classes, K read positions.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from prefixbank.model_store.errors import TrainingError
from prefixbank.model_store.task_prompt import Pooler, TaskFamily
from prefixbank.trainer.batches import assemble
from prefixbank.trainer.parameters import (
    SLOT,
    DeepPrompt,
    LinearHead,
    from_noise,
    from_text,
    no_prompt,
    prompted_layers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.batches import RowBatch
    from prefixbank.trainer.recipe import Recipe
    from prefixbank.trainer.rows import Row

START_ROWS = 64
"""Training rows whose keys and values a prompt begins from; more when the prompt is longer than their tokens."""


@dataclass(frozen=True, eq=False, slots=True)
class Network:
    """Everything between rows and logits."""

    backbone: Backbone
    prompt: DeepPrompt
    head: LinearHead
    recipe: Recipe
    dropouts: tuple[nn.Dropout, ...] = ()
    """The backbone's own dropouts that act while training. The attention modules themselves stay as in serving."""
    autocast: torch.dtype | None = None
    """Arithmetic of a backbone that is itself trained in fp32; None when it computes in its own dtype."""

    def trained(self) -> dict[str, nn.Parameter]:
        """The tensors that move, by name."""
        parts = {"prompt": self.prompt, "head": self.head}
        if self.recipe.method == "full":
            parts |= {"backbone": self.backbone.model}
            parts |= {} if self.backbone.pooler is None else {"backbone_pooler": self.backbone.pooler}
        named = ((f"{part}.{name}", tensor) for part, net in parts.items() for name, tensor in net.named_parameters())
        return {name: tensor for name, tensor in named if tensor.requires_grad}

    def assemble(self, rows: Sequence[Row]) -> RowBatch:
        """Pack rows that all read the one prompt."""
        return assemble(rows, self.backbone, slot=SLOT, position_offset=self.recipe.position_offset)

    def training_logits(self, batch: RowBatch) -> Tensor:
        """Logits [K, C] of the positions that have targets, dropouts active."""
        with _active(self.dropouts):
            hidden_TM = self._hidden(batch, self.recipe.prompt.dropout)
        return self._head(hidden_TM.index_select(0, batch.read_K), self.recipe.head.dropout)

    def row_logits(self, batch: RowBatch) -> list[Tensor]:
        """Logits of each row as the server makes them: [C], or [T, C] for every token of the row."""
        hidden_TM = self._hidden(batch)
        if self.recipe.family == TaskFamily.TOKEN_CLASSIFICATION:
            return list(torch.split(self._head(hidden_TM), list(batch.lengths)))
        return list(self._head(hidden_TM.index_select(0, batch.read_K)).unbind())

    def _hidden(self, batch: RowBatch, prompt_dropout: float = 0.0) -> Tensor:
        dtype = self.autocast or self.backbone.dtype
        prefixes = self.prompt.layer_prefixes(dtype, prompt_dropout)
        with torch.autocast(self.backbone.device.type, self.autocast, enabled=self.autocast is not None):
            return self.backbone.forward(batch.tokens, prefixes)

    def _head(self, hidden_KM: Tensor, dropout: float = 0.0) -> Tensor:
        if self.head.kind == Pooler.BACKBONE:
            hidden_KM = self.backbone.pooled(hidden_KM.to(self.backbone.dtype))
        logits_KC: Tensor = self.head(hidden_KM, dropout)
        return logits_KC


def build(recipe: Recipe, backbone: Backbone, rows: Sequence[Row], num_classes: int) -> Network:
    """Put a run's network together; prompt and head begin as the recipe's seed says.

    Raises:
        TrainingError: the backbone lacks what the recipe asks for.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        head = LinearHead(backbone.ref.width, num_classes, pooler_of(recipe, backbone)).to(backbone.device)
    if recipe.method == "prompt":
        return Network(backbone, _start(recipe, backbone, rows), head, recipe, _dropouts(recipe, backbone))
    prompt = no_prompt(backbone.ref, backbone.device)
    if recipe.method == "head":
        return Network(backbone, prompt, head, recipe)
    backbone = _movable(backbone)
    autocast = None if precision_of(recipe, backbone.device) == torch.float32 else torch.bfloat16
    return Network(backbone, prompt, head, recipe, _dropouts(recipe, backbone), autocast)


def pooler_of(recipe: Recipe, backbone: Backbone) -> Pooler:
    """What the head reads, with `auto` resolved.

    Raises:
        TrainingError: the backbone's own pooler is asked for and it has none.
    """
    if recipe.family == TaskFamily.TOKEN_CLASSIFICATION:
        return Pooler.NONE
    if recipe.head.pooler == "auto":
        return Pooler.BACKBONE if backbone.has_pooler else Pooler.OWN
    if recipe.head.pooler == Pooler.BACKBONE and not backbone.has_pooler:
        raise TrainingError(f'head.pooler: found "backbone", wanted "own" or "none": {recipe.backbone} has no pooler')
    return Pooler(recipe.head.pooler)


def precision_of(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The arithmetic of a run, with `auto` resolved: bfloat16 where the device multiplies it fast."""
    if recipe.dtype != "auto":
        return torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _start(recipe: Recipe, backbone: Backbone, rows: Sequence[Row]) -> DeepPrompt:
    generator = torch.Generator().manual_seed(recipe.seed)
    layers = prompted_layers(recipe.prompt.layers, backbone.ref)
    chosen: list[Row] = []
    tokens = 0
    for index in torch.randperm(len(rows), generator=generator).tolist():
        if len(chosen) >= START_ROWS and tokens >= recipe.prompt.length:
            break
        chosen.append(rows[index])
        tokens += rows[index].num_tokens
    packed = assemble(chosen, backbone, slot=0, position_offset=0).tokens
    begin = from_text if recipe.prompt.init == "text" else from_noise
    return begin(backbone.key_values(packed), recipe.prompt.length, layers, generator)


def _movable(backbone: Backbone) -> Backbone:
    """A private copy whose weights take gradients."""
    copied = replace(backbone, model=copy.deepcopy(backbone.model), pooler=copy.deepcopy(backbone.pooler))
    copied.model.requires_grad_(True)
    if copied.pooler is not None:
        copied.pooler.requires_grad_(True)
    return copied


def _dropouts(recipe: Recipe, backbone: Backbone) -> tuple[nn.Dropout, ...]:
    if not recipe.optimiser.backbone_dropout:
        return ()
    return tuple(module for module in backbone.model.modules() if isinstance(module, nn.Dropout))


@contextmanager
def _active(dropouts: tuple[nn.Dropout, ...]) -> Iterator[None]:
    for dropout in dropouts:
        dropout.train()
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.eval()
