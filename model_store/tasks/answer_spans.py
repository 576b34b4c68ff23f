"""Answer spans: start and end logits of a text's windows to its best spans, and spans to training targets.

A span scores the sum of its start and end logits, the best over the windows that hold it; the null answer scores the
sum at the first token, the least over the windows (Devlin et al., 2019, section 4.3).
It refuses to know questions, requests and how a text becomes windows; a row's logits come as numpy.

Shape letters: T tokens of the row, N tokens of the text in it, A starts, K lengths of an answer, S spans.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from prefixbank.model_store.tasks.features import alignment_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.tasks.features import Alignment, Features

NULL_TOKEN = 0
"""The first token of a row, [CLS] or <s>: start and end of the null answer."""


class Candidate(NamedTuple):
    """One possible answer: characters `start` to `end` of the text, the end excluded."""

    start: int
    end: int
    score: float
    """Start logit plus end logit."""


class Found(NamedTuple):
    """The n best spans of one text, best first, and how the null answer scored."""

    text: str
    candidates: tuple[Candidate, ...]
    """Empty where the text has no token."""
    null_score: float

    @property
    def null_difference(self) -> float:
        """By how much the null answer beats the best span; what a threshold is compared with."""
        return self.null_score - self.candidates[0].score if self.candidates else float("inf")

    def choices(self, null_threshold: float | None) -> tuple[Candidate, ...]:
        """What may be answered: the spans, and behind them, without a character, the null answer less its threshold.

        Args:
            null_threshold: None leaves the null answer out, unless there is no span.
        """
        if null_threshold is None and self.candidates:
            return self.candidates
        return *self.candidates, Candidate(0, 0, self.null_score - (null_threshold or 0.0))


def find_answers(
    logits: Sequence[NDArray[np.float32]],
    rows: Sequence[Features],
    *,
    max_answer_tokens: int = 30,
    num_best: int = 20,
    whole_words: bool = False,
) -> Found:
    """The n best spans of one text from the logits [T, 2] of its windows."""
    sums = [_largest_sums(*pair, max_answer_tokens, 2 * num_best) for pair in zip(logits, rows, strict=True)]
    window_S = np.repeat(np.arange(len(rows)), [len(found.score_S) for found in sums])
    first_S, last_S, score_S = (np.concatenate(parts) for parts in zip(*sums, strict=True))
    words = [_word_bounds(alignment_of(row)) if whole_words else None for row in rows]
    best: dict[tuple[int, int], float] = {}
    for s in np.argsort(-score_S, kind="stable"):
        window = int(window_S[s])
        span = _characters(alignment_of(rows[window]), int(first_S[s]), int(last_S[s]), words[window])
        if span is not None:
            best.setdefault(span, float(score_S[s]))  # the windows that hold a span give it in falling order
        if len(best) == num_best:
            break
    null_score = min(float(logits_T2[NULL_TOKEN].sum(dtype=np.float64)) for logits_T2 in logits)
    return Found(alignment_of(rows[0]).text, tuple(Candidate(*span, best[span]) for span in best), null_score)


def span_targets(features: Features, answer: tuple[int, int] | None) -> NDArray[np.int64]:
    """Training targets [2]: the tokens where an answer (first character, end) starts and ends.

    Both are the null token where there is no answer, or where the window does not hold all of it. These are the targets
    of transformers' run_qa, but where an answer begins or ends with characters that no token holds: there run_qa takes
    a neighbour's token.
    """
    alignment = alignment_of(features)
    inside = [t for t, is_special in enumerate(alignment.is_special) if not is_special]
    if answer is None or not inside:
        return np.array([NULL_TOKEN, NULL_TOKEN])
    first, end = answer
    needed = [place for place in range(first, end) if not _may_be_dropped(alignment.text[place])]
    if not needed or alignment.offsets[inside[0]][0] > needed[0] or alignment.offsets[inside[-1]][1] <= needed[-1]:
        return np.array([NULL_TOKEN, NULL_TOKEN])
    start_token = next(t for t in inside if alignment.offsets[t][1] > first)
    end_token = next(t for t in reversed(inside) if alignment.offsets[t][0] < end)
    return np.array([start_token, end_token] if start_token <= end_token else [NULL_TOKEN, NULL_TOKEN])


def _may_be_dropped(character: str) -> bool:
    """Whether no token may hold it: blanks, accents that a vocabulary drops, controls."""
    return character.isspace() or unicodedata.category(character) in ("Mn", "Cf", "Cc")


class _Sums(NamedTuple):
    """Spans of one window: more than are wanted, as some fall together in characters."""

    first_S: NDArray[np.int64]
    last_S: NDArray[np.int64]
    score_S: NDArray[np.float64]


def _largest_sums(logits_T2: NDArray[np.float32], row: Features, max_tokens: int, count: int) -> _Sums:
    """The `count` spans of a window with the largest start logit plus end logit.

    A start whose best span is not among the best of `count` starts has none of the best `count` spans.
    """
    inside_N = np.flatnonzero(~np.array(alignment_of(row).is_special))
    if not inside_N.size:
        return _Sums(inside_N, inside_N, np.zeros(0))
    start_N, end_N = logits_T2[inside_N].astype(np.float64).T
    longest = min(max_tokens, len(inside_N))
    ends = np.append(end_N, np.full(longest - 1, -np.inf))
    end_NK = sliding_window_view(ends, longest)
    starts = _places_of_largest(start_N + _sliding_max(ends, longest), count)
    score_AK = start_N[starts, None] + end_NK[starts]
    places_S = _places_of_largest(score_AK.ravel(), count)
    score_S = score_AK.ravel()[places_S]
    places_S, score_S = places_S[np.isfinite(score_S)], score_S[np.isfinite(score_S)]  # none beyond the window's end
    first_S = starts[places_S // longest]
    return _Sums(inside_N[first_S], inside_N[first_S + places_S % longest], score_S)


def _sliding_max(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """The largest of each `length` neighbours, by doubling."""
    count, width = len(values) - length + 1, 1
    while 2 * width <= length:
        values = np.maximum(values[:-width], values[width:])
        width *= 2
    return np.maximum(values[:count], values[length - width :][:count])


def _places_of_largest(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    count = min(count, scores.size)
    return np.asarray(np.argpartition(-scores, count - 1)[:count], dtype=np.int64)


def _word_bounds(alignment: Alignment) -> dict[int, tuple[int, int]]:
    """First and last token of each word."""
    bounds: dict[int, tuple[int, int]] = {}
    for t, word in enumerate(alignment.word_ids):
        if word is not None:
            bounds[word] = (bounds.get(word, (t, t))[0], t)
    return bounds


def _characters(
    alignment: Alignment, first: int, last: int, words: Mapping[int, tuple[int, int]] | None
) -> tuple[int, int] | None:
    """Where tokens `first` to `last` lie in the text, without blanks at the ends; None where nothing is left.

    Args:
        words: first and last token of each word, to which an answer is stretched; None leaves it as it is.
    """
    first_word, last_word = alignment.word_ids[first], alignment.word_ids[last]
    if words is not None and first_word is not None and last_word is not None:
        first, last = words[first_word][0], words[last_word][1]
    start, end = alignment.offsets[first][0], _end_with_accents(alignment, last)
    answer = alignment.text[start:end]
    start += len(answer) - len(answer.lstrip())
    return (start, start + len(answer.strip())) if answer.strip() else None


def _end_with_accents(alignment: Alignment, token: int) -> int:
    """Where a token ends, with combining characters after it that the vocabulary drops and no token holds."""
    end, text = alignment.offsets[token][1], alignment.text
    is_last = token + 1 == len(alignment.offsets) or alignment.is_special[token + 1]
    limit = len(text) if is_last else alignment.offsets[token + 1][0]
    while end < limit and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return end
