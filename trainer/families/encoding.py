"""Examples to rows, as the server makes them of a request that allows its input to be cut.

It refuses to know targets and families' own inputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.errors import InvalidData, RequestError
from prefixbank.model_store.tasks.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks import TaskModule
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.trainer.families.family import Item


class RowEncoder:
    """The rows of a task's inputs.

    Args:
        task: how inputs become rows.
        tokenizer: as loaded beside the backbone.
        prep: what the artifact will store.
    """

    def __init__(self, task: TaskModule, tokenizer: Tokenizer, prep: Preprocessing) -> None:
        self.task = task
        self.tokenizer = TextTokenizer(tokenizer)
        self.prep = prep
        self.parameters = task.parse_parameters({"truncation": True})

    def rows(self, item: Any, where: str) -> tuple[Features, ...]:
        """The rows of one of the family's own inputs, which stands at `where`.

        Raises:
            InvalidData: it does not fit, however much is cut.
        """
        limit = self.prep.max_tokens
        try:
            return self.task.encode_rows(self.tokenizer, self.prep, item, self.parameters, max_tokens=limit)
        except RequestError as error:
            raise InvalidData(f"{where}: {error}") from error


def to_learn_from(item: Item) -> Item:
    """The item without the way back to its texts, which only evaluation needs: it takes most of the memory."""
    return item._replace(rows=tuple(replace(row, alignment=None) for row in item.rows))
