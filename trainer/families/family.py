"""Families of tasks as the trainer sees them: what a row must answer, how wrong an answer is, how answers are scored.

It refuses to know files, recipes and how logits are computed.

Shape letters: T tokens of a row, K positions of a row whose logits are read, C outputs of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks import TaskModule
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.trainer.readers.examples import Example

Logits: TypeAlias = Sequence[Sequence[NDArray[np.float32]]]
"""By item, then by its rows: [C] each, or [K, C] where the head reads several positions."""


class Item(NamedTuple):
    """The unit of order, batch and evaluation: rows that are answered together."""

    rows: tuple[Features, ...]
    """One; the choices of a premise; for questions one window to learn from, or all of them to evaluate."""
    targets: NDArray[np.int64]
    """What the rows should answer; its shape and meaning are the family's own."""
    example: Example

    @property
    def num_tokens(self) -> int:
        """Of all rows together."""
        return sum(row.num_tokens for row in self.rows)

    @property
    def truncated(self) -> bool:
        """Some of the example is in no row."""
        return any(row.truncated for row in self.rows)


@dataclass(frozen=True, slots=True)
class Scores:
    """One split's result."""

    metrics: dict[str, float]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    """Low and high end of 95 %, by bootstrap over what is drawn independently."""
    details: dict[str, Any] = field(default_factory=dict)
    """JSON values: "labels" and "confusion", or "by_type"; "calibration"; "mistakes"."""


class Family(Protocol):
    """What a family of tasks is to the trainer. Implementations are frozen dataclasses."""

    @property
    def task(self) -> TaskModule:
        """Encodes and decodes, here and on the server."""

    @property
    def metric(self) -> str:
        """The metric an epoch is chosen by, one of `metrics`."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of `score`, the loss among them."""

    def labels(self, examples: Sequence[Example], fixed: tuple[str, ...] | None) -> tuple[str, ...]:
        """The labels of a task, from its training examples, or as the recipe fixes them.

        Raises:
            TrainingError: there is nothing to tell apart.
        """

    def preprocessing(self, labels: Sequence[str]) -> Preprocessing:
        """How inputs become rows; what the artifact stores, so that the server does the same."""

    def items(
        self,
        examples: Sequence[Example],
        labels: Sequence[str],
        tokenizer: Tokenizer,
        prep: Preprocessing,
        *,
        training: bool,
    ) -> list[Item]:
        """Rows and targets of examples, exactly as the server makes rows of a request; what is too long is cut.

        Raises:
            InvalidData: an example has a label that is not among `labels`.
        """

    def loss(self, logits_KC: Tensor, items: Sequence[Item]) -> Tensor:
        """Mean loss, a scalar; its logits are those of all read positions of all rows of all items, in order."""

    def tuned(self, logits: Logits, items: Sequence[Item]) -> Self:
        """With what is chosen on validation rows after training, such as a threshold; most have nothing to choose."""

    def score(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        """Metrics of logits, wherever they were computed."""

    def score_in_full(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        """Metrics with intervals and details, for a report."""

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        """How often each label, or whatever the targets tell apart, occurs."""


def mean_loss(family: Family, logits: Logits, items: Sequence[Item]) -> float:
    """The family's loss of logits as arrays, in double precision."""
    parts = [torch.from_numpy(np.atleast_2d(one)) for rows in logits for one in rows]
    return float(family.loss(torch.cat(parts).double(), items))
