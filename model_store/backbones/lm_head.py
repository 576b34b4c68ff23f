"""LmHead: what stands between an encoder's states and its vocabulary in a checkpoint taught to fill in masks.

Layouts are those of transformers' `...ForMaskedLM` classes. Nothing is ever initialised here: a head that is not whole
in the checkpoint is none. It refuses to know verbalizers, prompts and batches.

Shape letters: K hidden states, M model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from safetensors import safe_open
from torch import nn
from transformers.activations import ACT2FN

from prefixbank.model_store.backbones.filling import filled
from prefixbank.model_store.backbones.fingerprint import canonical_name, hash_tensor
from prefixbank.model_store.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, eq=False, slots=True)
class LmHead:
    """The frozen masked-LM head of a backbone: `decoder_VM @ transform(x) + bias_V`, in the backbone's dtype."""

    dense_norm: nn.Module
    """Dense layer, activation, norm."""
    decoder_VM: Tensor
    """The vector of every token id: the word embeddings, unless the checkpoint keeps others."""
    bias_V: Tensor | None
    """None where the checkpoint has none."""
    digest: str
    """64 hex: the transform's tensors as they are stored, its activation and its epsilon."""

    def transform(self, x_KM: Tensor) -> Tensor:
        """The states [K, M] as the vocabulary reads them: [K, M]. A state's bits are the same alone and in company."""
        transformed_KM: Tensor = self.dense_norm(filled(x_KM))
        return transformed_KM[: len(x_KM)]


class _Layout(NamedTuple):
    """Names of stored tensors, without the base model's prefix."""

    dense: str
    norm: str
    biases: tuple[str, ...]
    """Of the decoder; the one that a tied head reads first."""
    decoder: str
    activation: str
    """Config field, or the activation's own name."""
    epsilon: str | float = "layer_norm_eps"
    """Config field, or the number."""
    dense_bias: str | None = None
    """Config field that says whether there is one; None where there always is."""
    norm_bias: str | None = None
    not_with: str | None = None
    """A tensor of another head, in a checkpoint that names the transform's tensors as this one does."""


