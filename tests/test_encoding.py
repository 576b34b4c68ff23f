"""The Encoder validates before anyone holds an Encoding, on threads of its own, and bounds what waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixbank.model_store.errors import (
    BackboneError,
    InputTooLong,
    InvalidRequest,
    Overloaded,
    RequestError,
    ShuttingDown,
)
from prefixbank.model_store.task_prompt import (
    BackboneRef,
    Head,
    HeadSpec,
    Pooler,
    Preprocessing,
    TaskFamily,
    TaskPrompt,
)
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.serving.encoding import EncodedRequest, Encoder, EncodingLimits
from tests.tiny import SENTENCES, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

POSITIONS = 64
STRANGE = ("", " \t\n", "\x00", "a\x00b", "👩‍👩‍👧", "日本語", "e\u0301\u202e", "[CLS] [SEP]", "ﷺ" * 9)


def prompt_of(family: TaskFamily = TaskFamily.TEXT_CLASSIFICATION, offset: int = 0, **prep: object) -> TaskPrompt:
    settings = {"max_tokens": 16, **prep}
    return TaskPrompt(
        family=family,
        labels=("O", "B-X", "I-X"),
        layers=(),
        kv_N2HPD=torch.zeros(0, 2, 1, 0, 1),
        position_offset=offset,
        head=Head(HeadSpec(pooler=Pooler.NONE), torch.zeros(3, 1), torch.zeros(3)),
        preprocessing=Preprocessing(**settings),
        backbone=BackboneRef(fingerprint="0" * 64, architecture="bert", num_layers=1, num_heads=1, head_dim=1, width=1),
    )


TOKEN = prompt_of(TaskFamily.TOKEN_CLASSIFICATION)
QUESTIONS = prompt_of(TaskFamily.QUESTION_ANSWERING)
CHOICES = prompt_of(TaskFamily.MULTIPLE_CHOICE)
ROLES = prompt_of(TaskFamily.SEMANTIC_ROLES)
LIMITS = EncodingLimits(max_inputs=4, max_characters=10_000, max_rows=6, max_pending=2, num_threads=1)


TOKENIZER = TextTokenizer(tiny_tokenizer("bert"))


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return TOKENIZER


@pytest.fixture
def encoder(tokenizer: TextTokenizer) -> Iterator[Encoder]:
    with Encoder(tokenizer, lambda offset: POSITIONS - offset, LIMITS) as encoder:
        yield encoder


def encode(encoder: Encoder, inputs: object, prompt: TaskPrompt | None = None, **asked: object) -> EncodedRequest:
    return encoder.submit(prompt or prompt_of(), inputs, asked).result(10)


def test_one_text_is_one_row(encoder: Encoder) -> None:
    request = encode(encoder, "the film")
    assert [row.num_tokens for row in request.rows] == [4]
    assert (request.num_rows_of_input, request.batched, request.num_truncated, request.num_tokens) == (
        (1,),
        False,
        0,
        4,
    )


def test_a_batch_is_a_row_for_each_input_in_order(encoder: Encoder) -> None:
    request = encode(encoder, ["the", "the film", ""], TOKEN)
    assert [row.num_tokens for row in request.rows] == [3, 4, 2]
    assert request.batched


def test_a_long_text_with_a_stride_is_several_rows_of_one_input(encoder: Encoder) -> None:
    request = encode(encoder, ["the film " * 12, "the"], TOKEN, stride=2)
    assert request.num_rows_of_input == (2, 1)
    assert all(row.num_tokens <= 16 for row in request.rows)


@pytest.mark.parametrize("text", STRANGE)
@pytest.mark.parametrize("prompt", [prompt_of(), TOKEN])
def test_strange_texts_are_taken(encoder: Encoder, prompt: TaskPrompt, text: str) -> None:
    assert 2 <= encode(encoder, text, prompt, truncation=True).num_tokens <= 16


@pytest.mark.parametrize(
    ("inputs", "asked", "error", "message"),
    [
        ([], {}, InvalidRequest, "found 0 inputs, wanted 1 to 4"),
        (["a"] * 5, {}, InvalidRequest, "found 5 inputs, wanted 1 to 4"),
        (None, {}, InvalidRequest, "found null"),
        ("a\ud800", {}, InvalidRequest, "lone surrogate"),
        ("a", {"top": 1}, InvalidRequest, "found 'top'"),
        ("a " * 50, {}, InputTooLong, "found 52 tokens, this task takes at most 16"),
        ("a" * 100_000, {}, InputTooLong, "found 100001 characters, at most 10000"),
    ],
)
def test_what_does_not_fit_is_refused(
    encoder: Encoder, inputs: object, asked: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encode(encoder, inputs, **asked)


def question(context: str, question: str = "the film") -> dict[str, str]:
    return {"question": question, "context": context}


def choices(*choices: str, premise: str = "the film") -> dict[str, object]:
    return {"premise": premise, "choices": list(choices)}


def roles(*predicates: int, words: str = "the film was joy") -> dict[str, object]:
    return {"words": words.split(), "predicates": list(predicates)}


@pytest.mark.parametrize(
    ("prompt", "inputs", "num_rows"),
    [
        (QUESTIONS, question("a film"), (1,)),
        (QUESTIONS, [question("the film " * 12), question("a")], (4, 1)),
        (CHOICES, choices("a", "b", "c"), (3,)),
        (CHOICES, [choices("a", "b"), choices("a", "b", "c")], (2, 3)),
        (ROLES, roles(2), (1,)),
        (ROLES, [roles(2, 0), roles(1)], (2, 1)),
    ],
)
def test_an_input_is_the_rows_of_its_family(
    encoder: Encoder, prompt: TaskPrompt, inputs: object, num_rows: tuple[int, ...]
) -> None:
    request = encode(encoder, inputs, prompt)
    assert (request.num_rows_of_input, request.batched) == (num_rows, isinstance(inputs, list))
    assert tuple(len(rows) for rows in request.rows_of_inputs) == num_rows


@pytest.mark.parametrize(
    ("prompt", "inputs", "asked", "error", "message"),
    [
        (QUESTIONS, "the film", {}, InvalidRequest, 'found a string, wanted {"question"'),
        (QUESTIONS, question("a", "film " * 80), {}, InputTooLong, "question: found 80 tokens, this task takes at m"),
        (QUESTIONS, question("a", "film " * 20), {}, InputTooLong, "leaves no token of 16 for the context"),
        (QUESTIONS, question("a " * 5000), {}, InputTooLong, "found 10010 characters, at most 10000"),
        (QUESTIONS, question("a " * 4000), {}, InputTooLong, "windows of 11 tokens, at most 64"),
        (QUESTIONS, question("the film " * 25), {}, InvalidRequest, "found . rows or more, wanted at most 6"),
        (QUESTIONS, question("a"), {"doc_stride": 11}, InvalidRequest, "doc_stride: found 11, wanted less than the 11"),
        (QUESTIONS, question("a"), {"stride": 1}, InvalidRequest, "found 'stride'"),
        (QUESTIONS, question("a"), {"max_answer_len": 513}, InvalidRequest, "max_answer_len: found 513"),
        (CHOICES, choices("a", "film " * 30), {}, InputTooLong, "found 35 tokens, this task takes at most 16"),
        (CHOICES, choices(*"abcdefg"), {}, InvalidRequest, "found 7 rows or more"),
        (CHOICES, choices(*"ab", premise="a" * 5000), {}, InputTooLong, "found 10006 characters, at most"),
        (ROLES, roles(4), {}, InvalidRequest, "1 to 64 numbers, from 0, of words"),
        (ROLES, roles(*([0] * 65)), {}, InvalidRequest, "1 to 64 numbers, from 0, of words"),
        (ROLES, roles(0, words="film " * 30), {}, InputTooLong, "found 34 tokens, this task takes at most 16"),
        (ROLES, roles(*([0] * 7)), {}, InvalidRequest, "found 7 rows or more"),
    ],
)
def test_what_does_not_fit_a_family_is_refused(
    encoder: Encoder,
    prompt: TaskPrompt,
    inputs: object,
    asked: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        encode(encoder, inputs, prompt, **asked)


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [(CHOICES, choices(*"abcdef", premise="a " * 1500)), (ROLES, roles(*range(6), words="film " * 500))],
)
def test_a_text_that_is_tokenised_for_each_row_is_limited_also_where_it_may_be_cut(
    encoder: Encoder, prompt: TaskPrompt, inputs: object
) -> None:
    """One body of a mebibyte must not become 64 of them."""
    with pytest.raises(InputTooLong, match=r"found \d+ characters that stand in several rows, at most 10000"):
        encode(encoder, inputs, prompt, truncation=True)


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        (QUESTIONS, [question("a", "film " * 80), question("a")]),
        (CHOICES, [choices("a", "film " * 30), choices("film " * 30, "film " * 30)]),
        (ROLES, [roles(0, 1, words="film " * 30), roles(1)]),
    ],
)
def test_inputs_that_were_cut_are_counted_and_not_their_rows(
    encoder: Encoder, prompt: TaskPrompt, inputs: list[object]
) -> None:
    asked = {"truncation": True} | ({"max_question_len": 8} if prompt is QUESTIONS else {})
    cut = 2 if prompt is CHOICES else 1
    assert encode(encoder, inputs, prompt, **asked).num_truncated == cut


def test_too_many_windows_in_all_are_refused(encoder: Encoder) -> None:
    with pytest.raises(InvalidRequest, match="rows or more, wanted at most 6"):
        encode(encoder, ["the film " * 30] * 4, TOKEN, stride=2)


TEXTS = st.text(st.characters(), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.sampled_from(["text", "text_pair"]), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["truncation", "top_k", "stride", "ignore_labels", "delimiter", "is_split_into_words"])
MORE_NAMES = st.sampled_from(["doc_stride", "max_answer_len", "max_seq_len", "max_question_len", "align_to_words"])
FAMILIES = (prompt_of(), prompt_of(pair=True), TOKEN, QUESTIONS, CHOICES, ROLES)
NEARLY = (
    st.fixed_dictionaries({"question": TEXTS, "context": TEXTS})
    | st.fixed_dictionaries({"premise": TEXTS, "choices": st.lists(TEXTS, max_size=4)}, optional={"question": JSON})
    | st.fixed_dictionaries({"words": st.lists(TEXTS, max_size=9), "predicates": st.lists(st.integers(-1, 9))})
)
NUMBERS = st.integers(-1, 20) | JSON


@given(
    inputs=JSON | st.lists(TEXTS) | NEARLY | st.lists(NEARLY, max_size=3),
    asked=st.dictionaries(NAMES | MORE_NAMES, NUMBERS, max_size=2),
    number=st.integers(0, len(FAMILIES) - 1),
)
@settings(max_examples=600, deadline=None)
def test_any_json_is_encoded_or_refused_as_the_callers_mistake(
    inputs: object, asked: dict[str, object], number: int
) -> None:
    encoder = Encoder(TOKENIZER, lambda offset: POSITIONS, LIMITS)
    encoder.close()
    with contextlib.suppress(RequestError):
        request = encoder.encode_now(FAMILIES[number], inputs, asked)
        assert all(2 <= row.num_tokens <= 16 for row in request.rows)
        assert sum(request.num_rows_of_input) == len(request.rows)


@pytest.mark.parametrize(("name", "prompt"), [("stride", TOKEN), ("top_k", prompt_of())])
def test_numbers_of_any_size_are_taken_or_refused(encoder: Encoder, name: str, prompt: TaskPrompt) -> None:
    for value in (-1, 10**30):
        with contextlib.suppress(RequestError):
            encode(encoder, "the film", prompt, **{name: value})


def test_what_is_cut_is_said(encoder: Encoder) -> None:
    request = encode(encoder, ["a " * 100_000, "a"], truncation=True)
    assert request.num_truncated == 1
    assert request.rows[0].num_tokens == 16


def test_a_hundred_thousand_characters_cost_no_time(encoder: Encoder) -> None:
    began = time.perf_counter()
    encode(encoder, ["\u00e9" * 100_000] * 4, TOKEN, truncation=True)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(("offset", "longest"), [(0, 16), (50, 14), (60, 4)])
def test_the_position_offset_shortens_the_longest_row(encoder: Encoder, offset: int, longest: int) -> None:
    request = encode(encoder, "a " * 40, prompt_of(offset=offset), truncation=True)
    assert request.num_tokens == longest


def test_an_offset_that_leaves_no_position_is_refused(encoder: Encoder) -> None:
    with pytest.raises(BackboneError, match="position offset of 64 leaves no position"):
        encode(encoder, "a", prompt_of(offset=POSITIONS))


def test_the_event_loop_can_wait_for_it(encoder: Encoder) -> None:
    async def both() -> list[EncodedRequest]:
        return await asyncio.gather(*(encoder.encode(prompt_of(), text) for text in ("a", "a film")))

    assert [request.num_tokens for request in asyncio.run(both())] == [3, 4]


class Gate:
    """A position limit that does not answer until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, offset: int) -> int:
        assert self.open.wait(10)
        return POSITIONS


