"""TaskPrompt: one trained task as an immutable value.

A prefix for any subset of the backbone's layers or vectors before its first one, a small head, the labels, how
inputs are prepared, where it came from, and the fingerprint of the one backbone it fits. It refuses to know files,
stores and devices.

Shape letters: L layers, N prompted layers, H heads, P prompt tokens, D head dim, M model width, C classes.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


MAX_LABELS = 65_536
MAX_ANSWERING_TOKENS = 65_536
MAX_ANSWER_TOKENS = 512
MAX_BEST = 100
"""Keeps the ranking of a long text's answers to milliseconds."""
MAX_SEPARATOR_CHARS = 100
MAX_TEMPLATE_CHARS = 10_000
MAX_WORD_TOKENS = 64
MAX_TOKEN_ID = (1 << 31) - 1

_SHA256 = r"^[0-9a-f]{64}$"
_PLACEHOLDER = re.compile(r"(\{text\}|\{text_pair\}|\{mask\})")


def _is_none(value: object) -> bool:
    return value is None


def _is_text(value: object) -> bool:
    return value == "text"


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskFamily(enum.StrEnum):
    """What a task answers; the values are the Hugging Face pipeline tags, or in their manner."""

    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"
    MULTIPLE_CHOICE = "multiple-choice"
    SEMANTIC_ROLES = "semantic-role-labeling"


class Pooler(enum.StrEnum):
    """What stands between the hidden states and the classifier of a head."""

    NONE = "none"
    """The classifier reads the hidden states: every token, or the first one of a pooled family."""
    BACKBONE = "backbone"
    """The backbone's own frozen pooler (BERT)."""
    OWN = "own"
    """A dense layer and activation that travel with the prompt (RoBERTa, DeBERTa, adapters heads)."""
    LM = "lm"
    """The backbone's own frozen transform before its vocabulary; only verbalizer heads read through it."""


class HeadSpec(_Spec):
    """The form of a head: `classifier(pooler(h))`."""

    pooler: Pooler
    activation: Literal["tanh", "gelu"] | None = None
    """Activation of an own pooler; None otherwise."""
    lm_digest: Annotated[str | None, Field(pattern=_SHA256, exclude_if=_is_none)] = None
    """SHA-256 over the tensors of the transform that an LM pooler stands for; None otherwise."""
    pools: Annotated[Literal["text", "prompt"], Field(exclude_if=_is_text)] = "text"
    """Whose first token a pooled head reads: the text's ([CLS]), or the shallow prompt's, as PEFT does."""


class AnsweringSpec(_Spec):
    """How a question-answering task cuts its texts and ranks its answers. The defaults are the published ones."""

    stride: Annotated[int, Field(ge=0, le=MAX_ANSWERING_TOKENS)] = 128
    """Tokens shared between neighbouring windows of a long text."""
    max_question_tokens: Annotated[int, Field(ge=1, le=MAX_ANSWERING_TOKENS)] = 64
    max_answer_tokens: Annotated[int, Field(ge=1, le=MAX_ANSWER_TOKENS)] = 30
    num_best: Annotated[int, Field(ge=1, le=MAX_BEST)] = 20
    """Spans that share the probability."""
    null_threshold: float | None = None
    """How far the null answer must beat the best span; None where every question has an answer."""


class RolesSpec(_Spec):
    """How a semantic-role task marks its predicate."""

    separator: Annotated[str, Field(min_length=1, max_length=MAX_SEPARATOR_CHARS)] = "[SEP]"
    """The word that stands between the sentence and its verb."""


class VerbalizerSpec(_Spec):
    """A cloze: the text in a template with masks, and the words that speak for the labels."""

    template: Annotated[str, Field(max_length=MAX_TEMPLATE_CHARS)]
    """Text with `{text}`, `{text_pair}` for tasks of two texts, and `{mask}`, each once."""
    words: Annotated[tuple[str, ...], Field(max_length=MAX_LABELS)]
    """One per label, in the labels' order, for people."""
    token_ids: Annotated[
        tuple[
            Annotated[
                tuple[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)], ...],
                Field(min_length=1, max_length=MAX_WORD_TOKENS),
            ],
            ...,
        ],
        Field(max_length=MAX_LABELS),
    ]
    """The tokens of each label's word, in the labels' order."""

    @property
    def outputs(self) -> tuple[int, ...]:
        """Distinct token ids in order of first appearance: the C rows of the head's weight."""
        return tuple(dict.fromkeys(token for tokens in self.token_ids for token in tokens))

    @property
    def num_masks(self) -> int:
        """Mask tokens in the row: as many as the longest word has."""
        return max(len(tokens) for tokens in self.token_ids)

    @property
    def pieces(self) -> tuple[str, ...]:
        """The template in order, cut into its placeholders and the literal text around them; no piece is empty."""
        return tuple(piece for piece in _PLACEHOLDER.split(self.template) if piece)


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
    answering: Annotated[AnsweringSpec | None, Field(exclude_if=_is_none)] = None
    """Only for question answering; its defaults when absent."""
    roles: Annotated[RolesSpec | None, Field(exclude_if=_is_none)] = None
    """Only for semantic roles; its defaults when absent."""
    verbalizer: Annotated[VerbalizerSpec | None, Field(exclude_if=_is_none)] = None
    """Only for text classification: the head scores words at masks. Absent for a classifier of labels."""


class BackboneRef(_Spec):
    """The one backbone a prompt fits."""

    fingerprint: Annotated[str, Field(pattern=_SHA256)]
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
    """The N prompted layers, ascending; empty for a shallow prompt and for a task that is a head alone."""
    kv_N2HPD: Tensor
    """Post-projection keys (index 0) and values (index 1) of the prompted layers, in layer order."""
    position_offset: int
    """Added to the position of every real token: P as published and in PEFT, 0 in adapters and GLM."""
    head: Head
    preprocessing: Preprocessing
    backbone: BackboneRef
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    shallow_PM: Tensor | None = None
    """A shallow prompt: vectors in the place of word embeddings, in front of the row. It excludes prompted layers."""

    @property
    def prefix_length(self) -> int:
        """Prefix tokens P of each prompted layer."""
        return self.kv_N2HPD.shape[3]

    @property
    def shallow_length(self) -> int:
        """Vectors P of a shallow prompt; 0 without one."""
        return 0 if self.shallow_PM is None else self.shallow_PM.shape[0]
