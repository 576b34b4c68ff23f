"""Token classification: a text to labelled tokens or entities, as Hugging Face's pipeline answers.

The first token of a word carries its label, in training and in evaluation. A request that names no
`aggregation_strategy` therefore gets `word` (see `entities.py`), which reads exactly those tokens: entities have
the shape of the Inference API's `simple`, and a word is never torn.
It refuses to know devices, prompts and the wire; a row's logits come as numpy.

Shape letters: T tokens of the row, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from prefixbank.model_store.tasks.entities import Strategy, entities_of, without_overlaps
from prefixbank.model_store.tasks.features import Features, Text, Truncation, Words, alignment_of
from prefixbank.model_store.tasks.request import RequestInputs, RequestParameters, parse_parameters, wrong_inputs
from prefixbank.model_store.tasks.rows import aligned_row, aligned_windows
from prefixbank.model_store.tasks.spans import OUTSIDE
from prefixbank.model_store.tasks.text_classification import softmax

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks.features import TaskInput
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer

Answer = list[dict[str, Any]]

NO_TARGET = -100
"""Target of tokens that no label belongs to; torch's cross entropy leaves them out."""


class TokenClassificationParameters(RequestParameters):
    """The pipeline's parameters."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max", "word"] | None = None
    """How tokens become entities; `word` when absent."""
    ignore_labels: list[str] | None = None
    """Labels left out of the answer; ["O"] when absent."""
    stride: Annotated[int, Field(ge=0)] | None = None
    """Take a long text whole, in windows that share this many tokens."""
    is_split_into_words: bool | None = None
    """The input is a list of words."""
    delimiter: str | None = None
    """Between words in the text that `start` and `end` refer to; a space when absent."""

    @model_validator(mode="after")
    def _agree(self) -> TokenClassificationParameters:
        if self.stride is not None and self.aggregation_strategy == "none":
            raise ValueError("stride needs an aggregation_strategy other than none")
        if self.stride is not None and self.truncation:
            raise ValueError("stride takes the whole text, truncation cuts it: wanted one of them")
        if self.delimiter is not None and not self.is_split_into_words:
            raise ValueError("delimiter needs is_split_into_words")
        return self

    @property
    def strategy(self) -> Strategy:
        """The strategy asked for, or the default."""
        return Strategy(self.aggregation_strategy or Strategy.WORD)

    @property
    def ignored(self) -> frozenset[str]:
        """Labels left out of the answer."""
        return frozenset(["O"] if self.ignore_labels is None else self.ignore_labels)


class TokenClassification:
    """The family's functions; no state."""

    is_token_level = True

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Classes C of the head."""
        return len(labels)

    def parse_parameters(self, parameters: Mapping[str, object]) -> TokenClassificationParameters:
        """Validated parameters, or InvalidRequest."""
        return parse_parameters(TokenClassificationParameters, parameters)

    def parse_inputs(
        self, inputs: object, prep: Preprocessing, parameters: RequestParameters
    ) -> RequestInputs[TaskInput]:
        """The texts of a request's `inputs`: a string or a list of strings, or words where it says so."""
        assert isinstance(parameters, TokenClassificationParameters)
        if parameters.is_split_into_words:
            return _parse_words(inputs, " " if parameters.delimiter is None else parameters.delimiter)
        if isinstance(inputs, list):
            return RequestInputs(tuple(_text(item) for item in inputs), batched=True)
        return RequestInputs((_text(inputs),), batched=False)

    def encode(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: TaskInput,
        *,
        max_tokens: int,
        truncation: Truncation = Truncation.REFUSE,
    ) -> Features:
        """One input as one row. Trainer and server use the same."""
        _refuse_pair(item)
        return aligned_row(tokenizer, prep, item, max_tokens=max_tokens, truncation=truncation)

    def encode_rows(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: TaskInput,
        parameters: RequestParameters,
        *,
        max_tokens: int,
    ) -> tuple[Features, ...]:
        """The rows of one input as a request asks for them: windows of a long text where it names a stride."""
        assert isinstance(parameters, TokenClassificationParameters)
        _refuse_pair(item)
        if parameters.stride is not None:
            return aligned_windows(tokenizer, prep, item, max_tokens=max_tokens, stride=parameters.stride)
        truncation = parameters.when_too_long
        return (self.encode(tokenizer, prep, item, max_tokens=max_tokens, truncation=truncation),)

    def decode(
        self,
        logits: Sequence[NDArray[np.float32]],
        rows: Sequence[Features],
        labels: Sequence[str],
        parameters: RequestParameters,
    ) -> Answer:
        """The entities of one input from the logits [T, C] of its rows."""
        assert isinstance(parameters, TokenClassificationParameters)
        strategy, ignored = parameters.strategy, parameters.ignored
        entities = [
            entity
            for logits_TC, row in zip(logits, rows, strict=True)
            for entity in entities_of(softmax(logits_TC), row.token_ids, alignment_of(row), labels, strategy, ignored)
        ]
        return without_overlaps(entities) if len(rows) > 1 else entities

    def arrange(self, answers: list[Answer], parameters: RequestParameters, *, batched: bool) -> list[Answer] | Answer:
        """A list per input of a batch; the bare entities of a single one."""
        return answers if batched else answers[0]


def first_token_targets(features: Features, word_classes: Sequence[int]) -> NDArray[np.int64]:
    """Training targets [T]: each word's class at its first token, NO_TARGET elsewhere."""
    alignment = alignment_of(features)
    targets_T = np.full(features.num_tokens, NO_TARGET, dtype=np.int64)
    for t in alignment.first_tokens:
        word = alignment.word_ids[t]
        assert word is not None
        targets_T[t] = word_classes[word]
    return targets_T


def word_tags(
    logits_TC: NDArray[np.float32], features: Features, labels: Sequence[str]
) -> tuple[list[str], list[float]]:
    """The tag of each word, read at its first token, and its probability.

    A word without a token carries on the span that goes on behind it, as entities do in answers; else it is outside.
    """
    alignment, scores_TC = alignment_of(features), softmax(logits_TC)
    best_T, score_T = scores_TC.argmax(-1).tolist(), scores_TC.max(-1).tolist()
    tags, scores = [OUTSIDE] * alignment.num_words, [0.0] * alignment.num_words
    before = 0
    for t in alignment.first_tokens:
        word = alignment.word_ids[t]
        assert word is not None
        tags[word], scores[word] = labels[best_T[t]], score_T[t]
        if tags[word].startswith("I-") and tags[before][2:] == tags[word][2:]:
            for between in range(before + 1, word):
                tags[between], scores[between] = tags[word], scores[word]
        before = word
    return tags, scores


def _parse_words(inputs: object, delimiter: str) -> RequestInputs[Words]:
    if isinstance(inputs, list) and inputs and all(isinstance(item, list) for item in inputs):
        return RequestInputs(tuple(_words(item, delimiter) for item in inputs), batched=True)
    return RequestInputs((_words(inputs, delimiter),), batched=False)


def _words(item: object, delimiter: str) -> Words:
    if isinstance(item, list) and all(isinstance(word, str) for word in item):
        return Words(tuple(item), delimiter)
    raise wrong_inputs(item, "a list of words, or a list of such lists")


def _text(item: object) -> Text:
    if isinstance(item, str):
        return Text(item)
    raise wrong_inputs(item, "one text or a list of texts")


def _refuse_pair(item: TaskInput) -> None:
    if isinstance(item, Text) and item.text_pair is not None:
        raise wrong_inputs(list(item), "one text: this task takes no pair")
