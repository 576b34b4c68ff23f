"""A question about a text, and its windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.features import Text
from prefixbank.model_store.tasks.question_answering import QuestionAnswering
from tests.tiny import SENTENCES

if TYPE_CHECKING:
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer

FAMILY = QuestionAnswering()
QUESTION = "where did Maria Lopez fly from?"
CONTEXT = " ".join(SENTENCES)


def windows(tokenizer: TextTokenizer, context: str = CONTEXT, max_tokens: int = 40, **asked: Any) -> list[Features]:
    prep, parameters = Preprocessing(max_tokens=max_tokens, pair=True), FAMILY.parse_parameters(asked)
    return list(FAMILY.encode_rows(tokenizer, prep, Text(QUESTION, context), parameters, max_tokens=max_tokens))
