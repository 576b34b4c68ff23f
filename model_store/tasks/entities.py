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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


@dataclass(frozen=True, eq=False, slots=True)
class _Token:
    """One token of the text, or one word once its tokens are fused."""

    word: str
    scores_C: NDArray[np.float32]
    start: int
    end: int
    index: int
    continues_word: bool


@dataclass(frozen=True, slots=True)
class _Tagged:
    """A token or word with its label."""

    label: str
    score: np.float32
    word: str
    start: int
    end: int
    index: int


def entities_of(
    scores_TC: NDArray[np.float32],
    token_ids: NDArray[np.int64],
    alignment: Alignment,
    labels: Sequence[str],
    strategy: Strategy,
) -> Answer:
    """The row's entities, those of ignored labels included."""
    tokens = _tokens(scores_TC, token_ids, alignment, strategy)
    if strategy in (Strategy.NONE, Strategy.SIMPLE):
        tagged = [_tag(token, token.scores_C, labels) for token in tokens]
    else:
        tagged = [_fuse(group, labels, alignment, strategy) for group in _groups(tokens, _continues_word)]
    if strategy is Strategy.NONE:
        return [_as_token(entity) for entity in tagged]
    return [_as_group(group, alignment) for group in _entity_groups(tagged)]


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


def _tokens(
    scores_TC: NDArray[np.float32], token_ids: NDArray[np.int64], alignment: Alignment, strategy: Strategy
) -> list[_Token]:
    before = (None, *alignment.word_ids[:-1])
    tokens = []
    for t, (start, end) in enumerate(alignment.offsets):
        if alignment.is_special[t]:
            continue
        word, continues = _word_of(int(token_ids[t]), start, end, alignment)
        if strategy is Strategy.WORD:
            continues = alignment.word_ids[t] is not None and alignment.word_ids[t] == before[t]
        tokens.append(_Token(word, scores_TC[t], start, end, t, continues))
    return tokens


def _word_of(token_id: int, start: int, end: int, alignment: Alignment) -> tuple[str, bool]:
    """The token as it is shown, and whether the pipeline takes it as the continuation of a word."""
    tokenizer, text = alignment.tokenizer, alignment.text
    if token_id == tokenizer.unknown_id:
        return text[start:end], False
    word = tokenizer.token(token_id)
    if tokenizer.marks_continuation:
        return word, len(word) != len(text[start:end])
    return word, start > 0 and " " not in text[start - 1 : start + 1]


def _tag(token: _Token, scores_C: NDArray[np.float32], labels: Sequence[str]) -> _Tagged:
    best = int(scores_C.argmax())
    return _Tagged(labels[best], scores_C[best], token.word, token.start, token.end, token.index)


def _fuse(group: list[_Token], labels: Sequence[str], alignment: Alignment, strategy: Strategy) -> _Tagged:
    """One word out of its tokens."""
    if strategy is Strategy.AVERAGE:
        scores_C = np.nanmean(np.stack([token.scores_C for token in group]), axis=0)
    elif strategy is Strategy.MAX:
        scores_C = max(group, key=lambda token: float(token.scores_C.max())).scores_C
    else:
        scores_C = group[0].scores_C
    word = alignment.tokenizer.join([token.word for token in group])
    return replace(_tag(group[0], scores_C, labels), word=word, end=group[-1].end)


def _continues_word(token: _Token, group: list[_Token]) -> bool:
    return token.continues_word


def _entity_groups(tagged: list[_Tagged]) -> list[list[_Tagged]]:
    return _groups(tagged, lambda entity, group: _continues_entity(entity.label, group[-1].label))


def _continues_entity(label: str, previous: str) -> bool:
    begins, kind = _prefix_and_kind(label)
    return not begins and kind == _prefix_and_kind(previous)[1]


def _prefix_and_kind(label: str) -> tuple[bool, str]:
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _groups(items: list[ItemT], continues: Callable[[ItemT, list[ItemT]], bool]) -> list[list[ItemT]]:
    """Runs in which each item but the first continues its run."""
    groups: list[list[ItemT]] = []
    for item in items:
        if groups and continues(item, groups[-1]):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _as_token(entity: _Tagged) -> dict[str, Any]:
    return {
        "entity": entity.label,
        "score": float(entity.score),
        "index": entity.index,
        "word": entity.word,
        "start": entity.start,
        "end": entity.end,
    }


def _as_group(group: list[_Tagged], alignment: Alignment) -> dict[str, Any]:
    return {
        "entity_group": group[0].label.split("-", 1)[-1],
        "score": float(np.nanmean([entity.score for entity in group])),
        "word": alignment.tokenizer.join([entity.word for entity in group]),
        "start": group[0].start,
        "end": group[-1].end,
    }
