"""Every route under random requests: never a 5xx, always the one error shape. The Service is the real one."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.task_prompt import Pooler
from prefixbank.serving.memory_store import MemoryStore
from prefixbank.serving.service import Service
from tests.family_prompts import CHOICES, QUESTIONS, ROLES, family_prompt
from tests.serving_cases import TEXT, TOKENS, random_prompt
from tests.shallow_cases import shallow, verbalized
from tests.tiny import tiny_backbone_folder
from tests.wire_cases import client, is_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskFamily, TaskPrompt

MAX_BODY = 4096
TASKS = {
    Address("acme", "sentiment"): TEXT,
    Address("acme", "ner"): TOKENS,
    Address("acme", "squad"): QUESTIONS,
    Address("acme", "copa"): CHOICES,
    Address("acme", "srl"): ROLES,
}
BY_WORDS = Address("acme", "words")
MODELS = tuple(f"/models/{address}" for address in (*TASKS, BY_WORDS))
PATHS = (
    "/",
    "/health",
    "/info",
    "/v1/models",
    "/metrics",
    "/openapi.json",
    *MODELS,
)
HTTP_ERRORS = {400, 401, 404, 405, 408, 413, 415, 422, 429}

names = st.sampled_from(
    ["acme", "sentiment", "ner", "squad", "", "..", "a@b", "A", "x" * 70, "%00", "models"]
) | st.text(max_size=9)
paths = st.sampled_from(PATHS) | st.lists(names, max_size=5).map(lambda parts: "/models/" + "/".join(parts))
methods = st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
header_values = st.sampled_from(
    ["application/json", "text/html", "gzip", "Bearer x", "", "9" * 30, "-1", "a;charset=utf-16"]
)
headers = st.dictionaries(
    st.sampled_from(["content-type", "content-encoding", "authorization", "x-request-id", "accept", "content-length"]),
    header_values | st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=20),
    max_size=3,
)
parameters = st.dictionaries(
    st.sampled_from(
        ["top_k", "function_to_apply", "aggregation_strategy", "ignore_labels", "stride", "truncation", "other"]
    )
    | st.sampled_from(["doc_stride", "max_answer_len", "max_seq_len", "max_question_len", "align_to_words"])
    | st.sampled_from(["handle_impossible_answer", "delimiter", "is_split_into_words"]),
    values | st.sampled_from(["softmax", "none", "simple", "max", "first", 1, 0, -1, True, ["O"], 2**70]),
    max_size=4,
)
inputs = (
    values
    | st.text(max_size=200)
    | st.lists(st.text(max_size=40), max_size=70)
    | st.just({"text": "a", "text_pair": "b"})
)
words = st.sampled_from(["Maria", "flew", "to", "Oslo", "", " ", "\u00e9\u0301", "\u200b", "[SEP]", "x" * 90, 5, None])
sentences = st.lists(words, max_size=60).map(lambda some: " ".join(map(str, some)))
questions = st.fixed_dictionaries({"question": sentences, "context": sentences | st.text(max_size=300)})
premises = st.fixed_dictionaries(
    {"premise": sentences, "choices": st.lists(sentences | values, max_size=66)},
    optional={"question": st.sampled_from(["cause", "effect", "why", None, 1])},
)
predicates = st.fixed_dictionaries(
    {"words": st.lists(words, max_size=40), "predicates": st.lists(st.integers(-1, 40) | values, max_size=66)}
)
structures = questions | premises | predicates
envelopes = st.fixed_dictionaries({"inputs": inputs}, optional={"parameters": parameters | values, "options": values})


VALID = (
    b'{"inputs": ["the film was a quiet joy", "Maria"], "parameters": {"truncation": true, "top_k": 2}}',
    b'{"inputs": {"question": "who flew?", "context": "Maria flew to Oslo"}, "parameters": {"doc_stride": 3}}',
    b'{"inputs": {"premise": "the film was long", "choices": ["I left", "I slept"], "question": "effect"}}',
    b'{"inputs": {"words": ["Maria", "flew", "to", "Oslo"], "predicates": [1, 3]}}',
)


class Wire(NamedTuple):
    """The application in this process, from synchronous code."""

    request: Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    backbone = load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")))
    prompts = {address: prompt_of(backbone, family) for address, family in TASKS.items()}
    prompts[BY_WORDS] = shallow(verbalized(backbone, prompts[Address("acme", "sentiment")], Pooler.NONE), 5)
    with Service(backbone, MemoryStore(prompts)) as service, asyncio.Runner() as runner:
        http = client(service, max_body_bytes=MAX_BODY)

        def request(*arguments: Any, **options: Any) -> httpx.Response:
            return runner.run(http.request(*arguments, **options))

        yield Wire(request)
        runner.run(http.aclose())


def prompt_of(backbone: Backbone, family: TaskFamily) -> TaskPrompt:
    make = random_prompt if family in (TEXT, TOKENS) else family_prompt
    return make(backbone, length=5, seed=1, family=family)


def check(response: httpx.Response, method: str = "POST") -> None:
    assert response.status_code < 500, response.text
    if response.status_code < 400:
        return
    assert response.status_code in HTTP_ERRORS
    assert method == "HEAD" or is_refusal(response), response.text


def fuzz(count: int) -> settings:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@fuzz(800)
@given(methods, paths, headers, st.binary(max_size=200))
def test_any_method_path_headers_and_bytes(
    wire: Wire, method: str, path: str, headers: dict[str, str], content: bytes
) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    url = f"http://test{quote(path, safe='/%') or '/'}"
    check(wire.request(method, url, headers=encoded, content=content), method)


@fuzz(400)
@given(st.sampled_from(MODELS), values)
def test_any_json_body(wire: Wire, path: str, value: Any) -> None:
    check(wire.request("POST", path, content=json.dumps(value).encode()))


@fuzz(800)
@given(st.sampled_from(MODELS), envelopes)
def test_any_inputs_and_parameters(wire: Wire, path: str, body: Any) -> None:
    check(wire.request("POST", path, content=json.dumps(body).encode()))


@fuzz(400)
@given(
    st.sampled_from(MODELS), structures | st.lists(structures, max_size=4), parameters | st.just({"truncation": True})
)
def test_any_structured_input(wire: Wire, path: str, inputs: Any, parameters: Any) -> None:
    body = {"inputs": inputs, "parameters": parameters}
    check(wire.request("POST", path, content=json.dumps(body).encode()))


@fuzz(600)
@given(st.sampled_from(MODELS), st.data())
def test_a_mutated_valid_body(wire: Wire, path: str, data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(body) - 1))
        body[where : where + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    check(wire.request("POST", path, content=bytes(body)))


def test_a_valid_request_is_answered_beside_all_this(wire: Wire) -> None:
    response = wire.request("POST", "/models/acme/sentiment", json={"inputs": "the film was a quiet joy"})
    assert response.status_code == 200
    assert len(response.json()[0]) == 3
    for path, body in zip(MODELS[2:], (*VALID[1:], VALID[0]), strict=True):
        assert wire.request("POST", path, content=body).status_code == 200
