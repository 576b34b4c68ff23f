"""Multiple choice: a row per choice, a softmax over the choices of one premise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefixbank.model_store.errors import InputTooLong, InvalidRequest
from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.features import Text
from prefixbank.model_store.tasks.multiple_choice import Choices, MultipleChoice, choice_scores
from prefixbank.model_store.tasks.rows import pooled_row
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from tests.tiny import tiny_tokenizer

FAMILY = MultipleChoice()
PREP = Preprocessing(max_tokens=64, pair=True)
COPA = Choices("The film was long.", ("I left.", "I would watch it again."), "so")


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer("bert"))


def parse(inputs: object) -> Any:
    return FAMILY.parse_inputs(inputs, PREP, FAMILY.parse_parameters({}))


def test_each_choice_is_a_pair_with_the_premise_and_its_connector(tokenizer: TextTokenizer) -> None:
    rows = FAMILY.encode(tokenizer, PREP, COPA, max_tokens=64)
    for row, choice in zip(rows, COPA.choices, strict=True):
        pair = Text("The film was long. so", choice)
        alone = pooled_row(tokenizer, PREP, pair, max_tokens=64, truncation=FAMILY.parse_parameters({}).when_too_long)
        assert row.token_ids.tolist() == alone.token_ids.tolist()
        assert row.type_ids.tolist() == alone.type_ids.tolist()
        assert row.choice == choice


def test_without_a_connector_the_premise_stands_alone() -> None:
    assert Choices("a", ("b", "c")).pairs == (Text("a", "b"), Text("a", "c"))


def test_scores_are_a_softmax_over_the_choices(tokenizer: TextTokenizer) -> None:
    rows = FAMILY.encode(tokenizer, PREP, COPA, max_tokens=64)
    logits = [np.array([1.0], dtype=np.float32), np.array([3.0], dtype=np.float32)]
    answers = FAMILY.decode(logits, rows, ["score"], FAMILY.parse_parameters({}))
    best = 1 / (1 + np.exp(-2))
    assert answers == [
        {"label": COPA.choices[1], "index": 1, "score": pytest.approx(best)},
        {"label": COPA.choices[0], "index": 0, "score": pytest.approx(1 - best)},
    ]
    assert FAMILY.decode(logits, rows, ["score"], FAMILY.parse_parameters({"top_k": 1})) == answers[:1]
    np.testing.assert_allclose(choice_scores(logits), [1 - best, best], rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "items", "batched"),
    [
        ({"premise": "p", "choices": ["a", "b"]}, (Choices("p", ("a", "b")),), False),
        ({"premise": "p", "choices": ["a", "b"], "question": "cause"}, (Choices("p", ("a", "b"), "because"),), False),
        ([{"premise": "p", "choices": ["a", "b", "c"], "question": "effect"}], (Choices("p", (*"abc",), "so"),), True),
    ],
)
def test_inputs_are_one_premise_or_many(inputs: object, items: object, batched: bool) -> None:
    assert parse(inputs) == (items, batched)


@pytest.mark.parametrize(
    "inputs",
    [
        "p",
        {"premise": "p"},
        {"premise": "p", "choices": ["a"]},
        {"premise": "p", "choices": ["a"] * 65},
        {"premise": "p", "choices": "ab"},
        {"premise": "p", "choices": ["a", 1]},
        {"premise": " ", "choices": ["a", "b"]},
        {"premise": "p", "choices": ["a", "b"], "question": "why"},
        {"premise": "p", "choices": ["a", "b"], "question": ["cause"]},
        {"premise": "p", "choices": ["a", "b"], "label": 0},
    ],
)
def test_inputs_of_another_form_are_refused(inputs: object) -> None:
    with pytest.raises(InvalidRequest, match=r"inputs: found .*, wanted \{\"premise\""):
        parse(inputs)


def test_a_long_choice_is_refused_unless_the_request_cuts_it(tokenizer: TextTokenizer) -> None:
    item = Choices("film", ("film " * 30, "joy"))
    with pytest.raises(InputTooLong, match="found 34 tokens"):
        FAMILY.encode_rows(tokenizer, PREP, item, FAMILY.parse_parameters({}), max_tokens=16)
    rows = FAMILY.encode_rows(tokenizer, PREP, item, FAMILY.parse_parameters({"truncation": True}), max_tokens=16)
    assert [row.truncated for row in rows] == [True, False]


def test_the_head_has_one_output() -> None:
    assert FAMILY.num_outputs(["score"]) == 1
    assert not FAMILY.is_token_level