def test_too_many_waiting_requests_are_overload_until_some_are_done(tokenizer: TextTokenizer) -> None:
    gate = Gate()
    with Encoder(tokenizer, gate, LIMITS) as encoder:
        waiting = [encoder.submit(prompt_of(), "a") for _ in range(2)]
        with pytest.raises(Overloaded, match="2 requests wait") as caught:
            encoder.submit(prompt_of(), "a")
        gate.open.set()
        assert caught.value.retry_after_s > 0
        assert [future.result(10).num_tokens for future in waiting] == [3, 3]
        assert encode(encoder, "a").num_tokens == 3


def test_a_cancelled_request_gives_its_place_back(tokenizer: TextTokenizer) -> None:
    gate = Gate()
    with Encoder(tokenizer, gate, LIMITS) as encoder:
        first, second = (encoder.submit(prompt_of(), "a") for _ in range(2))
        assert second.cancel()
        third = encoder.submit(prompt_of(), "a")
        gate.open.set()
        assert (first.result(10).num_tokens, third.result(10).num_tokens) == (3, 3)


def test_refused_requests_give_their_place_back(encoder: Encoder) -> None:
    for _ in range(5):
        with pytest.raises(InvalidRequest):
            encode(encoder, None)
    assert encode(encoder, "a").num_tokens == 3


def test_a_closed_encoder_refuses(tokenizer: TextTokenizer) -> None:
    encoder = Encoder(tokenizer, lambda offset: POSITIONS, LIMITS)
    encoder.close()
    with pytest.raises(ShuttingDown):
        encoder.submit(prompt_of(), "a")


def test_tokenising_leaves_the_interpreter_free(tokenizer: TextTokenizer) -> None:
    """`Tokenizer.encode` holds the interpreter's lock: one long text would stop the event loop for its whole time."""
    text = " ".join(SENTENCES) * 600
    span: list[float] = []

    def work() -> None:
        span.append(time.perf_counter())
        tokenizer.split(text)
        span.append(time.perf_counter())

    thread = threading.Thread(target=work)
    thread.start()
    awake = []
    while thread.is_alive():
        time.sleep(0.001)
        awake.append(time.perf_counter())
    quarter = (span[1] - span[0]) / 4
    assert any(span[0] + quarter < moment < span[1] - quarter for moment in awake)
