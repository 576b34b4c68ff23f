"""A text in a template with masks, as one row: what a verbalizer's head reads.

The filled template is tokenised whole, as transformers would tokenise it. Where it is too long its texts give way, the
longer one first; the template's own words and its masks never do. It refuses to know words that stand for labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prefixbank.model_store.errors import BackboneError, InputTooLong
from prefixbank.model_store.tasks.features import Features, Text, Truncation
from prefixbank.model_store.tasks.rows import kept_lengths, source_of
from prefixbank.model_store.tasks.tokenizer import read_only

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import Preprocessing, VerbalizerSpec
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer

_TEXTS = ("{text}", "{text_pair}")


class _Filled(NamedTuple):
    """The template with everything in its place, and where that is."""

    whole: str
    masks: range
    """Characters."""
    texts: tuple[range, ...]
    """Characters of each text, in the order of the template."""


class _Tokens(NamedTuple):
    """A finished row, before anything is cut."""

    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]
    last_characters: NDArray[np.int64]
    """Of each token, in the filled template; -1 for special tokens around it. A token belongs where it ends."""


def cloze_row(
    tokenizer: TextTokenizer,
    prep: Preprocessing,
    spec: VerbalizerSpec,
    item: Text,
    *,
    max_tokens: int,
    truncation: Truncation,
) -> Features:
    """One row whose `reads` are its masks.

    Raises:
        InputTooLong: the row has more than `max_tokens`, and may not be cut or cannot be cut enough.
        BackboneError: the tokenizer has no mask.
    """
    if tokenizer.mask_id is None:
        raise BackboneError("this backbone's tokenizer has no mask token, which a verbalizer reads")
    source = source_of(item, prep, max_tokens, truncation)
    filled = _fill(spec, [str(text) for text in source.texts], tokenizer.token(tokenizer.mask_id))
    tokens = _tokenise(tokenizer, filled, add_prefix_space=prep.add_prefix_space)
    kept = _kept(tokens, filled, prep.truncation_side, max_tokens)
    cut = len(kept) < len(tokens.ids)
    if cut and truncation is Truncation.REFUSE:
        raise InputTooLong(f"inputs: found {len(tokens.ids)} tokens, this task takes at most {max_tokens}")
    ids = tokens.ids[kept]
    reads = np.flatnonzero((ids == tokenizer.mask_id) & _lies_in(filled.masks, tokens.last_characters[kept]))
    assert len(reads) == spec.num_masks, f"{len(reads)} masks in a row, wanted {spec.num_masks}. This is a bug."
    arrays = [read_only(array.tolist()) for array in (ids, tokens.type_ids[kept], reads)]
    return Features(arrays[0], arrays[1], truncated=cut or source.cut, reads=arrays[2])


def _fill(spec: VerbalizerSpec, texts: Sequence[str], mask: str) -> _Filled:
    contents = {"{mask}": mask * spec.num_masks, **dict(zip(_TEXTS, texts, strict=False))}
    whole, places = "", {}
    for piece in spec.pieces:
        content = contents.get(piece, piece)
        places[piece] = range(len(whole), len(whole) + len(content))
        whole += content
    return _Filled(whole, places["{mask}"], tuple(places[piece] for piece in spec.pieces if piece in _TEXTS))


def _tokenise(tokenizer: TextTokenizer, filled: _Filled, *, add_prefix_space: bool) -> _Tokens:
    split = tokenizer.split(filled.whole, add_prefix_space=add_prefix_space)
    row = tokenizer.finish(split, add_prefix_space=add_prefix_space)
    ends = [end - 1 if end > start else -1 for start, end in row.offsets]
    return _Tokens(*(np.array(part, dtype=np.int64) for part in (row.ids, row.type_ids, ends)))


def _kept(tokens: _Tokens, filled: _Filled, side: str, max_tokens: int) -> NDArray[np.int64]:
    """The places of the tokens that stay."""
    texts = [np.flatnonzero(_lies_in(characters, tokens.last_characters)) for characters in filled.texts]
    others = len(tokens.ids) - sum(map(len, texts))
    if others > max_tokens:
        raise InputTooLong(f"inputs: found {others} tokens beside the texts, this task takes at most {max_tokens}")
    is_kept = np.ones(len(tokens.ids), dtype=bool)
    for places, length in zip(texts, kept_lengths([len(text) for text in texts], max_tokens - others), strict=True):
        is_kept[places[length:] if side == "right" else places[: len(places) - length]] = False
    return np.flatnonzero(is_kept)


def _lies_in(characters: range, last_characters: NDArray[np.int64]) -> NDArray[np.bool_]:
    return (last_characters >= characters.start) & (last_characters < characters.stop)
