"""The ASGI application: routes a request, tells errors by the one table, names the exchange, counts it.

It refuses to know the server it runs under: Ray Serve's replica, a test client or any other.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import TYPE_CHECKING

from prefixbank.serving.routes import health, huggingface, listing, openapi, telemetry
from prefixbank.serving.routes.errors import response_to
from prefixbank.serving.routes.router import Route, Router
from prefixbank.serving.routes.wire import ClientGone, Request, Response

if TYPE_CHECKING:
    from prefixbank.serving.routes.site import Site
    from prefixbank.serving.routes.wire import Receive, Scope, Send

logger = logging.getLogger(__name__)

ROUTER = Router(
    Route(huggingface.PREFIX, {"POST": huggingface.answer}),
    Route("/health", {"GET": health.health}),
    Route("/info", {"GET": health.info}),
    Route("/v1/models", {"GET": listing.models}),
    Route("/metrics", {"GET": telemetry.metrics}),
    Route("/openapi.json", {"GET": openapi.document}),
)
CLIENT_CLOSED_REQUEST = 499
"""The status a vanished client is counted under."""
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Application:
    """The wire of one replica."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "http":
            await self._exchange(Request(scope, receive), send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1002})

    async def _exchange(self, request: Request, send: Send) -> None:
        started = time.perf_counter()
        request_id = _request_id(request)
        try:
            response = await self._respond(request, request_id)
        except ClientGone:
            self._count(request, CLIENT_CLOSED_REQUEST, started)
            return
        self._count(request, response.status, started)
        await response.send(send, request, request_id)

    async def _respond(self, request: Request, request_id: bytes) -> Response:
        try:
            return await ROUTER.handler(request.method, request.path)(self._site, request)
        except ClientGone:
            raise
        except Exception as error:  # the table decides: what it does not know is logged and told as a 500
            return response_to(error, request_id)

    def _count(self, request: Request, status: int, started: float) -> None:
        if request.path.startswith(huggingface.PREFIX):
            seconds = time.perf_counter() - started
            self._site.service.metrics.count_request(request.subject, code=status, seconds=seconds)


def _request_id(request: Request) -> bytes:
    """The client's own id where it is fit to be logged and echoed, a new one otherwise."""
    given = request.headers.get(b"x-request-id", b"")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
