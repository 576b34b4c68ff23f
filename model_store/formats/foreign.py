"""ForeignPrompt: what was read from another tool's files, before it meets its backbone.

Every reader of this package ends here, every tensor in memory of its own or of a mapped file. It refuses to know files,
formats' layouts, stores and devices.

Shape letters: N prompted layers, H heads, P prefix tokens, D head dim, M model width, C classes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue
    from torch import Tensor

    from prefixbank.model_store.task_prompt import TaskFamily

Activation = Literal["tanh", "gelu"]


class Format(enum.StrEnum):
    """The formats that are told apart."""

    PTUNING_V2 = "ptuning-v2"
    """A checkpoint of THUDM's P-tuning-v2: a folder with the whole model, its prefix encoder included."""
    PEFT = "peft"
    """A folder that PEFT's `save_pretrained` wrote."""
    ADAPTERS = "adapters"
    """A folder that the adapters library's `save_adapter` wrote, head included."""
    GLM = "glm"
    """A checkpoint of GLM (Du et al.) with a prefix of hidden states."""


@dataclass(frozen=True, eq=False, slots=True)
class Dense:
    """A linear layer, as stored: `x @ weight.T + bias`."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class TrainedPooler:
    """A dense layer that was trained with the classifier behind it."""

    dense: Dense
    activation: Activation


@dataclass(frozen=True, eq=False, slots=True)
class ModelPooler:
    """The model's own tanh pooler, as the source carries it; it may be the backbone's, or one nobody else has."""

    carried: Dense | None


@dataclass(frozen=True, eq=False, slots=True)
class ForeignHead:
    """`classifier(pooler(h))`, or `classifier(h)` without a pooler."""

    family: TaskFamily
    classifier: Dense
    pooler: TrainedPooler | ModelPooler | None
    pools: Literal["text", "prompt"] = "text"
    """Whose first token a pooled head reads: the text's, or the shallow prompt's."""


@dataclass(frozen=True, eq=False, slots=True)
class ForeignPrompt:
    """A deep or shallow prompt with its head, of the shapes that one backbone takes."""

    format: Format
    method: str
    """What the source calls itself, for people."""
    layers: tuple[int, ...]
    kv_N2HPD: Tensor
    position_offset: int
    head: ForeignHead
    shallow_PM: Tensor | None = None
    """Vectors before the text, where the prompt is not one of layers."""
    labels: tuple[str, ...] | None = None
    """None where the source does not name its classes."""
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    """The encoder as the source carries it, by names of the base model, pooler left out; empty where it does not."""
    config: Mapping[str, JsonValue] = field(default_factory=dict)
    """What the source says of the encoder, by transformers' names; empty where it says nothing."""
    made_for: str = ""
    """What the source calls its backbone."""
    software: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    """What else the source says about its making."""
