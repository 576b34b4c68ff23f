"""Text to rows: tokenise, and refuse or cut what is longer than the task takes.

It refuses to know labels, answers and requests; it never cuts without saying so in the features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefixbank.model_store.errors import InputTooLong, InvalidRequest
from prefixbank.model_store.tasks.features import Alignment, Features, Text, Truncation, Words
from prefixbank.model_store.tasks.tokenizer import TextTokenizer, read_only

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Encoding as TokenEncoding

    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.model_store.tasks.features import TaskInput

CHARACTERS_PER_TOKEN = 64
"""Longer texts are refused or cut before they are tokenised: a megabyte must not cost a second."""
MIN_CHARACTERS = 4096
"""The character limit is never below this."""
MAX_WINDOWS = 64
"""Rows that one text may become."""


class Source(NamedTuple):
    """What is tokenised, after the cut by characters, and where it lies in the whole text."""

    item: TaskInput
    """The whole input."""
    texts: tuple[str | tuple[str, ...], ...]
    first_character: int
    first_word: int
    cut: bool


def pooled_row(
    tokenizer: TextTokenizer, prep: Preprocessing, item: TaskInput, *, max_tokens: int, truncation: Truncation
) -> Features:
    """One row for a task that reads only pooled states: it keeps no way back to the text."""
    source, encoding, cut = _fit(tokenizer, prep, item, max_tokens, truncation)
    return _features(encoding, truncated=cut or source.cut)


def aligned_row(
    tokenizer: TextTokenizer, prep: Preprocessing, item: TaskInput, *, max_tokens: int, truncation: Truncation
) -> Features:
    """One row for a token-level task."""
    source, encoding, cut = _fit(tokenizer, prep, item, max_tokens, truncation)
    return _features(encoding, truncated=cut or source.cut, alignment=_alignment(tokenizer, source, encoding))


def aligned_windows(
    tokenizer: TextTokenizer, prep: Preprocessing, item: TaskInput, *, max_tokens: int, stride: int
) -> tuple[Features, ...]:
    """All of a long text as overlapping rows, `stride` tokens shared between neighbours.

    Raises:
        InvalidRequest: the stride leaves no step forward.
        InputTooLong: it would take more than MAX_WINDOWS rows.
    """
    source = source_of(item, prep, MAX_WINDOWS * max_tokens, Truncation.REFUSE)
    first = tokenizer.split(source.texts[0], add_prefix_space=prep.add_prefix_space)
    room = _room(tokenizer, max_tokens, num_texts=1)
    _check_windows(len(first), room, stride)
    first.truncate(room, stride=stride, direction=prep.truncation_side)
    encoding = tokenizer.finish(first, add_prefix_space=prep.add_prefix_space)
    rows = [encoding, *encoding.overflowing]
    return tuple(_features(row, truncated=False, alignment=_alignment(tokenizer, source, row)) for row in rows)


def _fit(
    tokenizer: TextTokenizer, prep: Preprocessing, item: TaskInput, max_tokens: int, truncation: Truncation
) -> tuple[Source, TokenEncoding, bool]:
    source = source_of(item, prep, max_tokens, truncation)
    parts = [tokenizer.split(text, add_prefix_space=prep.add_prefix_space) for text in source.texts]
    room = _room(tokenizer, max_tokens, len(parts))
    kept = kept_lengths([len(part) for part in parts], room)
    cut = [len(part) for part in parts] != kept
    if cut and truncation is Truncation.REFUSE:
        found = sum(len(part) for part in parts) + max_tokens - room
        raise InputTooLong(f"inputs: found {found} tokens, this task takes at most {max_tokens}")
    for part, length in zip(parts, kept, strict=True):
        part.truncate(length, direction=prep.truncation_side)
    return source, tokenizer.finish(*parts, add_prefix_space=prep.add_prefix_space), cut


def kept_lengths(lengths: Sequence[int], room: int) -> list[int]:
    """Tokens kept of each text, as Hugging Face's `longest_first`: the longer text gives way first."""
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    shorter, longer = sorted(lengths)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room // 2 + room % 2
    return [longer, shorter] if lengths[0] > lengths[1] else [shorter, longer]


