"""Mailbox: brings results of other threads to one event loop, one wake-up per burst.

A batch completes dozens of futures at once; waking the loop for each would cost more than their answers. It refuses to
know what the results are.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

T = TypeVar("T")


class Mailbox:
    """The mailbox of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._is_called = False  # a delivery is due; set after an arrival, cleared before a delivery looks

    async def result(self, future: Future[T]) -> T:
        """Wait for the future's result. Cancelling the wait leaves the future alone: it may have other readers."""
        waiter: asyncio.Future[T] = self._loop.create_future()
        future.add_done_callback(lambda done: self._post(waiter, done))
        return await waiter

    def _post(self, waiter: asyncio.Future[T], done: Future[T]) -> None:
        self._arrived.append((waiter, done))
        if not self._is_called and not self._loop.is_closed():
            self._is_called = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_called = False
        while self._arrived:
            waiter, done = self._arrived.popleft()
            if waiter.done():
                continue
            if done.cancelled():
                waiter.cancel()
            elif (error := done.exception()) is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(done.result())
