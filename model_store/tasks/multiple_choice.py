"""Multiple choice: one premise, several continuations, a probability for each.

Each choice is a row of its own: the pair of the premise with its connector and the choice, as P-tuning v2 encodes COPA
(Roemmele et al., 2011): `premise because` for a cause, `premise so` for an effect. The head gives one score per row;
the softmax is over the choices of one premise.
It refuses to know devices, prompts and the wire; a row's logits come as numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from prefixbank.model_store.tasks.features import Features, Text, Truncation
from prefixbank.model_store.tasks.request import RequestInputs, RequestParameters, parse_parameters, wrong_inputs
from prefixbank.model_store.tasks.rows import pooled_row
from prefixbank.model_store.tasks.text_classification import softmax

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer

Answer = list[dict[str, Any]]

LABELS = ("score",)
"""The one output of the head."""
CONNECTORS = {"cause": "because", "effect": "so"}
"""COPA's questions, and the words that ask them."""
MAX_CHOICES = 64
"""Rows that one premise may become."""


class MultipleChoiceParameters(RequestParameters):
    """What a request may ask for."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """How many choices, best first; all when absent."""


class Choices(NamedTuple):
    """A premise and what may follow it."""

    premise: str
    choices: tuple[str, ...]
    connector: str = ""
    """Stands between premise and choice, after a blank."""

    @property
    def pairs(self) -> tuple[Text, ...]:
        """What is encoded, a pair per choice."""
        first = f"{self.premise} {self.connector}" if self.connector else self.premise
        return tuple(Text(first, choice) for choice in self.choices)

    @property
    def num_characters(self) -> int:
        """How long its pairs are."""
        return sum(pair.num_characters for pair in self.pairs)

    @property
    def num_repeated_characters(self) -> int:
        """The premise stands in every row."""
        return (len(self.choices) - 1) * (len(self.pairs[0].text) + 1)


@dataclass(frozen=True, eq=False, slots=True)
class ChoiceFeatures(Features):
    """The row of one choice, which its answer repeats."""

    choice: str = ""


class MultipleChoice:
    """The family's functions; no state."""

    is_token_level = False

    def num_outputs(self, labels: Sequence[str]) -> int:
        """One score per row."""
        return len(LABELS)

    def parse_parameters(self, parameters: Mapping[str, object]) -> MultipleChoiceParameters:
        """Validated parameters, or InvalidRequest."""
        return parse_parameters(MultipleChoiceParameters, parameters)

    def parse_inputs(
        self, inputs: object, prep: Preprocessing, parameters: RequestParameters
    ) -> RequestInputs[Choices]:
        """The premises of a request: `{"premise", "choices"}`, with `question` where a connector shall stand between.

        `question` is one of CONNECTORS, or absent.
        """
        if isinstance(inputs, list):
            return RequestInputs(tuple(map(_choices, inputs)), batched=True)
        return RequestInputs((_choices(inputs),), batched=False)

    def encode(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: Choices,
        *,
        max_tokens: int,
        truncation: Truncation = Truncation.REFUSE,
    ) -> tuple[ChoiceFeatures, ...]:
        """A row per choice, in order. Trainer and server use the same."""
        rows = [pooled_row(tokenizer, prep, pair, max_tokens=max_tokens, truncation=truncation) for pair in item.pairs]
        return tuple(
            ChoiceFeatures(row.token_ids, row.type_ids, row.truncated, choice=choice)
            for row, choice in zip(rows, item.choices, strict=True)
        )

    def encode_rows(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: Choices,
        parameters: RequestParameters,
        *,
        max_tokens: int,
    ) -> tuple[ChoiceFeatures, ...]:
        """The rows of one premise as a request asks for them."""
        return self.encode(tokenizer, prep, item, max_tokens=max_tokens, truncation=parameters.when_too_long)

    def decode(
        self,
        logits: Sequence[NDArray[np.float32]],
        rows: Sequence[Features],
        labels: Sequence[str],
        parameters: RequestParameters,
    ) -> Answer:
        """The choices of one premise with their probability, best first, from one logit [1] each."""
        assert isinstance(parameters, MultipleChoiceParameters)
        scores = choice_scores(logits)
        best = np.argsort(-scores, kind="stable")[: parameters.top_k]
        return [{"label": _choice_of(rows[i]), "index": int(i), "score": float(scores[i])} for i in best]

    def arrange(self, answers: list[Answer], parameters: RequestParameters, *, batched: bool) -> list[Answer] | Answer:
        """A list of choices per premise of a batch; the bare list of a single one."""
        return answers if batched else answers[0]


def choice_scores(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Probability of each choice of one premise from its rows' logits [1]."""
    return softmax(np.concatenate(logits))


def _choice_of(row: Features) -> str:
    assert isinstance(row, ChoiceFeatures), "a row without its choice. This is a bug."
    return row.choice


def _choices(item: object) -> Choices:
    if isinstance(item, dict) and {"premise", "choices"} <= set(item) <= {"premise", "choices", "question"}:
        premise, choices, question = item["premise"], item["choices"], item.get("question")
        texts = [premise, *choices] if isinstance(choices, list) and 2 <= len(choices) <= MAX_CHOICES else [None]
        if all(isinstance(text, str) and text.strip() for text in texts) and (question is None or _asks(question)):
            return Choices(premise, tuple(choices), CONNECTORS[question] if question else "")
    questions = " or ".join(f'"{question}"' for question in CONNECTORS)
    wanted = f'{{"premise": "...", "choices": [2 to {MAX_CHOICES} texts]}}, "question": {questions} if any, or a list'
    raise wrong_inputs(item, wanted)


def _asks(question: object) -> bool:
    return isinstance(question, str) and question in CONNECTORS
