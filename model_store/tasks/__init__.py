"""One module per task family: text -> features, logits -> answer. Trainer and server share them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from prefixbank.model_store.errors import UnsupportedFamily
from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.model_store.tasks.features import Truncation
from prefixbank.model_store.tasks.text_classification import TextClassification
from prefixbank.model_store.tasks.token_classification import TokenClassification

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks.features import Features, TaskInput
    from prefixbank.model_store.tasks.request import RequestInputs, RequestParameters
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer


class TaskModule(Protocol):
    """What a family does, without state."""

    @property
    def is_token_level(self) -> bool:
        """Logits come as one row of classes per token; otherwise one per input row."""

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Classes C of the head."""

    def parse_parameters(self, parameters: Mapping[str, object]) -> RequestParameters:
        """Validated parameters, or InvalidRequest."""

    def parse_inputs(self, inputs: object, prep: Preprocessing, parameters: RequestParameters) -> RequestInputs:
        """The inputs of a request, or InvalidRequest."""

    def encode(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: TaskInput,
        *,
        max_tokens: int,
        truncation: Truncation = Truncation.REFUSE,
    ) -> Features:
        """One input as one row, or InputTooLong."""

    def encode_rows(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: TaskInput,
        parameters: RequestParameters,
        *,
        max_tokens: int,
    ) -> tuple[Features, ...]:
        """The rows of one input as a request's parameters ask for them."""

    def decode(
        self,
        logits: Sequence[NDArray[np.float32]],
        rows: Sequence[Features],
        labels: Sequence[str],
        parameters: RequestParameters,
    ) -> list[dict[str, Any]]:
        """The answer for one input from the logits of its rows: [C] each, or [T, C] where token-level."""


_FAMILIES: dict[TaskFamily, TaskModule] = {
    TaskFamily.TEXT_CLASSIFICATION: TextClassification(),
    TaskFamily.TOKEN_CLASSIFICATION: TokenClassification(),
}


def family_of(family: TaskFamily) -> TaskModule:
    """The functions of a family, or UnsupportedFamily."""
    if family not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise UnsupportedFamily(f"task family: found {family}, this version serves {known}")
    return _FAMILIES[family]
