"""Scores are those of transformers' TextClassificationPipeline; inputs and parameters are refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, TextClassificationPipeline

from prefixbank.model_store.errors import InputTooLong, InvalidRequest
from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.features import Text, Words
from prefixbank.model_store.tasks.text_classification import TextClassification
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from tests.tiny import SENTENCES, tiny_config, tiny_tokenizer

if TYPE_CHECKING:
    from prefixbank.model_store.tasks.features import Features

FAMILY = TextClassification()
SINGLE = Preprocessing(max_tokens=64)
PAIR = Preprocessing(max_tokens=64, pair=True)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer("bert"))


@pytest.fixture(scope="module", params=[1, 2, 5])
def pipeline(request: pytest.FixtureRequest) -> TextClassificationPipeline:
    raw = Tokenizer.from_str(tiny_tokenizer("bert").to_str())
    config = tiny_config("bert", raw.get_vocab_size())
    config.id2label = {c: f"label {c}" for c in range(request.param)}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=2)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", model_input_names=names)
    return TextClassificationPipeline(model=model, tokenizer=tokenizer, device="cpu")


def logits_of(pipeline: TextClassificationPipeline, features: Features) -> np.ndarray:
    ids, types = torch.from_numpy(features.token_ids.copy()), torch.from_numpy(features.type_ids.copy())
    with torch.inference_mode():
        return pipeline.model(input_ids=ids[None], token_type_ids=types[None]).logits[0].numpy()


@pytest.mark.parametrize("function", [None, "softmax", "sigmoid", "none"])
@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_labels_and_scores_are_transformers(
    pipeline: TextClassificationPipeline, tokenizer: TextTokenizer, function: str | None, top_k: int | None
) -> None:
    labels = [f"label {c}" for c in range(pipeline.model.config.num_labels)]
    asked = FAMILY.parse_parameters({"function_to_apply": function, "top_k": top_k})
    pairs = [Text(first, second) for first, second in zip(SENTENCES, reversed(SENTENCES), strict=True)]
    for item in (*map(Text, SENTENCES), *pairs):
        rows = FAMILY.encode_rows(tokenizer, SINGLE if item.text_pair is None else PAIR, item, asked, max_tokens=64)
        ours = FAMILY.decode([logits_of(pipeline, rows[0])], rows, labels, asked)
        texts = {key: text for key, text in item._asdict().items() if text is not None}
        theirs = pipeline(texts, function_to_apply=function, top_k=top_k)
        assert [choice["label"] for choice in ours] == [choice["label"] for choice in theirs]
        np.testing.assert_allclose([c["score"] for c in ours], [c["score"] for c in theirs], atol=1e-6)
        assert all(type(choice["score"]) is float for choice in ours)


def test_extreme_logits_do_not_overflow(tokenizer: TextTokenizer) -> None:
    features = FAMILY.encode(tokenizer, SINGLE, Text("a"), max_tokens=64)
    logits = np.array([-1e4, 1e4, 0], dtype=np.float32)
    for function in ("softmax", "sigmoid"):
        asked = FAMILY.parse_parameters({"function_to_apply": function})
        assert FAMILY.decode([logits], [features], "abc", asked)[0] == {"label": "b", "score": 1.0}


@pytest.mark.parametrize(
    ("inputs", "items", "batched"),
    [
        ("a", (Text("a"),), False),
        ("", (Text(""),), False),
        ({"text": "a"}, (Text("a"),), False),
        (["a", "b"], (Text("a"), Text("b")), True),
        (["a", {"text": "b"}], (Text("a"), Text("b")), True),
    ],
)
def test_inputs_are_one_text_or_many(inputs: object, items: object, batched: bool) -> None:
    assert FAMILY.parse_inputs(inputs, SINGLE, FAMILY.parse_parameters({})) == (items, batched)


@pytest.mark.parametrize(
    ("inputs", "items", "batched"),
    [
        ({"text": "a", "text_pair": "b"}, (Text("a", "b"),), False),
        (["a", "b"], (Text("a", "b"),), False),
        ([["a", "b"]], (Text("a", "b"),), True),
        ([["a", "b"], {"text": "c", "text_pair": ""}], (Text("a", "b"), Text("c", "")), True),
    ],
)
def test_inputs_are_one_pair_or_many(inputs: object, items: object, batched: bool) -> None:
    assert FAMILY.parse_inputs(inputs, PAIR, FAMILY.parse_parameters({})) == (items, batched)


@pytest.mark.parametrize(
    "inputs",
    [None, 3, True, {}, {"text": 1}, {"text": "a", "text_pair": "b"}, {"texts": "a"}, [3], [["a", "b"]], [["a"]]],
)
def test_inputs_of_another_form_are_refused(inputs: object) -> None:
    with pytest.raises(InvalidRequest, match=r"inputs: found .*, wanted one text or a list of texts"):
        FAMILY.parse_inputs(inputs, SINGLE, FAMILY.parse_parameters({}))


@pytest.mark.parametrize("inputs", ["a", ["a"], ["a", "b", "c"], {"text": "a"}, [["a", "b", "c"]], [["a", None]]])
def test_a_pair_task_refuses_what_is_no_pair(inputs: object) -> None:
    with pytest.raises(InvalidRequest, match=r"inputs: found .*, wanted two texts"):
        FAMILY.parse_inputs(inputs, PAIR, FAMILY.parse_parameters({}))


def test_an_error_never_repeats_the_text() -> None:
    with pytest.raises(InvalidRequest) as caught:
        FAMILY.parse_inputs([["my secret text"]], SINGLE, FAMILY.parse_parameters({}))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_k": 0}, r"parameters.top_k: found 0.*greater than or equal to 1"),
        ({"top_k": 1.5}, r"parameters.top_k: found 1.5.*integer"),
        ({"function_to_apply": "relu"}, r"parameters.function_to_apply: found 'relu'.*'softmax', 'sigmoid' or 'none'"),
        ({"truncation": "yes"}, r"parameters.truncation: found 'yes'.*boolean"),
        ({"stride": 1}, r"parameters: found 'stride', wanted one of function_to_apply, top_k, truncation"),
        ({"x" * 999: 1}, r"parameters: found 'x{39}\.\.\., wanted one of"),
    ],
)
def test_wrong_parameters_are_refused_by_field(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        FAMILY.parse_parameters(parameters)


def test_an_empty_second_text_is_still_a_pair(tokenizer: TextTokenizer) -> None:
    features = FAMILY.encode(tokenizer, PAIR, Text("the", ""), max_tokens=64)
    assert features.type_ids.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("item", [Words(("a",)), Text("a", "b")])
def test_a_single_text_task_encodes_nothing_else(tokenizer: TextTokenizer, item: Text | Words) -> None:
    with pytest.raises(InvalidRequest, match="wanted one text"):
        FAMILY.encode(tokenizer, SINGLE, item, max_tokens=64)


def test_a_long_pair_is_refused_unless_the_request_cuts_it(tokenizer: TextTokenizer) -> None:
    item = Text("film " * 10, "the film")
    with pytest.raises(InputTooLong, match="found 15 tokens, this task takes at most 8"):
        FAMILY.encode_rows(tokenizer, PAIR, item, FAMILY.parse_parameters({}), max_tokens=8)
    (row,) = FAMILY.encode_rows(tokenizer, PAIR, item, FAMILY.parse_parameters({"truncation": True}), max_tokens=8)
    assert row.truncated
    assert row.type_ids.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
