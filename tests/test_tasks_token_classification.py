"""Entities are those of transformers' TokenClassificationPipeline, on tiny random models."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TokenClassificationPipeline,
)

from prefixbank.model_store.errors import InputTooLong, InvalidRequest
from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.features import Text, Truncation, Words
from prefixbank.model_store.tasks.spans import spans_of
from prefixbank.model_store.tasks.token_classification import (
    NO_TARGET,
    TokenClassification,
    first_token_targets,
    word_tags,
)
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from tests.tiny import SENTENCES, tiny_config, tiny_tokenizer

if TYPE_CHECKING:
    from prefixbank.model_store.tasks.features import Features, TaskInput

FAMILY = TokenClassification()
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")
TEXTS = (
    *SENTENCES,
    "",
    "   ",
    "Zürich, Łódź & Xẍ ☃ 👩‍👩‍👧 [SEP] q",
    "unbelievablylongword Berlin's John-Smith",
    "a\x00b \u200b c",
)
STRATEGIES = ("none", "simple", "first", "average", "max")


class Tagger(NamedTuple):
    """A tiny model behind transformers' pipeline, and the same behind our functions."""

    pipeline: TokenClassificationPipeline
    model: PreTrainedModel
    tokenizer: TextTokenizer

    def logits(self, features: Features) -> np.ndarray:
        ids, types = torch.from_numpy(features.token_ids.copy()), torch.from_numpy(features.type_ids.copy())
        with torch.inference_mode():
            return self.model(input_ids=ids[None], token_type_ids=types[None]).logits[0].numpy()

    def ours(self, item: TaskInput, max_tokens: int = 512, **asked: object) -> list[dict[str, Any]]:
        parameters = FAMILY.parse_parameters(asked)
        prep = Preprocessing(max_tokens=max_tokens)
        rows = FAMILY.encode_rows(self.tokenizer, prep, item, parameters, max_tokens=max_tokens)
        return FAMILY.decode([self.logits(row) for row in rows], rows, LABELS, parameters)

    def theirs(self, inputs: str | list[str], **asked: object) -> list[dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Tokenizer does not support real words")
            return self.pipeline(inputs, **asked)


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def tagger(request: pytest.FixtureRequest) -> Tagger:
    raw = tiny_tokenizer(request.param)
    config = tiny_config(request.param, raw.get_vocab_size())
    config.id2label = dict(enumerate(LABELS))
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(config).eval()
    for weight in (model.classifier.weight, model.base_model.embeddings.word_embeddings.weight):
        torch.nn.init.normal_(weight, std=0.7)
    unknown = "[UNK]" if request.param == "bert" else "<unk>"
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(raw.to_str()), unk_token=unknown, pad_token="<pad>", model_max_length=512
    )
    theirs.pad_token = "[PAD]" if request.param == "bert" else "<pad>"
    return Tagger(TokenClassificationPipeline(model=model, tokenizer=theirs, device="cpu"), model, TextTokenizer(raw))


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [without_score(entity) for entity in ours] == [without_score(entity) for entity in theirs]
    np.testing.assert_allclose([e["score"] for e in ours], [e["score"] for e in theirs], atol=1e-6)
    assert all(type(entity["score"]) is float for entity in ours)


def without_score(entity: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entity.items() if key != "score"}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ignored", [["O"], [], ["O", "PER", "B-LOC"]])
def test_entities_are_transformers(tagger: Tagger, strategy: str, ignored: list[str]) -> None:
    asked = {"aggregation_strategy": strategy, "ignore_labels": ignored}
    found = [tagger.ours(Text(text), **asked) for text in TEXTS]
    for text, ours in zip(TEXTS, found, strict=True):
        assert_same(ours, tagger.theirs(text, **asked))
    assert sum(map(len, found)) > 20


def test_the_ignored_label_is_o_unless_asked(tagger: Tagger) -> None:
    for text in TEXTS:
        asked = {"aggregation_strategy": "none"}
        assert_same(tagger.ours(Text(text), **asked), tagger.theirs(text, **asked))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_of_words_are_transformers(tagger: Tagger, strategy: str) -> None:
    for delimiter in (" ", "", "--"):
        for sentence in SENTENCES:
            asked = {"aggregation_strategy": strategy, "is_split_into_words": True, "delimiter": delimiter}
            theirs = tagger.theirs(sentence.split(), **asked)
            theirs = theirs[0] if theirs and isinstance(theirs[0], list) else theirs
            assert_same(tagger.ours(Words(tuple(sentence.split()), delimiter), **asked), theirs)