def _room(tokenizer: TextTokenizer, max_tokens: int, num_texts: int) -> int:
    """Tokens left for the texts beside the special tokens."""
    special = tokenizer.num_special_tokens(pair=num_texts == 2)
    if special > max_tokens:
        raise InputTooLong(f"inputs: found {special} special tokens, this task takes at most {max_tokens} tokens")
    return max_tokens - special


def _check_windows(num_tokens: int, room: int, stride: int) -> None:
    step = room - stride
    if step < 1:
        raise InvalidRequest(f"parameters.stride: found {stride}, wanted less than the {room} tokens of a window")
    windows = 1 + -(-max(0, num_tokens - room) // step)
    if windows > MAX_WINDOWS:
        raise InputTooLong(f"inputs: found {windows} windows of {room} tokens, at most {MAX_WINDOWS} are taken")


def source_of(item: TaskInput, prep: Preprocessing, max_tokens: int, truncation: Truncation) -> Source:
    """The input's texts, cut to as many characters as could matter in `max_tokens`.

    Raises:
        InputTooLong: they have more, and may not be cut.
    """
    limit = max(MIN_CHARACTERS, CHARACTERS_PER_TOKEN * max_tokens)
    texts = (item.words,) if isinstance(item, Words) else tuple(text for text in item if text is not None)
    found = max(_num_characters(text) for text in texts)
    if found <= limit:
        return Source(item, texts, first_character=0, first_word=0, cut=False)
    if truncation is Truncation.REFUSE:
        raise InputTooLong(f"inputs: found {found} characters, this task takes at most {limit}")
    return _cut_characters(item, texts, limit, prep.truncation_side)


def _cut_characters(item: TaskInput, texts: tuple[str | tuple[str, ...], ...], limit: int, side: str) -> Source:
    if isinstance(item, Words):
        keep = _words_within(item.words, limit, side)
        return Source(item, (item.words[keep],), first_character=0, first_word=keep.start, cut=True)
    starts = [max(0, len(text) - limit) if side == "left" else 0 for text in texts]
    kept = tuple(text[start : start + limit] for text, start in zip(texts, starts, strict=True))
    return Source(item, kept, first_character=starts[0], first_word=0, cut=True)


def _words_within(words: tuple[str, ...], limit: int, side: str) -> slice:
    """The run of words at the kept end with at most `limit` characters."""
    total = kept = 0
    for word in words if side == "right" else reversed(words):
        total += len(word) + 1
        if total > limit:
            break
        kept += 1
    return slice(0, kept) if side == "right" else slice(len(words) - kept, len(words))


def _num_characters(text: str | tuple[str, ...]) -> int:
    return len(text) if isinstance(text, str) else sum(len(word) + 1 for word in text)


def _features(encoding: TokenEncoding, *, truncated: bool, alignment: Alignment | None = None) -> Features:
    return Features(read_only(encoding.ids), read_only(encoding.type_ids), truncated, alignment)


def _alignment(tokenizer: TextTokenizer, source: Source, encoding: TokenEncoding) -> Alignment:
    item, special = source.item, tuple(map(bool, encoding.special_tokens_mask))
    ids = tuple(None if word is None else word + source.first_word for word in encoding.word_ids)
    if isinstance(item, Text):
        offsets = _shifted(encoding.offsets, special, source.first_character)
        words = 1 + max((word for word in ids if word is not None), default=-1)
        return Alignment(item.text, offsets, ids, special, words, tokenizer)
    starts = _word_starts(item)
    offsets = tuple(
        span if word is None else (span[0] + starts[word], span[1] + starts[word])
        for span, word in zip(encoding.offsets, ids, strict=True)
    )
    return Alignment(item.delimiter.join(item.words), offsets, ids, special, len(item.words), tokenizer)


def _shifted(offsets: Sequence[tuple[int, int]], special: Sequence[bool], shift: int) -> tuple[tuple[int, int], ...]:
    pairs = zip(offsets, special, strict=True)
    return tuple((0, 0) if is_special else (start + shift, end + shift) for (start, end), is_special in pairs)


def _word_starts(item: Words) -> list[int]:
    """First character of each word in the joined text."""
    starts, position = [], 0
    for word in item.words:
        starts.append(position)
        position += len(word) + len(item.delimiter)
    return starts
