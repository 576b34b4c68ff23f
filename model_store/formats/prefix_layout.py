"""How flat prefixes lie in memory, and how reparameterised ones are folded to plain keys and values.

P-tuning-v2, PEFT and adapters agree: [P, 2LHD] is P tokens, each layer by layer, keys before values, head by head. It
refuses to know files and configs.

Shape letters: N prompted layers, H heads, P prefix tokens, D head dim, E embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from prefixbank.model_store.errors import BackboneMismatch, SourceInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from prefixbank.model_store.formats.foreign import Dense
    from prefixbank.model_store.task_prompt import BackboneRef

HELD = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes in which an artifact holds a prefix; others become fp32."""


def split_flat(flat_PX: Tensor, num_layers: int, ref: BackboneRef) -> Tensor:
    """Keys and values [N, 2, H, P, D] of a flat prefix [P, N * 2 * H * D].

    Raises:
        BackboneMismatch: it is not as wide as that many layers of this backbone.
        SourceInvalid: it holds no floating-point numbers.
    """
    width = num_layers * 2 * ref.num_heads * ref.head_dim
    if flat_PX.dim() != 2 or flat_PX.shape[1] != width:
        raise BackboneMismatch(
            f"the prefix is {list(flat_PX.shape)}; {num_layers} layers of {ref.name or ref.architecture!r} "
            f"take [P, {width}] ({ref.num_heads} heads of {ref.head_dim}, keys and values)"
        )
    if not flat_PX.is_floating_point():
        raise SourceInvalid(f"the prefix holds {flat_PX.dtype}, not floating-point numbers")
    held = flat_PX if flat_PX.dtype in HELD else flat_PX.float()
    kv_PN2HD = held.reshape(-1, num_layers, 2, ref.num_heads, ref.head_dim)
    return kv_PN2HD.permute(1, 2, 3, 0, 4).contiguous()


def join_flat(kv_N2HPD: Tensor) -> Tensor:
    """The flat prefix [P, N * 2 * H * D] of keys and values."""
    return kv_N2HPD.permute(3, 0, 1, 2, 4).flatten(1).contiguous()


def fold(embedding_PE: Tensor, layers: tuple[Dense, Dense], activation: Callable[[Tensor], Tensor]) -> Tensor:
    """What two dense layers make of a prefix's embeddings, which no input changes: computed once, in fp64.

    Raises:
        SourceInvalid: the shapes do not follow from each other.
    """
    _check_chain(embedding_PE, *layers)
    first, second = ((dense.weight.double(), dense.bias.double()) for dense in layers)
    hidden_PF = activation(functional.linear(embedding_PE.double(), *first))
    return functional.linear(hidden_PF, *second).float()


def _check_chain(embedding_PE: Tensor, first: Dense, second: Dense) -> None:
    matrices = (embedding_PE, first.weight, second.weight)
    fits = (
        all(matrix.dim() == 2 for matrix in matrices)
        and embedding_PE.shape[1] == first.weight.shape[1]
        and first.weight.shape[0] == second.weight.shape[1]
        and all(dense.bias.shape == dense.weight.shape[:1] for dense in (first, second))
    )
    if not fits:
        shapes = [list(matrix.shape) for matrix in (*matrices, first.bias, second.bias)]
        raise SourceInvalid(f"the shapes of the prefix projection do not follow from each other: {shapes}")
    if not embedding_PE.is_floating_point():
        raise SourceInvalid(f"the prefix holds {embedding_PE.dtype}, not floating-point numbers")