@pytest.mark.parametrize("stride", [0, 3, 11])
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_entities_of_windows_are_transformers(tagger: Tagger, strategy: str, stride: int) -> None:
    text = " ".join(TEXTS)
    asked = {"aggregation_strategy": strategy, "stride": stride, "ignore_labels": ["O"]}
    tagger.pipeline.tokenizer.model_max_length = 24
    theirs = tagger.theirs(text, **asked)
    tagger.pipeline.tokenizer.model_max_length = 512
    assert_same(tagger.ours(Text(text), max_tokens=24, **asked), theirs)


def test_a_short_text_with_a_stride_is_one_row(tagger: Tagger) -> None:
    assert_same(tagger.ours(Text(SENTENCES[0]), stride=4), tagger.ours(Text(SENTENCES[0])))


def test_the_default_strategy_never_tears_a_word(tagger: Tagger) -> None:
    for sentence in SENTENCES:
        entities = tagger.ours(Words(tuple(sentence.split())), is_split_into_words=True, ignore_labels=[])
        words = sentence.split()
        starts = {sentence.index(word) if i == 0 else len(" ".join(words[:i])) + 1 for i, word in enumerate(words)}
        assert {entity["start"] for entity in entities} <= starts


def test_the_default_strategy_leaves_punctuation_out_where_first_cannot() -> None:
    """Byte-level tokens do not say whether they continue a word; the pipeline's `first` glues "Oslo." together."""
    tokenizer = TextTokenizer(tiny_tokenizer("roberta"))
    text = Text("Oslo.")
    features = FAMILY.encode(tokenizer, Preprocessing(max_tokens=64), text, max_tokens=64)
    logits = np.zeros((features.num_tokens, 2), dtype=np.float32)
    logits[features.alignment.first_tokens[0], 1] = 9
    found = {
        strategy: FAMILY.decode([logits], [features], ["O", "B-LOC"], FAMILY.parse_parameters(asked))[0]["word"]
        for strategy, asked in (("default", {}), ("first", {"aggregation_strategy": "first"}))
    }
    assert found == {"default": "Oslo", "first": "Oslo."}


def test_the_default_strategy_reads_the_tokens_that_training_labels(tagger: Tagger) -> None:
    words = tuple(SENTENCES[2].split())
    prep = Preprocessing(max_tokens=64)
    features = FAMILY.encode(tagger.tokenizer, prep, Words(words), max_tokens=64)
    logits = tagger.logits(features)
    labels = ["A", "B", "C", "D", "E", "F"]
    tags, _ = word_tags(logits, features, labels)
    fused = FAMILY.decode([logits], [features], labels, FAMILY.parse_parameters({}))
    expected = [tag for i, tag in enumerate(tags) if i == 0 or tag != tags[i - 1]]
    assert [entity["entity_group"] for entity in fused] == expected


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer("bert"))


def encode(tokenizer: TextTokenizer, item: TaskInput, max_tokens: int = 64, side: str = "right") -> Features:
    prep = Preprocessing(max_tokens=max_tokens, truncation_side=side)
    return FAMILY.encode(tokenizer, prep, item, max_tokens=max_tokens, truncation=Truncation.CUT)


def test_only_the_first_token_of_a_word_is_a_target(tokenizer: TextTokenizer) -> None:
    features = encode(tokenizer, Words(("the", "xyz", "film")))
    assert first_token_targets(features, [3, 4, 5]).tolist() == [
        NO_TARGET, 3, 4, NO_TARGET, NO_TARGET, 5, NO_TARGET,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("read", "tags"),
    [
        (("B-X", "I-X", "B-Y"), ["B-X", "I-X", "I-X", "B-Y", "O"]),
        (("B-X", "B-X", "O"), ["B-X", "O", "B-X", "O", "O"]),
        (("B-Y", "I-X", "O"), ["B-Y", "O", "I-X", "O", "O"]),
        (("O", "I-X", "O"), ["O", "O", "I-X", "O", "O"]),
    ],
)
def test_a_word_without_a_token_goes_on_with_the_span_around_it(
    read: tuple[str, ...], tags: list[str], tokenizer: TextTokenizer
) -> None:
    features = encode(tokenizer, Words(("the", "", "film", "joy", "cut")), max_tokens=5)
    labels = ["O", "B-X", "I-X", "B-Y"]
    logits = 9 * np.eye(4, dtype=np.float32)[[0, *map(labels.index, read), 0]]
    found, scores = word_tags(logits, features, labels)
    assert (found, scores[4]) == (tags, 0.0)
    answered = FAMILY.decode([logits], [features], labels, FAMILY.parse_parameters({"is_split_into_words": True}))
    spans = [(span.kind, span.start, span.end) for span in spans_of(tags)]
    assert [entity["entity_group"] for entity in answered] == [kind for kind, *_ in spans]
    assert [len(entity["word"].split()) for entity in answered] == [
        sum(bool(("the", "", "film", "joy", "cut")[word]) for word in range(start, end)) for _, start, end in spans
    ]


