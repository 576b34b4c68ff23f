"""One module per task family: text -> features, logits -> answer. Trainer and server share them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from prefixbank.model_store.task_prompt import AnsweringSpec, RolesSpec, TaskFamily
from prefixbank.model_store.tasks.multiple_choice import MultipleChoice
from prefixbank.model_store.tasks.question_answering import QuestionAnswering
from prefixbank.model_store.tasks.semantic_roles import SemanticRoles
from prefixbank.model_store.tasks.text_classification import TextClassification
from prefixbank.model_store.tasks.token_classification import TokenClassification
from prefixbank.model_store.tasks.verbalizer import Verbalizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.model_store.tasks.request import RequestInputs, RequestParameters
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer


class TaskModule(Protocol):
    """What a family does with the settings of one task; without state."""

    @property
    def is_token_level(self) -> bool:
        """A row's logits are [K, C], one set of outputs per position that the head reads; otherwise [C]."""

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Outputs C of the head."""

    def parse_parameters(self, parameters: Mapping[str, object]) -> RequestParameters:
        """Validated parameters, or InvalidRequest."""

    def parse_inputs(self, inputs: object, prep: Preprocessing, parameters: RequestParameters) -> RequestInputs[Any]:
        """The inputs of a request, or InvalidRequest."""

    def encode_rows(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: Any,
        parameters: RequestParameters,
        *,
        max_tokens: int,
    ) -> tuple[Features, ...]:
        """The rows of one of the family's own inputs as a request's parameters ask for them, or InputTooLong."""

    def decode(
        self,
        logits: Sequence[NDArray[np.float32]],
        rows: Sequence[Features],
        labels: Sequence[str],
        parameters: RequestParameters,
    ) -> list[dict[str, Any]]:
        """The answer for one input from the logits of its rows: [C] each, or [K, C] where token-level."""

    def arrange(self, answers: list[list[dict[str, Any]]], parameters: RequestParameters, *, batched: bool) -> Any:
        """The JSON of a request from the answers of its inputs, as the family's clients unpack it."""


def task_module(family: TaskFamily, prep: Preprocessing) -> TaskModule:
    """The functions of a task: its family's, with the settings that its preprocessing names."""
    match family:
        case TaskFamily.TEXT_CLASSIFICATION:
            return TextClassification() if prep.verbalizer is None else Verbalizer(prep.verbalizer)
        case TaskFamily.TOKEN_CLASSIFICATION:
            return TokenClassification()
        case TaskFamily.QUESTION_ANSWERING:
            return QuestionAnswering(**task_settings(family, prep))
        case TaskFamily.MULTIPLE_CHOICE:
            return MultipleChoice()
        case TaskFamily.SEMANTIC_ROLES:
            return SemanticRoles(**task_settings(family, prep))


def task_settings(family: TaskFamily, prep: Preprocessing) -> dict[str, Any]:
    """The settings of a task that only its family has, defaults spelled out."""
    match family:
        case TaskFamily.QUESTION_ANSWERING:
            return (prep.answering or AnsweringSpec()).model_dump()
        case TaskFamily.SEMANTIC_ROLES:
            return (prep.roles or RolesSpec()).model_dump()
        case TaskFamily.TEXT_CLASSIFICATION if prep.verbalizer is not None:
            return {"template": prep.verbalizer.template, "words": prep.verbalizer.words}
        case _:
            return {}


def read_positions(module: TaskModule, row: Features) -> NDArray[np.int64]:
    """The K positions of a row whose states the head reads, [K]; text tokens are counted, virtual ones are not."""
    if row.reads is not None:
        return row.reads
    return np.arange(row.num_tokens if module.is_token_level else 1, dtype=np.int64)
