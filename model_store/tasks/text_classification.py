"""Text classification: one text or a pair of texts to labels with scores, as Hugging Face's pipeline answers.

Differences from the pipeline, on purpose: without `top_k` all labels are returned, as the hosted Inference API
does; a pair task encodes a pair also where the second text is empty.
It refuses to know devices, prompts and the wire; a row's logits come as numpy.

Shape letters: C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from prefixbank.model_store.tasks.features import Features, Text, Truncation, Words
from prefixbank.model_store.tasks.request import RequestInputs, RequestParameters, parse_parameters, wrong_inputs
from prefixbank.model_store.tasks.rows import pooled_row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks.features import TaskInput
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer

Answer = list[dict[str, Any]]


class TextClassificationParameters(RequestParameters):
    """The pipeline's parameters."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """How many labels, best first; all when absent."""
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """From logits to scores: when absent, sigmoid for a single label and softmax for several."""


class TextClassification:
    """The family's functions; no state."""

    is_token_level = False

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Classes C of the head."""
        return len(labels)

    def parse_parameters(self, parameters: Mapping[str, object]) -> TextClassificationParameters:
        """Validated parameters, or InvalidRequest."""
        return parse_parameters(TextClassificationParameters, parameters)

    def parse_inputs(self, inputs: object, prep: Preprocessing, parameters: RequestParameters) -> RequestInputs[Text]:
        """The texts or pairs of a request's `inputs`.

        A pair is `{"text", "text_pair"}` or a list of two strings; a list of anything else is a batch.
        """
        if isinstance(inputs, list) and not (prep.pair and _is_pair_of_strings(inputs)):
            return RequestInputs(tuple(_one(item, pair=prep.pair) for item in inputs), batched=True)
        return RequestInputs((_one(inputs, pair=prep.pair),), batched=False)

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
        text = self.checked(item, prep)
        return pooled_row(tokenizer, prep, text, max_tokens=max_tokens, truncation=truncation)

    def checked(self, item: TaskInput, prep: Preprocessing) -> Text:
        """The input as the one text or the pair that the task takes, or InvalidRequest."""
        if isinstance(item, Words) or (item.text_pair is not None) != prep.pair:
            raise wrong_inputs(list(item), _wanted(pair=prep.pair))
        return item

    def encode_rows(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: TaskInput,
        parameters: RequestParameters,
        *,
        max_tokens: int,
    ) -> tuple[Features, ...]:
        """The rows of one input as a request asks for them: always one."""
        truncation = parameters.when_too_long
        return (self.encode(tokenizer, prep, item, max_tokens=max_tokens, truncation=truncation),)

    def decode(
        self,
        logits: Sequence[NDArray[np.float32]],
        rows: Sequence[Features],
        labels: Sequence[str],
        parameters: RequestParameters,
    ) -> Answer:
        """Labels with scores, best first, from the one row's logits [C]."""
        assert isinstance(parameters, TextClassificationParameters)
        scores = _scores(logits[0], parameters.function_to_apply)
        best = np.argsort(-scores, kind="stable")[: parameters.top_k]
        return [{"label": labels[c], "score": float(scores[c])} for c in best]

    def arrange(self, answers: list[Answer], parameters: RequestParameters, *, batched: bool) -> list[Answer]:
        """A list per input, also where there is one: that is what Hugging Face's clients unpack."""
        return answers


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis, as Hugging Face's pipelines compute it."""
    shifted: NDArray[np.float32] = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _scores(logits_C: NDArray[np.float32], function: str | None) -> NDArray[np.float32]:
    function = function or ("sigmoid" if len(logits_C) == 1 else "softmax")
    if function == "softmax":
        return softmax(logits_C)
    return np.asarray(np.exp(-np.logaddexp(0, -logits_C))) if function == "sigmoid" else logits_C


def _one(item: object, *, pair: bool) -> Text:
    if isinstance(item, str) and not pair:
        return Text(item)
    if isinstance(item, list) and pair and _is_pair_of_strings(item):
        return Text(item[0], item[1])
    keys = ["text", "text_pair"] if pair else ["text"]
    if isinstance(item, dict) and sorted(item) == keys and all(isinstance(text, str) for text in item.values()):
        return Text(item["text"], item.get("text_pair"))
    raise wrong_inputs(item, _wanted(pair=pair))


def _is_pair_of_strings(items: list[object]) -> bool:
    return len(items) == 2 and all(isinstance(item, str) for item in items)


def _wanted(*, pair: bool) -> str:
    if pair:
        return 'two texts, {"text": "...", "text_pair": "..."} or ["...", "..."], or a list of such pairs'
    return "one text or a list of texts: this task takes no pair"
