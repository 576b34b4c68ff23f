"""GLM's two prefixes (Du et al., its branch with P-tuning v2), folded to keys and values.

One hidden vector per token and layer, which the frozen projections of that layer turn into a key and a value. In
variant A it was given as memory and passes through the layer's first norm; in variant B it is put in after that norm.
Positions are not shifted. The files do not tell the variants apart. It refuses to build a task prompt: GLM is not
served yet.

Shape letters: L layers, H heads, P prefix tokens, D head dim, M model width.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from prefixbank.model_store.errors import SourceInvalid
from prefixbank.model_store.formats.heads import TensorBag
from prefixbank.model_store.formats.prefix_layout import fold as fold_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

EMBEDDING = "prefix_encoder.embedding.weight"
NORM_EPSILON = 1e-5


class Variant(enum.StrEnum):
    """Where the hidden vectors enter a layer."""

    BEFORE_NORM = "a"
    AFTER_NORM = "b"


class Layer(NamedTuple):
    """What of a frozen layer makes keys and values; the projection is [Q | K | V]."""

    norm_weight_M: Tensor
    norm_bias_M: Tensor
    qkv_weight_XM: Tensor
    qkv_bias_X: Tensor


def read_kv(tensors: Mapping[str, Tensor], num_heads: int, variant: Variant) -> Tensor:
    """Keys and values [L, 2, H, P, D] from a checkpoint that holds the model and its prefix.

    Raises:
        SourceInvalid: a tensor is missing, or of another shape.
    """
    layers = read_layers(tensors)
    hidden_PLM = read_hidden(tensors, len(layers), layers[0].norm_weight_M.shape[0])
    return fold(hidden_PLM, layers, num_heads, variant)


def read_layers(tensors: Mapping[str, Tensor]) -> tuple[Layer, ...]:
    """The frozen layers of a checkpoint; names may have a class's prefix, as in `glm.transformer.layers.0`."""
    marker = "transformer.layers.0.attention.query_key_value.weight"
    first = next((name for name in tensors if name.endswith(marker)), None)
    if first is None:
        raise SourceInvalid(f"the checkpoint has no {marker}: a GLM prefix needs its model to become keys and values")
    stem = first.removesuffix("0.attention.query_key_value.weight")
    layers: list[Layer] = []
    while f"{stem}{len(layers)}.attention.query_key_value.weight" in tensors:
        layers.append(_layer(tensors, f"{stem}{len(layers)}."))
    return tuple(layers)


def read_hidden(tensors: Mapping[str, Tensor], num_layers: int, width: int) -> Tensor:
    """The hidden vectors [P, L, M], passed through the prefix encoder's own LSTM and MLP where it has them."""
    embedding_PX = _tensor(tensors, EMBEDDING, (None, num_layers * width))
    hidden_PLM = embedding_PX.double().view(-1, num_layers, width)
    through_lstm_PLX = _through_lstm(hidden_PLM, _below(tensors, "prefix_encoder.lstm_head."))
    return _through_mlp(through_lstm_PLX, _below(tensors, "prefix_encoder.mlp_head."))


@torch.no_grad()
def fold(hidden_PLM: Tensor, layers: Sequence[Layer], num_heads: int, variant: Variant) -> Tensor:
    """Keys and values [L, 2, H, P, D] that the frozen layers make of hidden vectors; computed in fp64."""
    pairs = zip(hidden_PLM.unbind(1), layers, strict=True)
    return torch.stack([_fold_layer(x_PM, layer, num_heads, variant) for x_PM, layer in pairs]).float()


def _fold_layer(hidden_PM: Tensor, layer: Layer, num_heads: int, variant: Variant) -> Tensor:
    norm_weight, norm_bias, weight, bias = (tensor.double() for tensor in layer)
    x_PM = hidden_PM.double()
    if variant is Variant.BEFORE_NORM:
        x_PM = functional.layer_norm(x_PM, norm_weight.shape, norm_weight, norm_bias, NORM_EPSILON)
    width = x_PM.shape[1]
    kv_PX = functional.linear(x_PM, weight[width:], bias[width:])
    return kv_PX.view(len(x_PM), 2, num_heads, -1).permute(1, 2, 0, 3)


def _layer(tensors: Mapping[str, Tensor], stem: str) -> Layer:
    norm = _tensor(tensors, f"{stem}input_layernorm.weight", (None,))
    width = norm.shape[0]
    return Layer(
        norm,
        _tensor(tensors, f"{stem}input_layernorm.bias", (width,)),
        _tensor(tensors, f"{stem}attention.query_key_value.weight", (3 * width, width)),
        _tensor(tensors, f"{stem}attention.query_key_value.bias", (3 * width,)),
    )


def _through_lstm(x_PLM: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Each layer's tokens in turn, both ways; the identity where the encoder has no LSTM."""
    if not state:
        return x_PLM
    width = x_PLM.shape[2]
    lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True).double().requires_grad_(False)
    try:
        lstm.load_state_dict(dict(state))
    except RuntimeError as error:
        raise SourceInvalid(f"prefix_encoder.lstm_head: {error}") from error
    out_PLX: Tensor = lstm(x_PLM)[0]
    return out_PLX


def _through_mlp(x_PLX: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """The identity where the encoder has no MLP."""
    if not state:
        return x_PLX.float()
    bag = TensorBag(state, "prefix_encoder.mlp_head")
    folded = fold_layers(x_PLX.flatten(0, 1), (bag.take_dense("0"), bag.take_dense("2")), functional.relu)
    return folded.view(*x_PLX.shape[:2], -1)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _tensor(tensors: Mapping[str, Tensor], name: str, wanted: tuple[int | None, ...]) -> Tensor:
    if name not in tensors:
        raise SourceInvalid(f"the checkpoint has no {name}")
    found = tuple(tensors[name].shape)
    if len(found) != len(wanted) or any(w not in (None, f) for f, w in zip(found, wanted, strict=True)):
        raise SourceInvalid(f"{name} is {list(found)}, wanted {list(wanted)}")
    return tensors[name]
