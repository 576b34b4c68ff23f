"""Token scores to entities, in the ways of transformers' TokenClassificationPipeline (5.23).

Strategies `none`, `simple`, `first`, `average` and `max` give the pipeline's answer to the last character, its
heuristics for what continues a word included: WordPiece tokens by their length, others by the space before them.
`word` is ours: as `first`, but with words as the tokenizer split them, or as the caller gave them. It reads each
word's first token, which is the one that training labels, on every kind of tokenizer.

It refuses to know requests, parameters and how texts were cut into rows.

Shape letters: T tokens of the row, C classes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from prefixbank.model_store.tasks.features import Alignment

Answer = list[dict[str, Any]]
ItemT = TypeVar("ItemT")


class Strategy(enum.StrEnum):
    """How tokens are fused into entities."""

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"
    WORD = "word"

    @property
    def fuses_words(self) -> bool:
        """The tokens of a word get one label together."""
        return self not in (Strategy.NONE, Strategy.SIMPLE)


class _Tagged(NamedTuple):
    """One token, or the tokens of one word, with their label."""

    tokens: list[int]
    """Indices in the row."""
    label: str
    score: float


@dataclass(frozen=True, eq=False, slots=True)
class _Row:
    """One row's scores and the way back to its text."""

    scores_TC: NDArray[np.float32]
    token_ids: NDArray[np.int64]
    alignment: Alignment
    labels: Sequence[str]
    strategy: Strategy

    @property
    def tokens(self) -> list[int]:
        """Indices of the text's own tokens."""
        return [t for t, is_special in enumerate(self.alignment.is_special) if not is_special]

    def tagged_tokens(self) -> list[_Tagged]:
        return self._first_tagged([[t] for t in self.tokens])

    def tagged_words(self) -> list[_Tagged]:
        continues = self._shares_word if self.strategy is Strategy.WORD else self._looks_continued
        words = _runs(self.tokens, lambda _, t: continues(t))
        if self.strategy in (Strategy.AVERAGE, Strategy.MAX):
            return [self._fused(word) for word in words]
        return self._first_tagged(words)

    def word(self, tagged: _Tagged) -> str:
        """Its text, as the pipeline shows it."""
        tokens = [self._shown(t) for t in tagged.tokens]
        return self.alignment.tokenizer.join(tokens) if self.strategy.fuses_words else tokens[0]

    def start(self, tagged: _Tagged) -> int:
        return self.alignment.offsets[tagged.tokens[0]][0]

    def end(self, tagged: _Tagged) -> int:
        return self.alignment.offsets[tagged.tokens[-1]][1]

    def _first_tagged(self, words: list[list[int]]) -> list[_Tagged]:
        """Each word with the label of its first token."""
        best_T, score_T = self.scores_TC.argmax(axis=-1).tolist(), self.scores_TC.max(axis=-1).tolist()
        return [_Tagged(word, self.labels[best_T[word[0]]], score_T[word[0]]) for word in words]

    def _fused(self, word: list[int]) -> _Tagged:
        """The word with the label of its mean, or of its surest token."""
        scores_WC = self.scores_TC[word]
        is_mean = self.strategy is Strategy.AVERAGE
        scores_C = scores_WC.mean(axis=0) if is_mean else scores_WC[scores_WC.max(axis=-1).argmax()]
        best = int(scores_C.argmax())
        return _Tagged(word, self.labels[best], float(scores_C[best]))

    def _shares_word(self, t: int) -> bool:
        word_ids = self.alignment.word_ids
        return word_ids[t] is not None and word_ids[t] == word_ids[t - 1]

    def _looks_continued(self, t: int) -> bool:
        """The pipeline's guess: WordPiece marks continuation, elsewhere a space stands before a word."""
        if self._is_unknown(t):
            return False
        start, end = self.alignment.offsets[t]
        if self.alignment.tokenizer.marks_continuation:
            return len(self._shown(t)) != end - start
        return start > 0 and " " not in self.alignment.text[start - 1 : start + 1]

    def _shown(self, t: int) -> str:
        if self._is_unknown(t):
            start, end = self.alignment.offsets[t]
            return self.alignment.text[start:end]
        return self.alignment.tokenizer.token(int(self.token_ids[t]))

    def _is_unknown(self, t: int) -> bool:
        return bool(self.token_ids[t] == self.alignment.tokenizer.unknown_id)


def entities_of(
    scores_TC: NDArray[np.float32],
    token_ids: NDArray[np.int64],
    alignment: Alignment,
    labels: Sequence[str],
    strategy: Strategy,
    ignored: Collection[str],
) -> Answer:
    """The row's entities but those of ignored labels: entity groups, or single tokens for `none`."""
    row = _Row(scores_TC, token_ids, alignment, labels, strategy)
    tagged = row.tagged_words() if strategy.fuses_words else row.tagged_tokens()
    if strategy is Strategy.NONE:
        return [_as_token(row, token) for token in tagged if token.label not in ignored]
    groups = _runs(tagged, _continues_entity)
    return [_as_group(row, group) for group in groups if _group_name(group) not in ignored]


def without_overlaps(entities: Answer) -> Answer:
    """Of entities that overlap, as neighbouring windows give them: the longer, then the surer one."""
    merged: Answer = []
    for entity in sorted(entities, key=lambda entity: int(entity["start"])):
        if not merged or not merged[-1]["start"] <= entity["start"] < merged[-1]["end"]:
            merged.append(entity)
        elif _rank(entity) > _rank(merged[-1]):
            merged[-1] = entity
    return merged


def _rank(entity: dict[str, Any]) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _continues_entity(previous: _Tagged, tagged: _Tagged) -> bool:
    begins, kind = _prefix_and_kind(tagged.label)
    return not begins and kind == _prefix_and_kind(previous.label)[1]


def _prefix_and_kind(label: str) -> tuple[bool, str]:
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _runs(items: list[ItemT], continues: Callable[[ItemT, ItemT], bool]) -> list[list[ItemT]]:
    """Runs in which each item but the first continues the one before it."""
    runs: list[list[ItemT]] = []
    for item in items:
        if runs and continues(runs[-1][-1], item):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _group_name(group: list[_Tagged]) -> str:
    return group[0].label.split("-", 1)[-1]


def _as_token(row: _Row, token: _Tagged) -> dict[str, Any]:
    return {
        "entity": token.label,
        "score": token.score,
        "index": token.tokens[0],
        "word": row.word(token),
        "start": row.start(token),
        "end": row.end(token),
    }


def _as_group(row: _Row, group: list[_Tagged]) -> dict[str, Any]:
    return {
        "entity_group": _group_name(group),
        "score": fmean(tagged.score for tagged in group),
        "word": row.alignment.tokenizer.join([row.word(tagged) for tagged in group]),
        "start": row.start(group[0]),
        "end": row.end(group[-1]),
    }
