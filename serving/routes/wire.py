"""One HTTP exchange as two values: a Request that reads its body with a limit, a Response that sends itself.

It knows ASGI's messages and refuses to know tasks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from prefixbank.model_store.errors import InvalidRequest, RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping

    from prefixbank.model_store.address import Address

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

JSON = b"application/json"
Headers = tuple[tuple[bytes, bytes], ...]
T = TypeVar("T")


class BodyTooLarge(RequestError):
    """The body is longer than this server reads."""


class BodyTooSlow(RequestError):
    """The body did not arrive in time."""


class UnsupportedMediaType(RequestError):
    """The body is announced as something other than plain UTF-8 JSON."""


class InvalidJson(InvalidRequest):
    """The body is not JSON."""


class ClientGone(Exception):  # an event, not an error: nobody is left to be told
    """The client hung up before it had its answer."""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: Headers = ()

    @classmethod
    def of_json(cls, value: object, status: int = 200, headers: Headers = ()) -> Response:
        """A JSON answer."""
        return cls(status, orjson.dumps(value), JSON, headers)

    async def send(self, send: Send, request: Request, request_id: bytes) -> None:
        """Writes the answer. The answer to HEAD has the length of a body that is not sent."""
        own = ((b"content-type", self.content_type), (b"content-length", b"%d" % len(self.body)))
        headers = [*own, (b"x-request-id", request_id), *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else self.body})


class Request:
    """What a client asks."""

    __slots__ = ("_receive", "headers", "method", "path", "subject")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        """Decoded, and relative to where the application is mounted."""
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        """Names in lower case."""
        self.subject: Address | None = None
        """The task it is counted under; set by the route once the caller may see it."""
        self._receive = receive

    async def json(self, max_bytes: int, timeout_s: float) -> Any:
        """The body as a JSON value.

        Raises:
            UnsupportedMediaType, BodyTooLarge, BodyTooSlow, InvalidJson: what was sent cannot be read.
            ClientGone: the client hung up.
        """
        self._check_media_type()
        body = await self._body(max_bytes, timeout_s)
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidJson(f"the body is not JSON: {error}") from None

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the client hangs up. The body has been read.

        Raises:
            ClientGone: it hung up.
        """
        task = asyncio.current_task()
        assert task is not None, "This is a bug: a request is handled outside a task."
        watch = asyncio.create_task(self._cancel_when_gone(task))
        try:
            return await work
        except asyncio.CancelledError:
            if watch.done() and not watch.cancelled():
                task.uncancel()
                raise ClientGone from None
            raise
        finally:
            watch.cancel()

    async def _cancel_when_gone(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    def _check_media_type(self) -> None:
        if self.headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
            raise UnsupportedMediaType("the body is compressed; send it plain")
        media, _, options = self.headers.get(b"content-type", JSON).lower().partition(b";")
        if media.strip() not in (JSON, b"") and not media.strip().endswith(b"+json"):
            raise UnsupportedMediaType("the body must be JSON; say `Content-Type: application/json`")
        if b"charset" in options and b"utf-8" not in options:
            raise UnsupportedMediaType("the body must be UTF-8")

    async def _body(self, max_bytes: int, timeout_s: float) -> bytearray:
        too_large = BodyTooLarge(f"the body is longer than {max_bytes} bytes")
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 18 or int(length) > max_bytes):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                async for chunk in self._chunks():
                    body += chunk
                    if len(body) > max_bytes:
                        raise too_large
        except TimeoutError:
            raise BodyTooSlow(f"the body did not arrive within {timeout_s:g} s") from None
        return body

    async def _chunks(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            yield message.get("body", b"")
            more = message.get("more_body", False)
