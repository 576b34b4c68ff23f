"""TaskPrompt: one trained task as an immutable value.

A prefix for any subset of the backbone's layers, a small head, the labels, how inputs are prepared, where it
came from, and the fingerprint of the one backbone it fits. It refuses to know files, stores and devices.

Shape letters: L layers, N prompted layers, H heads, P prefix tokens, D head dim, M model width, C classes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskFamily(enum.StrEnum):
    """What a task answers; the values are the Hugging Face pipeline tags."""

    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"
    MULTIPLE_CHOICE = "multiple-choice"


class Pooler(enum.StrEnum):
    """What stands between the hidden states and the classifier of a head."""

    NONE = "none"
    """The classifier reads the hidden states: every token, or the first one of a pooled family."""
    BACKBONE = "backbone"
    """The backbone's own frozen pooler (BERT)."""
    OWN = "own"
    """A dense layer and activation that travel with the prompt (RoBERTa, DeBERTa, adapters heads)."""


class HeadSpec(_Spec):
    """The form of a head: `classifier(pooler(h))`."""

    pooler: Pooler
    activation: Literal["tanh", "gelu"] | None = None
    """Activation of an own pooler; None otherwise."""


class Preprocessing(_Spec):
    """How an input becomes token ids. Trainer and server apply the same."""

    max_tokens: Annotated[int, Field(ge=1)]
    """Longest row in tokens, special tokens included, prefix excluded."""
    pair: bool = False
    """The task takes two texts."""
    truncation_side: Literal["right", "left"] = "right"
    add_prefix_space: bool = False
    """Byte-level BPE: treat the first word of each text as if a space preceded it."""
    text_fields: tuple[str, ...] = ("text",)
    """Names of the input columns in the training data, first text first."""


class BackboneRef(_Spec):
    """The one backbone a prompt fits."""

    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    architecture: str
    name: str = ""
    """For people: where the trainer loaded it from."""
    num_layers: Annotated[int, Field(ge=1)]
    num_heads: Annotated[int, Field(ge=1)]
    head_dim: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]


class Provenance(_Spec):
    """Who made the prompt, from what, with which settings."""

    source: str = "prefixbank"
    """The format it was trained in or imported from."""
    created: str = ""
    """ISO 8601 time, UTC."""
    software: dict[str, str] = Field(default_factory=dict)
    """Package name to version."""
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    """Every fact the training run depended on."""
    notes: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """The tensors of a head, fp32.

    `weight_CM`, `bias_C` are the classifier; `pooler_weight_MM`, `pooler_bias_M` belong to an own pooler.
    """

    spec: HeadSpec
    weight_CM: Tensor
    bias_C: Tensor
    pooler_weight_MM: Tensor | None = None
    pooler_bias_M: Tensor | None = None


@dataclass(frozen=True, eq=False, slots=True)
class TaskPrompt:
    """One trained task. Build it through `artifact.read`, a trainer or an importer: they validate."""

    family: TaskFamily
    labels: tuple[str, ...]
    """Label of class c at index c."""
    layers: tuple[int, ...]
    """The N prompted layers, ascending; empty for a task that is a head alone."""
    kv_N2HPD: Tensor
    """Post-projection keys (index 0) and values (index 1) of the prompted layers, in layer order."""
    position_offset: int
    """Added to the position of every real token: P as published and in PEFT, 0 in adapters and GLM."""
    head: Head
    preprocessing: Preprocessing
    backbone: BackboneRef
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def prefix_length(self) -> int:
        """Prefix tokens P of each prompted layer."""
        return self.kv_N2HPD.shape[3]
