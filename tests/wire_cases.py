"""A fake Service and an in-process client: what the tests of the wire share. It refuses to know pytest and torch."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx

from prefixbank.model_store.address import Address
from prefixbank.model_store.errors import UnknownTask
from prefixbank.serving.access import Access, Admission
from prefixbank.serving.config import ServeConfig
from prefixbank.serving.routes.asgi import Application
from prefixbank.serving.routes.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable

SENTIMENT, NER, OTHERS = Address("acme", "sentiment"), Address("acme", "ner"), Address("globex", "topic")
REVISION = "ab" * 32
TEXT_ANSWER = [[{"label": "good", "score": 0.9}]]


class FakeMetrics:
    def __init__(self) -> None:
        self.counted: list[tuple[object, int]] = []

    def count_request(self, task: object | None, code: int, seconds: float) -> None:
        assert seconds >= 0
        self.counted.append((task, code))


class FakeService:
    """Answers as told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.metrics = FakeMetrics()
        self.asked: list[dict[str, Any]] = []
        self.status = "ok"
        self.broken: dict[Address, str] = {}
        self.answers: Callable[[], Any] | None = None
        """Called for each answer instead of the usual one; may raise."""
        self.cancelled = 0
        self.num_truncated = 0
        self.release: asyncio.Event | None = None
        """Answers wait for it."""

    async def answer(self, address: Address, inputs: object, parameters: object, **options: Any) -> SimpleNamespace:
        self.asked.append({"address": address, "inputs": inputs, "parameters": parameters, **options})
        if self.answers:
            self.answers()
        if address not in (SENTIMENT, NER, OTHERS):
            raise UnknownTask("words that tell too much")
        await self._released()
        return SimpleNamespace(value=TEXT_ANSWER, revision=REVISION, tokens=5, num_truncated=self.num_truncated)

    async def _released(self) -> None:
        try:
            if self.release:
                await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def health(self) -> Any:
        return _Named(status=self.status, attention="grouped-bmm")

    def info(self) -> Any:
        return _Named(backbone="minilm", device="cpu")

    def tasks(self) -> list[Any]:
        return [
            SimpleNamespace(address=address, revision=REVISION, facts=None, error=self.broken.get(address))
            for address in (NER, SENTIMENT, OTHERS)
        ]

    def exposition(self) -> bytes:
        return b"prefixbank_up 1\n"


class _Named(SimpleNamespace):
    def _asdict(self) -> dict[str, Any]:
        return dict(vars(self))


def site(service: Any, *, access: Access | None = None, **settings: Any) -> Site:
    """The service with the checks at the door, open to everybody unless told."""
    config = ServeConfig(**settings)
    return Site(service, access or Access.open(), Admission(config.max_in_flight), config)


def client(service: Any, *, access: Access | None = None, **settings: Any) -> httpx.AsyncClient:
    """A client that speaks to the application in this process."""
    app = Application(site(service, access=access, **settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def is_refusal(response: httpx.Response) -> bool:
    """Whether a response is an error in the one shape."""
    body = response.json()
    return response.status_code >= 400 and body.keys() == {"error", "error_type"} and all(body.values())
