"""Hot loading, from outside: publish, promote, roll back and delete under steady load, and count what clients notice.

    python -m benchmarks.hot_load [--rounds 200] [--clients 8] [--json FILE]

Each round publishes a new revision of one task and promotes it, every fifth round rolls back, and what is neither
live nor the way back is deleted. Clients ask the changing task and three quiet ones all the time. Exits with 1 when a
request failed, an answer came from a revision that was live at no moment of its request or was not that revision's
answer, or the 99th percentile of promote-to-served reaches a second.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import numpy as np

from benchmarks.live_server import live_server, report
from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.store import PromptStore
from prefixbank.serving.predict import Predictor
from tests.serving_cases import random_prompt

if TYPE_CHECKING:
    from prefixbank.model_store.backbones.backbone import Backbone

CHANGING = Address("shop", "changing")
QUIET = [Address("shop", "quiet"), Address("news", "quiet"), Address("bank", "quiet")]
TEXT = "The parcel was promised for Monday, and on Thursday the box came in two halves."
LIMIT_S = 1.0


class Reign(NamedTuple):
    """When a revision may have been live: from before its promote began to after the next one had returned."""

    revision: str
    began: float
    ended: float


class Seen(NamedTuple):
    began: float
    ended: float
    address: Address
    status: int
    revision: str
    value: Any


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        store = PromptStore(Path(folder) / "store")
        backbone = load_backbone("minilm")
        offline = _Offline(backbone)
        for number, address in enumerate([CHANGING, *QUIET]):
            store.promote(address, offline.publish(store, address, seed=number))
        with live_server(store.root) as url:
            seen, reigns, served_s = asyncio.run(_run(url, store, offline, arguments))
    figures = _judge(seen, reigns, offline.answers())
    figures["promote_to_served_p50_ms"] = round(float(np.percentile(served_s, 50)) * 1e3, 1)
    figures["promote_to_served_p99_ms"] = round(float(np.percentile(served_s, 99)) * 1e3, 1)
    report({"rounds": arguments.rounds, "clients": arguments.clients, **figures}, arguments.json)
    red = (
        figures["failed"] or figures["not_live"] or figures["not_its_answer"] or np.percentile(served_s, 99) >= LIMIT_S
    )
    return 1 if red else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class _Offline:
    """Every revision published in this run, and what it answers."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._prompts: dict[str, Any] = {}

    def publish(self, store: PromptStore, address: Address, seed: int) -> str:
        prompt = random_prompt(self._backbone, (0, 1, 16, 20, 64)[seed % 5], seed=seed)
        revision = store.publish(address, prompt)
        self._prompts[revision] = prompt
        return revision

    def answers(self) -> dict[str, Any]:
        addresses = {revision: Address("offline", f"r{number}") for number, revision in enumerate(self._prompts)}
        prompts = {addresses[revision]: prompt for revision, prompt in self._prompts.items()}
        with Predictor(self._backbone, prompts) as predictor:
            return {revision: predictor.answer(address, TEXT).value for revision, address in addresses.items()}


async def _run(
    url: str, store: PromptStore, offline: _Offline, arguments: argparse.Namespace
) -> tuple[list[Seen], list[Reign], list[float]]:
    seen: list[Seen] = []
    ended = asyncio.Event()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        clients = [asyncio.create_task(_keep_asking(client, n, seen, ended)) for n in range(arguments.clients)]
        await asyncio.sleep(1)
        reigns, served_s = await _change(client, store, offline, arguments.rounds)
        ended.set()
        await asyncio.gather(*clients)
    return seen, reigns, served_s


async def _keep_asking(client: httpx.AsyncClient, number: int, seen: list[Seen], ended: asyncio.Event) -> None:
    targets = [CHANGING, *QUIET]
    while not ended.is_set():
        number += 1
        seen.append(await _ask(client, targets[number % len(targets)]))


async def _ask(client: httpx.AsyncClient, address: Address) -> Seen:
    began = time.monotonic()
    response = await client.post(f"/models/{address}", json={"inputs": TEXT})
    revision = response.headers.get("x-prefixbank-revision", "")
    return Seen(began, time.monotonic(), address, response.status_code, revision, response.json())


async def _change(
    client: httpx.AsyncClient, store: PromptStore, offline: _Offline, rounds: int
) -> tuple[list[Reign], list[float]]:
    current, previous = await asyncio.to_thread(store.resolve, CHANGING), ""
    since, reigns, served_s = time.monotonic() - 60, [], []
    for number in range(rounds):
        before = time.monotonic()
        if number % 5 == 4:
            following = await asyncio.to_thread(store.rollback, CHANGING)
        else:
            following = await asyncio.to_thread(offline.publish, store, CHANGING, 100 + number)
            before = time.monotonic()
            await asyncio.to_thread(store.promote, CHANGING, following)
        promoted = time.monotonic()
        reigns.append(Reign(current, since, promoted))
        while (await _ask(client, CHANGING)).revision != following:
            await asyncio.sleep(0.005)
        served_s.append(time.monotonic() - promoted)
        if previous and previous not in (current, following):
            await asyncio.to_thread(store.delete, CHANGING, previous)
        current, previous, since = following, current, before
        await asyncio.sleep(0.05)
    reigns.append(Reign(current, since, time.monotonic() + 60))
    return reigns, served_s


def _judge(seen: list[Seen], reigns: list[Reign], answers: dict[str, Any]) -> dict[str, Any]:
    good = [each for each in seen if each.status == 200]
    changing = [each for each in good if each.address == CHANGING]
    latencies_ms = [(each.ended - each.began) * 1e3 for each in good]
    return {
        "requests": len(seen),
        "failed": len(seen) - len(good),
        "not_live": sum(not _was_live(each, reigns) for each in changing),
        "not_its_answer": sum(not _is_answer(each.value, answers[each.revision]) for each in good),
        "revisions_seen": len({each.revision for each in changing}),
        "request_p50_ms": round(float(np.percentile(latencies_ms, 50)), 1),
        "request_p99_ms": round(float(np.percentile(latencies_ms, 99)), 1),
    }


def _was_live(each: Seen, reigns: list[Reign]) -> bool:
    return any(r.revision == each.revision and r.began <= each.ended and each.began <= r.ended for r in reigns)


def _is_answer(value: Any, wanted: Any) -> bool:
    pairs = list(zip(value[0], wanted[0], strict=False))
    return len(value[0]) == len(wanted[0]) and all(
        a["label"] == b["label"] and abs(a["score"] - b["score"]) < 1e-5 for a, b in pairs
    )


if __name__ == "__main__":
    sys.exit(main())
