"""The mailbox brings results of other threads to the loop: all of them, in few wake-ups, to who still waits."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from prefixbank.serving.mailbox import Mailbox

if TYPE_CHECKING:
    import pytest


def test_results_and_errors_of_another_thread_arrive() -> None:
    async def receive() -> list[Any]:
        mailbox, futures = Mailbox(asyncio.get_running_loop()), [Future() for _ in range(200)]

        def complete() -> None:
            for number, future in enumerate(futures):
                future.set_exception(KeyError(number)) if number % 10 == 9 else future.set_result(number)

        threading.Timer(0.01, complete).start()
        return await asyncio.gather(*(mailbox.result(future) for future in futures), return_exceptions=True)

    received = asyncio.run(receive())
    assert [one for one in received if isinstance(one, int)] == [number for number in range(200) if number % 10 != 9]
    assert sum(isinstance(one, KeyError) for one in received) == 20


def test_a_burst_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def receive() -> int:
        loop, calls = asyncio.get_running_loop(), []
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *given: calls.append(1) or wake(*given))
        mailbox, futures = Mailbox(loop), [Future() for _ in range(100)]
        waiting = [asyncio.create_task(mailbox.result(future)) for future in futures]
        await asyncio.sleep(0)
        for future in futures:
            future.set_result(None)
        await asyncio.gather(*waiting)
        return len(calls)

    assert asyncio.run(receive()) == 1


def test_a_result_that_is_already_there_is_received() -> None:
    async def receive() -> int:
        done: Future[int] = Future()
        done.set_result(3)
        return await Mailbox(asyncio.get_running_loop()).result(done)

    assert asyncio.run(receive()) == 3


def test_who_stopped_waiting_does_not_cancel_what_others_wait_for() -> None:
    async def receive() -> int:
        mailbox, shared = Mailbox(asyncio.get_running_loop()), Future()
        leaver, stayer = (asyncio.create_task(mailbox.result(shared)) for _ in range(2))
        await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.sleep(0)
        shared.set_result(7)
        return await stayer

    assert asyncio.run(receive()) == 7


def test_a_result_for_a_loop_that_has_ended_is_dropped() -> None:
    late: Future[int] = Future()

    async def leave() -> None:
        task = asyncio.create_task(Mailbox(asyncio.get_running_loop()).result(late))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    late.set_result(1)
