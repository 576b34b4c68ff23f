"""Answers have the shapes that Hugging Face's clients unpack, and never come from another row's logits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from huggingface_hub import TextClassificationOutputElement, TokenClassificationOutputElement

from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.serving.answers import answer
from prefixbank.serving.encoding import Encoder
from tests.test_encoding import LIMITS, POSITIONS, prompt_of
from tests.tiny import tiny_tokenizer

TEXT = prompt_of()
TOKEN = prompt_of(TaskFamily.TOKEN_CLASSIFICATION)
PAIR = prompt_of(pair=True)
B_X = np.array([0, 5, 0], dtype=np.float32)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    encoder = Encoder(TextTokenizer(tiny_tokenizer("bert")), lambda offset: POSITIONS - offset, LIMITS)
    encoder.close()
    return encoder


def ask(encoder: Encoder, prompt: Any, inputs: object, **asked: object) -> Any:
    """The answer when every logit row says B-X."""
    request = encoder.encode_now(prompt, inputs, asked)
    is_token_level = prompt.family is TaskFamily.TOKEN_CLASSIFICATION
    logits = [np.tile(B_X, (row.num_tokens, 1)) if is_token_level else B_X for row in request.rows]
    found = answer(prompt, request, logits)
    return json.loads(json.dumps(found))


def test_one_text_gives_a_nested_list_of_labels(encoder: Encoder) -> None:
    found = ask(encoder, TEXT, "the film")
    assert [[choice["label"] for choice in choices] for choices in found] == [["B-X", "O", "I-X"]]
    assert TextClassificationOutputElement.parse_obj_as_list(found[0])[0].score == pytest.approx(0.98670, abs=1e-5)


def test_a_batch_of_texts_gives_a_list_for_each(encoder: Encoder) -> None:
    found = ask(encoder, TEXT, ["the film", "a film", ""], top_k=1)
    assert [[choice["label"] for choice in choices] for choices in found] == [["B-X"]] * 3


def test_more_labels_than_there_are_is_all_of_them(encoder: Encoder) -> None:
    assert len(ask(encoder, TEXT, "the film", top_k=10**30)[0]) == 3


def test_one_pair_gives_a_nested_list_of_labels(encoder: Encoder) -> None:
    for pair in ({"text": "the film", "text_pair": "a film"}, ["the film", "a film"]):
        assert len(ask(encoder, PAIR, pair)) == 1


def test_one_text_gives_a_flat_list_of_entities(encoder: Encoder) -> None:
    found = ask(encoder, TOKEN, "the film")
    assert [(e["entity_group"], e["word"], e["start"], e["end"]) for e in found] == [
        ("X", "the", 0, 3),
        ("X", "film", 4, 8),
    ]
    assert TokenClassificationOutputElement.parse_obj_as_list(found)[0].entity_group == "X"


def test_without_aggregation_tokens_have_an_entity_and_an_index(encoder: Encoder) -> None:
    found = ask(encoder, TOKEN, "the film", aggregation_strategy="none")
    assert [(token["entity"], token["index"]) for token in found] == [("B-X", 1), ("B-X", 2)]


def test_a_batch_of_texts_gives_a_list_of_entities_for_each(encoder: Encoder) -> None:
    assert [len(entities) for entities in ask(encoder, TOKEN, ["the film", "", "a"])] == [2, 0, 1]


def test_windows_of_one_text_give_one_answer(encoder: Encoder) -> None:
    text = "the film " * 12
    found = ask(encoder, TOKEN, [text, "the"], stride=2)
    assert [[e["start"] for e in entities] for entities in found] == [
        [i for i in range(len(text)) if text[i : i + 3] == "the" or text[i : i + 4] == "film"],
        [0],
    ]


@pytest.mark.parametrize("shape", [(4,), (2,), (1, 3), (4, 3)])
def test_logits_of_another_row_or_task_are_a_bug(encoder: Encoder, shape: tuple[int, ...]) -> None:
    request = encoder.encode_now(TEXT, "the film")
    with pytest.raises(AssertionError, match="This is a bug"):
        answer(TEXT, request, [np.zeros(shape, dtype=np.float32)])


def test_a_missing_row_of_logits_is_a_bug(encoder: Encoder) -> None:
    request = encoder.encode_now(TEXT, ["the film", "a"])
    with pytest.raises(AssertionError, match="This is a bug"):
        answer(TEXT, request, [np.zeros(3, dtype=np.float32)])
