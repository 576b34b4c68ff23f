"""One server over HTTP against the engine alone: requests per second and latency at 1 and 64 connections.

    python -m benchmarks.http [--seconds 5] [--rounds 3] [--write FILE]

The load generator is our own, forty lines of asyncio streams: wrk and h2load, which are better, are no Python packages
(a benchmark must run on a fresh clone), and httpx spends ten times what the server does. It shares the machine with the
server, so the figures are a lower bound: read the ratio. It refuses to print a number before the server's answers equal
the engine's. Both sides take turns, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from benchmarks.engine import sentences
from benchmarks.live_server import live_server, report
from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.store import PromptStore
from prefixbank.serving.service import Service
from tests.serving_cases import random_prompt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CLIENTS = (1, 64)
NUM_TASKS = 8
NUM_TEXTS = 512
PREFIX_TOKENS = 20
TOLERANCE = 1e-5
SETTLE_S = 3.0
"""HAProxy takes the replica in place of Ray's own proxy, and closes its first connections, a moment after the start."""


class Ask(NamedTuple):
    """One request."""

    address: Address
    text: str


class Loop(NamedTuple):
    """What one closed loop of clients measured."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


class Connection:
    """One keep-alive connection that asks and waits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> Connection:
        """A connection to `http://host:port`."""
        host, _, port = url.removeprefix("http://").rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def ask(self, ask: Ask) -> Any:
        """The answer; raises RuntimeError for any status but 200."""
        body = json.dumps({"inputs": ask.text}).encode()
        head = f"POST /models/{ask.address} HTTP/1.1\r\nHost: b\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        answered = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        content = await self._reader.readexactly(int(answered.partition("content-length:")[2].split("\r\n")[0]))
        if " 200 " not in answered.split("\r\n")[0]:
            raise RuntimeError(content.decode())
        return json.loads(content)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


async def closed_loop(answerers: list[Callable[[Ask], Awaitable[Any]]], asks: list[Ask], seconds: float) -> Loop:
    """Each answerer is asked again as soon as it has answered."""
    feed, took = itertools.cycle(asks), list[float]()
    end = time.perf_counter() + seconds

    async def client(answer: Callable[[Ask], Awaitable[Any]]) -> None:
        while (start := time.perf_counter()) < end:
            await answer(next(feed))
            took.append(time.perf_counter() - start)

    await asyncio.gather(*map(client, answerers))
    cuts = statistics.quantiles(took, n=100)
    return Loop(len(took) / seconds, cuts[49] * 1e3, cuts[98] * 1e3)


async def over_http(url: str, clients: int, asks: list[Ask], seconds: float) -> Loop:
    """The server, with a connection per client."""
    connections = [await Connection.open(url) for _ in range(clients)]
    try:
        return await closed_loop([connection.ask for connection in connections], asks, seconds)
    finally:
        for connection in connections:
            connection.close()


async def engine_alone(service: Service, clients: int, asks: list[Ask], seconds: float) -> Loop:
    """The same requests to the service of this process."""
    return await closed_loop([lambda ask: service.answer(*ask)] * clients, asks, seconds)


async def gate(url: str, service: Service, asks: list[Ask]) -> None:
    """Raises RuntimeError when the server's answers differ from the engine's."""
    connection = await Connection.open(url)
    for ask in asks:
        wanted, found = (await service.answer(*ask)).value[0], (await connection.ask(ask))[0]
        scores = {label["label"]: label["score"] for label in found}
        if any(abs(scores[label["label"]] - label["score"]) > TOLERANCE for label in wanted):
            raise RuntimeError(f"{ask.address}: the server's answer differs from the engine's; no number from it")
    connection.close()


async def measure(url: str, service: Service, asks: list[Ask], seconds: float, rounds: int) -> dict[str, object]:
    """Medians over the rounds; the sides take turns."""
    figures: dict[str, object] = {}
    for clients in CLIENTS:
        served, alone = [], []
        for _ in range(rounds):
            alone.append(await engine_alone(service, clients, asks, seconds))
            served.append(await over_http(url, clients, asks, seconds))
        for name, loops in (("http", served), ("engine", alone)):
            for field in Loop._fields:
                median = statistics.median(getattr(loop, field) for loop in loops)
                figures[f"{name}_{clients}_{field}"] = round(median, 2)
        shares = [one.requests_per_s / other.requests_per_s for one, other in zip(served, alone, strict=True)]
        figures[f"http_to_engine_{clients}"] = round(statistics.median(shares), 3)
    return figures


def main(
    seconds: Annotated[float, typer.Option(help="Length of one loop.")] = 5.0,
    rounds: Annotated[int, typer.Option(help="Loops per side; medians count.")] = 3,
    write: Annotated[Path | None, typer.Option(help="Keep the figures in this JSON file.")] = None,
) -> None:
    """Eight tasks of random prompts on the packaged backbone."""
    backbone = load_backbone("minilm")
    with tempfile.TemporaryDirectory() as folder:
        store = PromptStore(Path(folder) / "store")
        addresses = [Address("bench", f"task{number}") for number in range(NUM_TASKS)]
        for seed, address in enumerate(addresses):
            store.promote(address, store.publish(address, random_prompt(backbone, PREFIX_TOKENS, seed=seed)))
        texts = itertools.islice(sentences(seed=0), NUM_TEXTS)
        asks = [Ask(address, text) for address, text in zip(itertools.cycle(addresses), texts, strict=False)]
        with live_server(store.root) as url, Service(backbone, store) as service:
            asyncio.run(_gated(url, service, asks, seconds, rounds, write))


async def _gated(url: str, service: Service, asks: list[Ask], seconds: float, rounds: int, write: Path | None) -> None:
    await asyncio.sleep(SETTLE_S)
    await gate(url, service, asks[: 4 * NUM_TASKS])
    report({"tasks": NUM_TASKS} | await measure(url, service, asks, seconds, rounds), write)


if __name__ == "__main__":
    typer.run(main)