def test_words_cut_on_the_left_keep_their_targets(tokenizer: TextTokenizer) -> None:
    features = encode(tokenizer, Words(("the", "film", "joy")), max_tokens=4, side="left")
    assert first_token_targets(features, [3, 4, 5]).tolist() == [NO_TARGET, 4, 5, NO_TARGET]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"aggregation_strategy": "best"}, r"parameters.aggregation_strategy: found 'best'.*'none', 'simple'"),
        ({"stride": -1}, r"parameters.stride: found -1.*greater than or equal to 0"),
        ({"stride": "3"}, r"parameters.stride: found '3'.*integer"),
        ({"stride": True}, r"parameters.stride: found True.*integer"),
        ({"stride": 3, "aggregation_strategy": "none"}, "stride needs an aggregation_strategy"),
        ({"stride": 3, "truncation": True}, "wanted one of them"),
        ({"ignore_labels": "O"}, r"parameters.ignore_labels: found 'O'.*list"),
        ({"ignore_labels": ["O", 1]}, r"parameters.ignore_labels.1: found 1.*string"),
        ({"delimiter": "-"}, "delimiter needs is_split_into_words"),
        ({"top_k": 1}, r"parameters: found 'top_k', wanted one of aggregation_strategy"),
    ],
)
def test_wrong_parameters_are_refused_by_field(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        FAMILY.parse_parameters(parameters)


def test_null_parameters_are_as_absent() -> None:
    names = ("aggregation_strategy", "ignore_labels", "stride", "truncation")
    assert FAMILY.parse_parameters(dict.fromkeys(names)).ignored == {"O"}


@pytest.mark.parametrize(
    ("inputs", "asked", "items", "batched"),
    [
        ("a b", {}, (Text("a b"),), False),
        (["a", "b"], {}, (Text("a"), Text("b")), True),
        (["a", "b"], {"is_split_into_words": True}, (Words(("a", "b")),), False),
        ([["a"], ["b", "c"]], {"is_split_into_words": True}, (Words(("a",)), Words(("b", "c"))), True),
        (["a"], {"is_split_into_words": True, "delimiter": ""}, (Words(("a",), ""),), False),
    ],
)
def test_inputs_are_one_text_or_many(inputs: object, asked: dict[str, object], items: object, batched: bool) -> None:
    found = FAMILY.parse_inputs(inputs, Preprocessing(max_tokens=8), FAMILY.parse_parameters(asked))
    assert found == (items, batched)


@pytest.mark.parametrize("inputs", [None, 3, {"text": "a"}, [None], [["a"]], ["a", 1]])
def test_inputs_of_another_form_are_refused(inputs: object) -> None:
    with pytest.raises(InvalidRequest, match=r"inputs: found .*, wanted one text or a list of texts"):
        FAMILY.parse_inputs(inputs, Preprocessing(max_tokens=8), FAMILY.parse_parameters({}))


def test_a_pair_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InvalidRequest, match="takes no pair"):
        encode(tokenizer, Text("a", "b"))


def test_a_long_text_is_refused_unless_the_request_cuts_it(tokenizer: TextTokenizer) -> None:
    prep = Preprocessing(max_tokens=8)
    long = Text("film " * 10)
    with pytest.raises(InputTooLong, match="found 12 tokens"):
        FAMILY.encode_rows(tokenizer, prep, long, FAMILY.parse_parameters({}), max_tokens=8)
    cut = FAMILY.parse_parameters({"truncation": True})
    assert FAMILY.encode_rows(tokenizer, prep, long, cut, max_tokens=8)[0].truncated
