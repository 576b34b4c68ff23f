"""Features: one row of a batch, as token ids, with the way back to the text it came from.

It refuses to know how texts are split into tokens (`tokenizer.py`) and what a task wants from them.

Shape letters: T tokens of one row, special tokens included, prefix excluded; K positions that a head reads.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefixbank.model_store.tasks.tokenizer import TextTokenizer


class Truncation(enum.Enum):
    """What to do with an input that has more tokens than its task takes."""

    REFUSE = "refuse"
    """Raise InputTooLong."""
    CUT = "cut"
    """Drop tokens from the task's truncation side (longest text first for pairs) and mark the features."""


class Text(NamedTuple):
    """One text, or a pair of texts."""

    text: str
    text_pair: str | None = None

    @property
    def num_characters(self) -> int:
        """How long it is, a separator after each text included."""
        return sum(len(text) + 1 for text in self if text is not None)

    @property
    def num_repeated_characters(self) -> int:
        """No text of it is tokenised twice."""
        return 0


class Words(NamedTuple):
    """One text that the caller has split into words; offsets refer to the words joined by `delimiter`."""

    words: tuple[str, ...]
    delimiter: str = " "

    @property
    def num_characters(self) -> int:
        """How long it is, a separator after each word included."""
        return sum(len(word) + 1 for word in self.words)

    @property
    def num_repeated_characters(self) -> int:
        """No word of it is tokenised twice."""
        return 0


TaskInput: TypeAlias = Text | Words


@dataclass(frozen=True, eq=False, slots=True)
class Alignment:
    """Where the T tokens of a row lie in their text. Only token-level tasks carry it."""

    text: str
    """The whole text; pre-split words are joined by their delimiter."""
    offsets: tuple[tuple[int, int], ...]
    """First character and end of each token in `text`; (0, 0) for special tokens."""
    word_ids: tuple[int | None, ...]
    """Index of each token's word: the caller's word, or the tokenizer's where the text came whole."""
    is_special: tuple[bool, ...]
    """Tokens that the tokenizer added."""
    num_words: int
    """Words the caller gave, those without a token included; words of the row where the text came whole."""
    tokenizer: TextTokenizer
    """Turns tokens back into words."""

    @property
    def first_tokens(self) -> tuple[int, ...]:
        """Index of the first token of each word, ascending."""
        before = (None, *self.word_ids[:-1])
        pairs = zip(self.word_ids, before, strict=True)
        return tuple(t for t, (word, previous) in enumerate(pairs) if word is not None and word != previous)


@dataclass(frozen=True, eq=False, slots=True)
class Features:
    """Token ids of one row. The arrays are read-only."""

    token_ids: NDArray[np.int64]
    """[T]"""
    type_ids: NDArray[np.int64]
    """[T] segment of each token."""
    truncated: bool = False
    """Some of the input is not in the row, because the caller asked for CUT."""
    alignment: Alignment | None = None
    reads: NDArray[np.int64] | None = None
    """[K] positions whose states the head reads, where they are neither the first nor all: a verbalizer's masks."""

    @property
    def num_tokens(self) -> int:
        """Length of the row."""
        return len(self.token_ids)


def alignment_of(features: Features) -> Alignment:
    """The way back to the text, which every row of a token-level task has."""
    assert features.alignment is not None, "a token-level row without alignment. This is a bug."
    return features.alignment
