"""The routes over a fake service: what is asked of it, and how every refusal is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from prefixbank.model_store import errors
from prefixbank.serving.access import Access
from prefixbank.serving.routes.asgi import ROUTER, Application
from prefixbank.serving.routes.errors import TABLE
from prefixbank.serving.routes.openapi import DOCUMENT
from tests.test_access import keys_file
from tests.wire_cases import NER, REVISION, SENTIMENT, TEXT_ANSWER, FakeService, client, is_refusal, site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PATH = "/models/acme/sentiment"
BODY = {"inputs": "a quiet joy", "parameters": {"top_k": 2}}


@pytest.fixture
def service() -> FakeService:
    return FakeService()


def ask(service: FakeService, method: str, path: str, *, setup: dict[str, Any] | None = None, **request: Any) -> Any:
    async def run() -> httpx.Response:
        async with client(service, **setup or {}) as http:
            return await http.request(method, path, **request)

    return asyncio.run(run())


def test_an_answer_names_its_task_and_revision(service: FakeService) -> None:
    response = ask(service, "POST", PATH, json=BODY)
    assert (response.status_code, response.json()) == (200, TEXT_ANSWER)
    assert response.headers["x-prefixbank-task"] == "acme/sentiment"
    assert response.headers["x-prefixbank-revision"] == REVISION
    assert "x-prefixbank-truncated" not in response.headers


def test_inputs_and_parameters_reach_the_service_unchanged(service: FakeService) -> None:
    ask(service, "POST", PATH, json=BODY)
    wanted = {"address": SENTIMENT, **BODY, "alias": "live", "tenant": "acme"}
    assert service.asked == [wanted]


def test_a_path_may_name_an_alias(service: FakeService) -> None:
    ask(service, "POST", f"{PATH}@canary", json=BODY)
    assert service.asked[0]["alias"] == "canary"


def test_a_cut_input_is_told(service: FakeService) -> None:
    service.num_truncated = 2
    assert ask(service, "POST", PATH, json=BODY).headers["x-prefixbank-truncated"] == "2"


def test_the_options_of_older_clients_are_accepted(service: FakeService) -> None:
    assert ask(service, "POST", PATH, json={"inputs": "x", "options": {"wait_for_model": True}}).status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "error_type"),
    [
        (b"", 400, "invalid_json"),
        (b"\xff", 400, "invalid_json"),
        (b'{"inputs": NaN}', 400, "invalid_json"),
        (b'{"inputs": 1e999}', 400, "invalid_json"),
        (b"[" * 5000 + b"]" * 5000, 400, "invalid_json"),
        (b'{"inputs": "\\ud800"}', 400, "invalid_json"),
        (b"[]", 422, "invalid_request"),
        (b"{}", 422, "invalid_request"),
        (b'{"inputs": "x", "parameters": []}', 422, "invalid_request"),
        (b'{"inputs": "x", "paramters": {}}', 422, "invalid_request"),
    ],
)
def test_a_wrong_body_is_refused(service: FakeService, content: bytes, status: int, error_type: str) -> None:
    response = ask(service, "POST", PATH, content=content)
    assert (response.status_code, response.json()["error_type"]) == (status, error_type)
    assert is_refusal(response)
    assert not service.asked


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-encoding": "gzip"},
    ],
)
def test_a_body_that_is_not_plain_json_is_refused(service: FakeService, headers: dict[str, str]) -> None:
    response = ask(service, "POST", PATH, content=b'{"inputs": "x"}', headers=headers)
    assert (response.status_code, is_refusal(response)) == (415, True)


def test_a_client_need_not_name_the_content_type(service: FakeService) -> None:
    assert ask(service, "POST", PATH, content=b'{"inputs": "x"}').status_code == 200


def test_a_body_is_limited_by_its_announced_length(service: FakeService) -> None:
    response = ask(service, "POST", PATH, content=b"x" * 101, setup={"max_body_bytes": 100})
    assert (response.status_code, response.headers["connection"]) == (413, "close")


def test_a_chunked_body_is_limited_while_it_arrives(service: FakeService) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 10
            yield b"x" * 10

    response = ask(service, "POST", PATH, content=chunks(), setup={"max_body_bytes": 100})
    assert (response.status_code, is_refusal(response)) == (413, True)
    assert sent <= 120


def test_a_body_that_does_not_arrive_is_given_up(service: FakeService) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    response = ask(service, "POST", PATH, content=chunks(), setup={"limits": {"timeout_s": 0.05}})
    assert (response.status_code, is_refusal(response)) == (408, True)


@pytest.mark.parametrize(
    "path",
    ["/models/acme/none", "/models/acme", "/models/", "/models/A/b", "/models/acme/../x", f"{PATH}@", f"{PATH}@A"],
)
def test_what_can_be_no_task_is_unknown(service: FakeService, path: str) -> None:
    response = ask(service, "POST", path, json=BODY)
    assert (response.status_code, response.json()["error_type"]) == (404, "unknown_task")
    assert "tell too much" not in response.text


@pytest.mark.parametrize("path", ["/", "/nope", "/health/", "/healthz", "//health", "/v1/models/x", "/models"])
def test_an_unknown_path_is_refused_in_the_one_shape(service: FakeService, path: str) -> None:
    response = ask(service, "GET", path)
    assert (response.status_code, response.json()["error_type"]) == (404, "unknown_route")


@pytest.mark.parametrize("route", ROUTER.routes, ids=lambda route: route.path)
def test_another_method_is_refused_with_those_allowed(service: FakeService, route: Any) -> None:
    response = ask(service, "DELETE", route.path)
    assert (response.status_code, is_refusal(response)) == (405, True)
    assert response.headers["allow"] == ", ".join(route.allowed)
    options = ask(service, "OPTIONS", route.path)
    assert (options.status_code, options.headers["allow"]) == (204, ", ".join(route.allowed))


def test_head_is_get_without_a_body(service: FakeService) -> None:
    get, head = ask(service, "GET", "/health"), ask(service, "HEAD", "/health")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


def test_a_fit_request_id_is_echoed_and_an_unfit_one_replaced(service: FakeService) -> None:
    assert ask(service, "GET", "/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(ask(service, "GET", "/nope", headers={"x-request-id": "a b"}).headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequest("m"), 422),
        (errors.InputTooLong("m"), 413),
        (errors.NoSuchAlias("m"), 404),
        (errors.NoSuchTask("m"), 404),
        (errors.TensorFileTruncated("m"), 424),
        (errors.BackboneMismatch("m"), 424),
        (errors.PromptTooLarge("m"), 424),
        (errors.Overloaded("m", 2.5), 429),
        (errors.DeadlineExceeded("m"), 504),
        (errors.ShuttingDown("m"), 503),
        (errors.StoreCorrupt("/srv/secret"), 503),
        (errors.StepFailed("m"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_table_tells_each_error(service: FakeService, error: Exception, status: int) -> None:
    def fail() -> None:
        raise error

    service.answers = fail
    response = ask(service, "POST", PATH, json=BODY)
    assert (response.status_code, is_refusal(response)) == (status, True)
    assert "/srv" not in response.text
    assert service.metrics.counted == [(SENTIMENT, status)]
    assert response.headers.get("retry-after") == ("3" if status == 429 else None)


def test_the_unforeseen_is_told_by_an_id_that_is_logged(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    service.answers = lambda: 1 / 0  # type: ignore[assignment]
    response = ask(service, "POST", PATH, json=BODY)
    assert (response.status_code, response.json()["error_type"]) == (500, "internal")
    request_id = response.headers["x-request-id"]
    assert request_id in response.json()["error"]
    assert "division" not in response.text
    assert request_id in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_no_log_line_holds_the_text_of_a_request(service: FakeService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    service.answers = lambda: 1 / 0  # type: ignore[assignment]
    ask(service, "POST", PATH, json={"inputs": "a very private sentence"})
    assert "private" not in caplog.text


def test_one_request_too_many_is_refused_at_the_door(service: FakeService) -> None:
    async def run() -> tuple[httpx.Response, httpx.Response]:
        service.release = asyncio.Event()
        async with client(service, max_in_flight=1) as http:
            first = asyncio.create_task(http.post(PATH, json=BODY))
            while not service.asked:
                await asyncio.sleep(0)
            second = await http.post(PATH, json=BODY)
            service.release.set()
            return await first, second

    first, second = asyncio.run(run())
    assert first.status_code == 200
    assert (second.status_code, is_refusal(second), second.headers["retry-after"]) == (429, True, "1")


def test_a_client_that_hangs_up_cancels_its_request(service: FakeService) -> None:
    sent: list[Any] = []

    async def run() -> None:
        service.release = asyncio.Event()
        messages = iter([{"type": "http.request", "body": json.dumps(BODY).encode()}, {"type": "http.disconnect"}])

        async def receive() -> dict[str, Any]:
            while service.asked == [] and sent == ["asked"]:
                await asyncio.sleep(0)
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
        await asyncio.wait_for(Application(site(service))(scope, receive, send), 5)

    asyncio.run(run())
    assert (service.cancelled, sent) == (1, [])
    assert service.metrics.counted == [(SENTIMENT, 499)]


def test_a_cancelled_server_task_stays_cancelled(service: FakeService) -> None:
    async def run() -> bool:
        service.release = asyncio.Event()
        async with client(service) as http:
            asking = asyncio.create_task(http.post(PATH, json=BODY))
            while not service.asked:
                await asyncio.sleep(0)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
            return asking.cancelled()

    assert asyncio.run(run())
    assert service.cancelled == 1


def test_health_is_503_while_not_ready(service: FakeService) -> None:
    assert ask(service, "GET", "/health").status_code == 200
    service.status = "draining"
    response = ask(service, "GET", "/health")
    assert (response.status_code, response.json()["status"]) == (503, "draining")


def test_health_names_broken_tasks(service: FakeService) -> None:
    service.broken[NER] = "NotFinite: head.weight"
    body = ask(service, "GET", "/health").json()
    assert body["broken"] == {"acme/ner": "NotFinite: head.weight"}
    assert body["tasks"] == ["acme/sentiment", "globex/topic"]


def test_the_model_list_has_the_openai_shape(service: FakeService) -> None:
    body = ask(service, "GET", "/v1/models").json()
    assert body["object"] == "list"
    first = body["data"][0]
    assert (first["id"], first["object"], first["owned_by"], first["root"]) == ("acme/ner", "model", "acme", REVISION)


def test_metrics_are_prometheus_text(service: FakeService) -> None:
    response = ask(service, "GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert response.content == service.exposition()


def test_with_keys_a_forbidden_task_looks_unknown(service: FakeService, tmp_path: Path) -> None:
    setup = {"access": Access.from_file(keys_file(tmp_path, secret=["acme"]))}
    mine = {"authorization": "Bearer secret"}
    assert ask(service, "POST", PATH, json=BODY, headers=mine, setup=setup).status_code == 200
    assert service.asked[0]["tenant"] == "secret"
    forbidden = ask(service, "POST", "/models/globex/topic", json=BODY, headers=mine, setup=setup)
    unknown = ask(service, "POST", "/models/globex/nothing", json=BODY, headers=mine, setup=setup)
    assert forbidden.status_code == unknown.status_code == 404
    assert forbidden.json() == json.loads(unknown.text.replace("nothing", "topic"))


@pytest.mark.parametrize(
    ("method", "path", "stranger", "tenant"),
    [
        ("POST", PATH, 401, 200),
        ("GET", "/health", 200, 200),
        ("GET", "/info", 401, 200),
        ("GET", "/v1/models", 401, 200),
        ("GET", "/metrics", 401, 404),
        ("GET", "/openapi.json", 200, 200),
    ],
)
def test_each_route_asks_for_a_key(
    service: FakeService, tmp_path: Path, method: str, path: str, stranger: int, tenant: int
) -> None:
    setup = {"access": Access.from_file(keys_file(tmp_path, secret=["acme"]))}
    body = BODY if method == "POST" else None
    refused = ask(service, method, path, json=body, setup=setup)
    assert refused.status_code == stranger
    assert refused.headers.get("www-authenticate") == ("Bearer" if stranger == 401 else None)
    assert "globex" not in refused.text
    seen = ask(service, method, path, json=body, setup=setup, headers={"authorization": "Bearer secret"})
    assert seen.status_code == tenant
    assert "globex" not in seen.text


def test_the_openapi_document_has_every_route_and_no_other() -> None:
    documented = {
        (path, method) for path, item in DOCUMENT["paths"].items() for method in item if method in ("get", "post")
    }
    served = {
        ("/models/{tenant}/{task}" if route.path.endswith("/") else route.path, method.lower())
        for route in ROUTER.routes
        for method in route.handlers
    }
    assert documented == served


def test_the_openapi_document_has_every_error_type(service: FakeService) -> None:
    document = ask(service, "GET", "/openapi.json").json()
    types = document["components"]["schemas"]["Error"]["properties"]["error_type"]["enum"]
    assert {rule.error_type for rule in TABLE.values()} <= set(types)


def test_every_reference_of_the_openapi_document_leads_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in DOCUMENT["components"]["schemas"]


def test_a_mounted_application_finds_its_routes(service: FakeService) -> None:
    async def run() -> int:
        mounted = httpx.ASGITransport(Application(site(service)), root_path="/bank")
        async with httpx.AsyncClient(transport=mounted, base_url="http://test") as http:
            return (await http.get("/bank/health")).status_code

    assert asyncio.run(run()) == 200


def test_lifespan_and_websockets_are_answered(service: FakeService) -> None:
    sent: list[str] = []

    async def run(scope_type: str, *events: str) -> None:
        feed = iter(events)

        async def receive() -> dict[str, str]:
            return {"type": next(feed)}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await Application(site(service))({"type": scope_type}, receive, send)

    asyncio.run(run("lifespan", "lifespan.startup", "lifespan.shutdown"))
    asyncio.run(run("websocket"))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
