"""Text classification by words at masks: each label has a word, and the head scores the words' tokens.

A label's score is the mean over its word's tokens of that token's logit at its mask; for words of one token that is
the published verbalizer (Schick & Schütze, 2021; Table 5 of P-Tuning v2). Those who score words of several tokens add
logarithms of probabilities over the whole vocabulary, which a head that computes the words' logits alone has not; here
training by cross entropy over the scores makes up for the masks' unlike scales. The answer is that of text
classification. It refuses to know devices, prompts and the wire.

Shape letters: K masks, C outputs of the head (distinct tokens of all words).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prefixbank.model_store.errors import VerbalizerMismatch
from prefixbank.model_store.task_prompt import VerbalizerSpec
from prefixbank.model_store.tasks.cloze import cloze_row
from prefixbank.model_store.tasks.features import Features, Truncation
from prefixbank.model_store.tasks.text_classification import Answer, TextClassification

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks.features import TaskInput
    from prefixbank.model_store.tasks.request import RequestParameters
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Verbalizer(TextClassification):
    """The family's functions for one verbalizer."""

    spec: VerbalizerSpec
    is_token_level = True

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Outputs C of the head: one per distinct token of the words."""
        return len(self.spec.outputs)

    @property
    def columns(self) -> tuple[tuple[int, ...], ...]:
        """Per label, the output of each token of its word: token k is read at mask k."""
        column = {token_id: index for index, token_id in enumerate(self.spec.outputs)}
        return tuple(tuple(column[token_id] for token_id in word) for word in self.spec.token_ids)

    def encode(
        self,
        tokenizer: TextTokenizer,
        prep: Preprocessing,
        item: TaskInput,
        *,
        max_tokens: int,
        truncation: Truncation = Truncation.REFUSE,
    ) -> Features:
        """One input in the template, as one row whose head reads the masks. Trainer and server use the same."""
        text = self.checked(item, prep)
        return cloze_row(tokenizer, prep, self.spec, text, max_tokens=max_tokens, truncation=truncation)

    def label_logits(self, logits_KC: NDArray[np.float32]) -> NDArray[np.float32]:
        """One score per label from the logits at the masks."""
        means = [logits_KC[np.arange(len(columns)), list(columns)].mean() for columns in self.columns]
        return np.array(means, dtype=np.float32)

    def decode(
        self,
        logits: Sequence[NDArray[np.float32]],
        rows: Sequence[Features],
        labels: Sequence[str],
        parameters: RequestParameters,
    ) -> Answer:
        """Labels with scores, best first, from the one row's logits [K, C]."""
        return TextClassification.decode(self, [self.label_logits(logits[0])], rows, labels, parameters)


def verbalizer_spec(tokenizer: TextTokenizer, template: str, words: Sequence[str]) -> VerbalizerSpec:
    """A verbalizer of one word per label, each as the vocabulary spells it in the mask's place.

    Raises:
        VerbalizerMismatch: the vocabulary cannot spell a word.
    """
    before = template.partition("{mask}")[0]
    space = " " if before[-1:].isspace() else ""
    token_ids = []
    for word in words:
        ids = tokenizer.split(space + word).ids
        if not ids or tokenizer.unknown_id in ids:
            raise VerbalizerMismatch(f"the backbone's vocabulary has no tokens for the word {word[:80]!r}")
        token_ids.append(tuple(ids))
    return VerbalizerSpec(template=template, words=tuple(words), token_ids=tuple(token_ids))
