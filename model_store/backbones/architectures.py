"""The architectures whose attention goes through the seam, and what differs between them.

Where the layers and their attention lie, how positions are numbered, which layers see only a window, which config
fields decide the numbers that come out. It refuses to know weights, files and prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefixbank.model_store.backbones.packing import PositionRule
from prefixbank.model_store.errors import UnsupportedBackbone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedConfig

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One `model_type` of transformers."""

    layers: str
    """Path from the base model to its list of layers."""
    attention: str
    """Path from a layer to the module that calls the attention interface."""
    config_fields: tuple[str, ...]
    """The config fields that, with the weights, decide the numbers: they go into the fingerprint."""
    token_types: bool = True
    """The embeddings take token types."""
    counts_from_padding: bool = False
    """Positions begin after the padding index (RoBERTa family)."""

    def has_token_types(self, config: PreTrainedConfig) -> bool:
        """Whether the type of a token makes a difference: with one type (RoBERTa) it makes none."""
        return self.token_types and config.type_vocab_size > 1

    def positions(self, config: PreTrainedConfig) -> PositionRule:
        count = int(config.max_position_embeddings)
        if not self.counts_from_padding:
            return PositionRule(0, count)
        first = int(config.pad_token_id) + 1
        return PositionRule(first, count - first, padding_id=int(config.pad_token_id))

    def windows(self, config: PreTrainedConfig) -> tuple[int, ...]:
        """Per layer, the largest distance between a query and a key that it sees; 0 for no limit.

        Raises:
            UnsupportedBackbone: for a window of 0 tokens, or a kind of layer that the seam does not know.
        """
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown:
            raise UnsupportedBackbone(f"layers of kind {sorted(unknown)} do not route through the attention seam")
        if "sliding_attention" in kinds and config.sliding_window < 1:
            raise UnsupportedBackbone(f"a sliding window of {config.sliding_window} tokens")
        return tuple(int(config.sliding_window) if kind == "sliding_attention" else 0 for kind in kinds)


_BERT_FIELDS = (*_SIZES, "intermediate_size", "type_vocab_size", "hidden_act", "layer_norm_eps")
_BERT = Architecture("encoder.layer", "attention.self", _BERT_FIELDS)
_ROBERTA = Architecture("encoder.layer", "attention.self", (*_BERT_FIELDS, "pad_token_id"), counts_from_padding=True)
_MODERNBERT_FIELDS = (
    *_SIZES,
    *("intermediate_size", "hidden_activation", "norm_eps", "norm_bias", "attention_bias", "mlp_bias"),
    *("layer_types", "local_attention", "rope_parameters"),
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "electra": Architecture("encoder.layer", "attention.self", (*_BERT_FIELDS, "embedding_size")),
    "distilbert": Architecture(
        "transformer.layer", "attention", (*_SIZES, "hidden_dim", "activation"), token_types=False
    ),
    "modernbert": Architecture("layers", "attn", _MODERNBERT_FIELDS, token_types=False),
}
"""transformers' `model_type` to what we know of it."""


def architecture_of(config: Mapping[str, object]) -> Architecture:
    """Return what we know of the architecture that a `config.json` names.

    Raises:
        UnsupportedBackbone: when its attention does not go through the seam, or not as an encoder's.
    """
    model_type = str(config.get("model_type"))
    if model_type not in ARCHITECTURES:
        raise UnsupportedBackbone(
            f"architecture {model_type!r} does not route its attention through the seam; "
            f"supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise UnsupportedBackbone(f"a {model_type} configured as a decoder; only encoders are served")
    positions = config.get("position_embedding_type", "absolute")
    if positions not in ("absolute", "rope", None):
        raise UnsupportedBackbone(f"a {model_type} with {positions!r} positions; only absolute ones route through")
    return ARCHITECTURES[model_type]
