"""TextTokenizer: a Hugging Face fast tokenizer that many threads may use at once.

`tokenizers.Tokenizer` keeps truncation and padding as mutable state, so transformers changes the tokenizer at each
call. Here a private copy without truncation, padding and special tokens splits the texts; cutting and special
tokens come afterwards, on values. The results equal transformers' to the last id and offset.

It refuses to know tasks, limits and what is done about a text that is too long.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Encoding as TokenEncoding
from tokenizers import Tokenizer

from prefixbank.model_store.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers.processors import PostProcessor


class _Splitter(NamedTuple):
    plain: Tokenizer
    """Splits; adds no special token, trims no offset, cuts and pads nothing."""
    processor: PostProcessor | None


class TextTokenizer:
    """Splits texts and puts special tokens around them.

    Args:
        raw: a fast tokenizer as loaded beside the backbone's weights. It is copied, never changed.
    """

    def __init__(self, raw: Tokenizer) -> None:
        self._spec = raw.to_str()
        self._splitter = _splitter(self._spec)
        self.unknown_id = _unknown_id(json.loads(self._spec)["model"], self._splitter.plain)
        self.mask_id = mask_id_of(raw)
        """The token that a masked language model fills in; None where the vocabulary has none."""
        self.marks_continuation = bool(getattr(raw.model, "continuing_subword_prefix", None))
        """Tokens inside a word look different from those that begin one (WordPiece)."""

    def split(self, text: str | Sequence[str], *, add_prefix_space: bool = False) -> TokenEncoding:
        """The tokens of one text, or of one text given as words, without special tokens."""
        is_whole = isinstance(text, str)
        _refuse_surrogates([text] if isinstance(text, str) else text)
        plain = self._splitter_for(add_prefix_space).plain
        items: list[Any] = [text if is_whole else list(text)]
        # encode_batch, because encode holds the interpreter's lock while it works
        encoding: TokenEncoding = plain.encode_batch(items, is_pretokenized=not is_whole, add_special_tokens=False)[0]
        return encoding

    def finish(
        self, first: TokenEncoding, second: TokenEncoding | None = None, *, add_prefix_space: bool = False
    ) -> TokenEncoding:
        """The row for one text or a pair: special tokens and type ids added, also to what `truncate` cut off."""
        plain, processor = self._splitter_for(add_prefix_space)
        if processor is None:
            return plain.post_process(first, second, True)
        return processor.process(first, second, True)

    def num_special_tokens(self, *, pair: bool) -> int:
        """How many tokens `finish` adds."""
        processor = self._splitter.processor
        return 0 if processor is None else int(processor.num_special_tokens_to_add(pair))

    def token(self, token_id: int) -> str:
        """The vocabulary's entry for a token id."""
        token = self._splitter.plain.id_to_token(token_id)
        assert token is not None, f"token id {token_id} is outside the vocabulary. This is a bug."
        return str(token)

    def join(self, tokens: Sequence[str]) -> str:
        """The text that tokens stand for, as the tokenizer's decoder puts it."""
        decoder = self._splitter.plain.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    def _splitter_for(self, add_prefix_space: bool) -> _Splitter:
        return self._prefix_space_splitter if add_prefix_space else self._splitter

    @functools.cached_property
    def _prefix_space_splitter(self) -> _Splitter:
        """Differs from the plain one only where the tokenizer is byte-level; built at first use."""
        spec = json.loads(self._spec)
        changed = [_set_prefix_space(spec[part]) for part in ("pre_tokenizer", "post_processor")]
        return _splitter(json.dumps(spec)) if any(changed) else self._splitter


def mask_id_of(raw: Tokenizer) -> int | None:
    """The token that a masked language model fills in, as the BERT or the RoBERTa family calls it."""
    ids = (raw.token_to_id(name) for name in ("[MASK]", "<mask>"))
    return next((token_id for token_id in ids if token_id is not None), None)


def read_only(ids: list[int]) -> NDArray[np.int64]:
    """Token ids as an array that nobody can change."""
    array = np.array(ids, dtype=np.int64)
    array.setflags(write=False)
    return array


def _splitter(spec: str) -> _Splitter:
    plain = Tokenizer.from_str(spec)
    plain.no_truncation()
    plain.no_padding()
    processor = plain.post_processor
    # Offsets are trimmed by some post-processors, special tokens or not, and trimming twice is once too often
    plain.post_processor = None
    return _Splitter(plain, processor)


def _set_prefix_space(part: dict[str, Any] | None) -> bool:
    """Switch `add_prefix_space` on in a byte-level component, nested ones included; whether there was one."""
    if part is None:
        return False
    found = part.get("type") in ("ByteLevel", "RobertaProcessing")
    if found:
        part["add_prefix_space"] = True
    for child in part.get("pretokenizers", []) + part.get("processors", []):
        found |= _set_prefix_space(child)
    return found


def _unknown_id(model: dict[str, Any], plain: Tokenizer) -> int | None:
    """The token id that stands for what the vocabulary lacks."""
    if model["type"] == "Unigram":
        return model.get("unk_id")
    candidates = (model.get("unk_token"), "<unk>", "[UNK]")
    ids = (plain.token_to_id(token) for token in candidates if token)
    return next((token_id for token_id in ids if token_id is not None), None)


def _refuse_surrogates(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"inputs: found a lone surrogate at character {error.start}, wanted Unicode text"
            raise InvalidRequest(message) from error