_ROBERTA = _Layout(
    dense="lm_head.dense",
    norm="lm_head.layer_norm",
    biases=("lm_head.bias", "lm_head.decoder.bias"),
    decoder="lm_head.decoder.weight",
    activation="gelu",
)
_LAYOUTS: Mapping[str, _Layout] = {
    "bert": _Layout(
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        biases=("cls.predictions.bias", "cls.predictions.decoder.bias"),
        decoder="cls.predictions.decoder.weight",
        activation="hidden_act",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "electra": _Layout(
        dense="generator_predictions.dense",
        norm="generator_predictions.LayerNorm",
        biases=("generator_lm_head.bias",),
        decoder="generator_lm_head.weight",
        activation="gelu",
    ),
    "distilbert": _Layout(
        dense="vocab_transform",
        norm="vocab_layer_norm",
        biases=("vocab_projector.bias",),
        decoder="vocab_projector.weight",
        activation="activation",
        epsilon=1e-12,
    ),
    "modernbert": _Layout(
        dense="head.dense",
        norm="head.norm",
        biases=("decoder.bias",),
        decoder="decoder.weight",
        activation="classifier_activation",
        epsilon="norm_eps",
        dense_bias="classifier_bias",
        norm_bias="norm_bias",
        not_with="classifier.weight",
    ),
}


def load_lm_head(files: Sequence[Path], config: PreTrainedConfig, model: PreTrainedModel) -> LmHead | None:
    """Load the masked-LM head that lies beside the base `model`, onto its device and in its dtype.

    None where the checkpoint has no whole one, and where word embeddings are not as wide as the model (ELECTRA's
    generators): then a classifier as wide as the model cannot stand for the vocabulary.

    Raises:
        BackboneError: when a tensor of it is of another shape than the model's.
    """
    words_VM = model.get_input_embeddings().get_parameter("weight")
    layout = _LAYOUTS.get(config.model_type)
    if layout is None or words_VM.shape[1] != config.hidden_size:
        return None
    stored = _read(files, model.base_model_prefix, layout)
    tied = getattr(config, "tie_word_embeddings", True) or layout.decoder not in stored
    parts = _transform_names(layout, config)
    if layout.not_with in stored or not set(parts.values()) <= set(stored):
        return None
    _check_shapes(stored, layout, words_VM)
    transform = {part: stored[name] for part, name in parts.items()}
    return LmHead(
        _module(layout, config, transform).to(words_VM).eval().requires_grad_(False),
        words_VM if tied else stored[layout.decoder].to(words_VM),
        _bias(stored, layout.biases if tied else layout.biases[::-1], words_VM),
        _digest(_activation(layout, config), _epsilon(layout, config), transform),
    )


def _read(files: Sequence[Path], prefix: str, layout: _Layout) -> dict[str, Tensor]:
    """The checkpoint's tensors that the layout names, by canonical name."""
    dense_norm = [f"{part}.{kind}" for part in (layout.dense, layout.norm) for kind in ("weight", "bias")]
    wanted = {*dense_norm, *layout.biases, layout.decoder, layout.not_with}
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118 - a safetensors file is no mapping
                name = canonical_name(key, prefix)
                if name in wanted:
                    found[name] = stored.get_tensor(key)
    return found


def _transform_names(layout: _Layout, config: PreTrainedConfig) -> dict[str, str]:
    """The tensors of the transform: name in `dense_norm` to name in the checkpoint."""
    has_bias = [field is None or getattr(config, field) for field in (layout.dense_bias, layout.norm_bias)]
    names = {"0.weight": f"{layout.dense}.weight", "2.weight": f"{layout.norm}.weight"}
    if has_bias[0]:
        names["0.bias"] = f"{layout.dense}.bias"
    if has_bias[1]:
        names["2.bias"] = f"{layout.norm}.bias"
    return names


def _module(layout: _Layout, config: PreTrainedConfig, transform: Mapping[str, Tensor]) -> nn.Module:
    width = config.hidden_size
    dense = nn.Linear(width, width, bias="0.bias" in transform, device="meta")
    norm = nn.LayerNorm(width, eps=_epsilon(layout, config), bias="2.bias" in transform, device="meta")
    module = nn.Sequential(dense, ACT2FN[_activation(layout, config)], norm)
    module.load_state_dict(transform, assign=True)
    return module


def _activation(layout: _Layout, config: PreTrainedConfig) -> str:
    return str(getattr(config, layout.activation, layout.activation))


def _epsilon(layout: _Layout, config: PreTrainedConfig) -> float:
    return layout.epsilon if isinstance(layout.epsilon, float) else float(getattr(config, layout.epsilon))


def _bias(stored: Mapping[str, Tensor], names: Sequence[str], like: Tensor) -> Tensor | None:
    found = next((stored[name] for name in names if name in stored), None)
    return None if found is None else found.to(like)


def _check_shapes(stored: Mapping[str, Tensor], layout: _Layout, words_VM: Tensor) -> None:
    vocabulary, width = words_VM.shape
    wanted: dict[str, tuple[int, ...]] = {layout.decoder: (vocabulary, width), f"{layout.dense}.weight": (width, width)}
    wanted |= dict.fromkeys(layout.biases, (vocabulary,))
    for name, tensor in sorted(stored.items()):
        shape = wanted.get(name, (width,))
        if tuple(tensor.shape) != shape:
            raise BackboneError(f"{name} of the checkpoint is {tuple(tensor.shape)}, wanted {shape}")


def _digest(activation: str, epsilon: float, transform: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(b"prefixbank lm head 1\n" + json.dumps([activation, epsilon]).encode())
    for part, tensor in sorted(transform.items()):
        digest.update(f"\n{part} ".encode() + hash_tensor(tensor))
    return digest.hexdigest()
