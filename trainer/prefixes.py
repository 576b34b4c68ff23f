"""Prefixes of a step: the deep prompts of several trials laid side by side in one pool per layer, a slot each.

It refuses to know rows, heads and what becomes of a layer's prefix.

Shape letters: L layers, N prompted layers, H heads, P prefix tokens, D head dim, S slots, R rows.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prefixbank.kernels.plan import NO_PROMPT_SLOT, LayerPrefix
from prefixbank.trainer.dropout import dropout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from prefixbank.model_store.task_prompt import BackboneRef
    from prefixbank.trainer.deep_prompt import DeepPrompt


class Drop(NamedTuple):
    """How values of a prefix drop out in a step."""

    share: float
    stream: torch.Generator
    per_row: bool
    """Every row draws for itself and reads a copy of its own, as published; otherwise the batch draws once."""


class Lent(NamedTuple):
    """A prompt and the rows that read it in this step."""

    prompt: DeepPrompt
    num_rows: int
    drop: Drop | None = None

    @property
    def num_slots(self) -> int:
        return self.num_rows if self.drop is not None and self.drop.per_row else 1


class Shape(NamedTuple):
    """What slot tables depend on."""

    layers: tuple[int, ...]
    length: int
    num_slots: int


def layer_prefixes(
    lent: Sequence[Lent], ref: BackboneRef, dtype: torch.dtype, device: torch.device
) -> list[LayerPrefix]:
    """One view per layer of the backbone; gradients flow through them to the prompts."""
    shapes = tuple(Shape(one.prompt.layers, one.prompt.length, one.num_slots) for one in lent)
    start_LS, length_LS = _tables(shapes, ref.num_layers, device)
    empty_H0D = torch.empty(ref.num_heads, 0, ref.head_dim, dtype=dtype, device=device)
    parts: list[list[Tensor]] = [[] for _ in range(ref.num_layers)]
    for one in lent:
        for layer, kv_2HPD in zip(one.prompt.layers, _values(one, dtype).unbind(), strict=True):
            parts[layer].append(kv_2HPD)
    pools = [_joined(each, empty_H0D) for each in parts]
    tables = zip(pools, start_LS, length_LS, strict=True)
    return [LayerPrefix(*pool, start_S, length_S) for pool, start_S, length_S in tables]


def first_slots(lent: Sequence[Lent]) -> list[int]:
    """The slot of each prompt's rows, or of the first of them where every row has its own."""
    counts = [one.num_slots for one in lent]
    return (NO_PROMPT_SLOT + 1 + np.cumsum([0, *counts[:-1]], dtype=np.int64)).tolist() if counts else []


def _values(one: Lent, dtype: torch.dtype) -> Tensor:
    """[N, 2, H, P, D] in the backbone's dtype, or as many copies of P tokens as there are rows."""
    kv_N2HPD = one.prompt.values().to(dtype)
    if one.drop is None:
        return kv_N2HPD
    if one.drop.per_row:
        layers, _, heads, length, dim = kv_N2HPD.shape
        shape = (layers, 2, heads, one.num_rows, length, dim)
        kv_N2HPD = kv_N2HPD[:, :, :, None].expand(shape).reshape(layers, 2, heads, one.num_rows * length, dim)
    return dropout(kv_N2HPD, one.drop.share, one.drop.stream)


def _joined(parts: Sequence[Tensor], empty_H0D: Tensor) -> tuple[Tensor, Tensor]:
    """Pools of keys and values."""
    if not parts:
        return empty_H0D, empty_H0D
    keys, values = (parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=2)).unbind()
    return keys, values


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # validation fills the cache too, and training saves what it finds there for backward
def _tables(shapes: tuple[Shape, ...], num_layers: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First tokens and lengths of every slot in every layer, int32 [L, S] each; slot 0 is no prompt."""
    num_slots = NO_PROMPT_SLOT + 1 + sum(shape.num_slots for shape in shapes)
    tables = np.zeros((2, num_layers, num_slots), dtype=np.int32)
    for layer in range(num_layers):
        slot, token = NO_PROMPT_SLOT + 1, 0
        for shape in shapes:
            if layer in shape.layers:
                end = token + shape.length * shape.num_slots
                tables[0, layer, slot : slot + shape.num_slots] = np.arange(token, end, shape.length)
                tables[1, layer, slot : slot + shape.num_slots] = shape.length
                token = end
            slot += shape.num_slots
    start_LS, length_LS = torch.from_numpy(tables).to(device)
    return start_LS, length_LS
