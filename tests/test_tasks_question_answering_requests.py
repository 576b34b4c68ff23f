"""What a question may ask, what is cut on request, and what is refused by field."""

from __future__ import annotations

import pytest

from prefixbank.model_store.errors import InputTooLong, InvalidRequest
from prefixbank.model_store.task_prompt import Preprocessing
from prefixbank.model_store.tasks.features import Text, Truncation, Words
from prefixbank.model_store.tasks.rows import MAX_WINDOWS
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from tests.question_cases import CONTEXT, FAMILY, QUESTION, windows
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer("bert"))


@pytest.mark.parametrize(
    ("inputs", "items", "batched"),
    [
        ({"question": "q", "context": "c"}, (Text("q", "c"),), False),
        ([{"question": "q", "context": "c"}], (Text("q", "c"),), True),
    ],
)
def test_inputs_are_one_question_or_many(inputs: object, items: object, batched: bool) -> None:
    found = FAMILY.parse_inputs(inputs, Preprocessing(max_tokens=8), FAMILY.parse_parameters({}))
    assert found == (items, batched)


@pytest.mark.parametrize(
    "inputs",
    ["q", None, {"question": "q"}, {"question": "q", "context": " "}, {"question": 1, "context": "c"}, [["q", "c"]]],
)
def test_inputs_of_another_form_are_refused(inputs: object) -> None:
    with pytest.raises(InvalidRequest, match=r"inputs: found .*, wanted \{\"question\""):
        FAMILY.parse_inputs(inputs, Preprocessing(max_tokens=8), FAMILY.parse_parameters({}))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_k": 0}, r"parameters.top_k: found 0"),
        ({"doc_stride": -1}, r"parameters.doc_stride: found -1"),
        ({"handle_impossible_answer": "yes"}, r"parameters.handle_impossible_answer: found 'yes'"),
        ({"stride": 1}, r"parameters: found 'stride', wanted one of align_to_words, doc_stride"),
    ],
)
def test_wrong_parameters_are_refused_by_field(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        FAMILY.parse_parameters(parameters)


@pytest.mark.parametrize("item", [Text("q"), Words(("q",))])
def test_a_question_without_a_text_is_refused(tokenizer: TextTokenizer, item: Text | Words) -> None:
    with pytest.raises(InvalidRequest, match="context"):
        FAMILY.encode(tokenizer, Preprocessing(max_tokens=8), item, max_tokens=8)


def test_a_stride_without_a_step_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"parameters.doc_stride: found 40, wanted less than the \d+ tokens"):
        windows(tokenizer, max_tokens=40, doc_stride=40)


def test_a_question_that_leaves_no_room_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputTooLong, match="no token of 12 for the context"):
        windows(tokenizer, max_tokens=12)


def test_a_long_question_is_refused_unless_the_request_cuts_it(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputTooLong, match=r"inputs.question: found \d+ tokens, this task takes at most 4"):
        windows(tokenizer, max_question_len=4)
    rows = windows(tokenizer, max_question_len=4, truncation=True)
    assert all(row.truncated for row in rows)
    assert rows[0].alignment.is_special.index(False) == 6


def test_a_text_of_too_many_windows_is_refused_or_cut(tokenizer: TextTokenizer) -> None:
    context = "film " * 100_000
    with pytest.raises(InputTooLong, match=r"found \d+ (windows|characters)"):
        windows(tokenizer, context)
    rows = windows(tokenizer, context, truncation=True)
    assert len(rows) == MAX_WINDOWS
    assert all(row.truncated for row in rows)


def test_one_row_is_refused_to_a_text_of_several(tokenizer: TextTokenizer) -> None:
    prep, item = Preprocessing(max_tokens=40), Text(QUESTION, CONTEXT)
    with pytest.raises(InputTooLong, match=r"found \d+ windows"):
        FAMILY.encode(tokenizer, prep, item, max_tokens=40)
    row = FAMILY.encode(tokenizer, prep, item, max_tokens=40, truncation=Truncation.CUT)
    assert row.truncated
    assert row.token_ids.tolist() == windows(tokenizer)[0].token_ids.tolist()


def test_a_window_is_never_longer_than_asked(tokenizer: TextTokenizer) -> None:
    assert max(row.num_tokens for row in windows(tokenizer, max_tokens=64, max_seq_len=48)) == 48
    assert max(row.num_tokens for row in windows(tokenizer, max_tokens=40, max_seq_len=48)) == 40
