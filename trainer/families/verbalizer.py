"""Texts and pairs to labels by words at masks: cross entropy over the labels' scores.

It refuses to know recipes and how logits are computed.

Shape letters: R rows, N masks of a row, C outputs of the head (distinct tokens of all words), L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from prefixbank.model_store.errors import InvalidData, InvalidRecipe, VerbalizerMismatch
from prefixbank.model_store.task_prompt import Preprocessing, VerbalizerSpec
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.model_store.tasks.verbalizer import Verbalizer, verbalizer_spec
from prefixbank.trainer.families import labelled
from prefixbank.trainer.families.classification import label_loss, text_items
from prefixbank.trainer.families.encoding import RowEncoder
from prefixbank.trainer.families.family import Item, Scores, mean_loss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor

    from prefixbank.trainer.families.family import Logits
    from prefixbank.trainer.readers.examples import Example


@dataclass(frozen=True, slots=True)
class VerbalizedLabels:
    """Sentences and pairs to labels that stand for words."""

    max_tokens: int
    names: tuple[str, ...]
    """The labels, in the order of the verbalizer's words."""
    spec: VerbalizerSpec
    text_fields: tuple[str, ...] = ("text",)
    metric: str = "accuracy"
    num_mistakes: int = 0

    @property
    def task(self) -> Verbalizer:
        return Verbalizer(self.spec)

    @property
    def metrics(self) -> tuple[str, ...]:
        return labelled.NAMES

    def labels(self, examples: Sequence[Example], fixed: tuple[str, ...] | None) -> tuple[str, ...]:
        """The labels that have words; an example of another is refused by its place."""
        labelled.check_metric(self.metric, self.names)
        for example in map(labelled.text_of, examples):
            if example.label not in self.names:
                named = ", ".join(self.names)
                raise InvalidData(f"{example.where}: found label {example.label!r}, head.words has words for {named}")
        return self.names

    def preprocessing(self, labels: Sequence[str]) -> Preprocessing:
        pair = len(self.text_fields) == 2
        return Preprocessing(max_tokens=self.max_tokens, pair=pair, text_fields=self.text_fields, verbalizer=self.spec)

    def items(
        self,
        examples: Sequence[Example],
        labels: Sequence[str],
        tokenizer: Tokenizer,
        prep: Preprocessing,
        *,
        training: bool,
    ) -> list[Item]:
        return text_items(examples, labels, RowEncoder(self.task, tokenizer, prep))

    def loss(self, logits_KC: Tensor, items: Sequence[Item]) -> Tensor:
        logits_RNC = logits_KC.reshape(-1, self.spec.num_masks, logits_KC.shape[-1])
        share_NCL = torch.from_numpy(_shares(self.task.columns, self.spec)).to(logits_KC)
        return label_loss(torch.einsum("rnc,ncl->rl", logits_RNC, share_NCL), items)

    def tuned(self, logits: Logits, items: Sequence[Item]) -> Self:
        return self

    def score(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        loss = mean_loss(self, logits, items)
        return Scores({"loss": loss, **labelled.label_metrics(self._scores(logits), items)})

    def score_in_full(self, logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> Scores:
        plain = self.score(logits, items, labels).metrics
        return labelled.label_scores(plain, self._scores(logits), items, labels, self.num_mistakes)

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        return labelled.label_counts(items, labels)

    def _scores(self, logits: Logits) -> NDArray[np.float32]:
        """[R, L]"""
        task = self.task
        return np.stack([task.label_logits(rows[0]) for rows in logits])


def spelled(template: str, words: Mapping[str, str], tokenizer: Tokenizer) -> VerbalizerSpec:
    """A recipe's template and words in the backbone's tokens.

    Raises:
        InvalidRecipe: the vocabulary lacks a word, or two labels' words are the same tokens.
    """
    try:
        spec = verbalizer_spec(TextTokenizer(tokenizer), template, list(words.values()))
    except VerbalizerMismatch as error:
        raise InvalidRecipe(f"head.words: {error}") from error
    first: dict[tuple[int, ...], str] = {}
    for word, tokens in zip(spec.words, spec.token_ids, strict=True):
        if tokens in first:
            raise InvalidRecipe(f"head.words: found the same tokens for {first[tokens]!r} and {word!r}, wanted others")
        first[tokens] = word
    return spec


def _shares(columns: Sequence[Sequence[int]], spec: VerbalizerSpec) -> NDArray[np.float64]:
    """[N, C, L]: what a logit adds to a label's score, the mean over the tokens of its word."""
    share_NCL = np.zeros((spec.num_masks, len(spec.outputs), len(columns)))
    for label, word in enumerate(columns):
        share_NCL[np.arange(len(word)), list(word), label] = 1 / len(word)
    return share_NCL
