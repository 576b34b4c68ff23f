"""Isolation, from outside: many concurrent requests in random mixture, every answer against the one alone.

    python -m benchmarks.isolation [--requests 2000] [--dtype float32|bfloat16] [--json FILE]

Publishes random prompts of every family, deep and shallow, of lengths that hurt; asks the engine for each answer alone
(one request at a time, no server), then a live server for all of them at once: texts, and questions, premises and
sentences whose rows land in different batches. Exits with 1 when an answer differs by more than the dtype's tolerance,
names a wrong revision, or equals another task's answer.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import torch

from benchmarks.live_server import live_server, report
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.store import PromptStore
from prefixbank.model_store.task_prompt import Pooler
from prefixbank.serving.predict import Predictor
from tests.family_prompts import family_input, family_tasks
from tests.serving_cases import mixed_tasks
from tests.shallow_cases import shallow_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefixbank.model_store.address import Address
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
CONNECTIONS = 64
SENTENCE = """The red lamp I ordered in May was shipped to London, but nobody at Acme or in the Berlin shop knows why
Mary Smith's curtains never arrived; please refund order 2024-117 since the table came broken again, thanks"""


class Asked(NamedTuple):
    address: Address
    text: str
    """What the inputs are made of."""


class Got(NamedTuple):
    value: Any
    revision: str


def main() -> int:
    arguments = _arguments()
    chance = random.Random(1)
    texts = [" ".join(chance.choices(SENTENCE.split(), k=chance.randint(0, 60))) for _ in range(arguments.texts)]
    with tempfile.TemporaryDirectory() as folder:
        store = PromptStore(Path(folder) / "store")
        backbone = load_backbone("minilm", dtype=getattr(torch, arguments.dtype))
        tasks = _publish(store, backbone)
        with Predictor(backbone, store) as alone:
            wanted = {
                asked: Got(*alone.answer(asked.address, _inputs(asked, tasks), {"truncation": True})[:2])
                for asked in (Asked(address, text) for address in tasks for text in texts)
            }
        mixture = chance.choices(list(wanted), k=arguments.requests)
        with live_server(store.root, dtype=arguments.dtype) as url:
            got = asyncio.run(_ask_all(url, mixture, tasks))
    figures = _compare(mixture, got, wanted)
    report({"dtype": arguments.dtype, "tolerance": TOLERANCE[arguments.dtype], **figures}, arguments.json)
    red = figures["largest_difference"] > TOLERANCE[arguments.dtype] or figures["wrong"] or figures["of_another_task"]
    return 1 if red else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--texts", type=int, default=40, help="different texts, each asked of every task")
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _publish(store: PromptStore, backbone: Backbone) -> dict[Address, TaskPrompt]:
    tasks = mixed_tasks(backbone) | family_tasks(backbone) | _servable(shallow_tasks(backbone), backbone)
    for address, prompt in tasks.items():
        store.promote(address, store.publish(address, prompt))
    return tasks


def _servable(tasks: dict[Address, TaskPrompt], backbone: Backbone) -> dict[Address, TaskPrompt]:
    """Without those that read through a masked-LM head, where the backbone has none."""
    needs = {address for address, prompt in tasks.items() if prompt.head.spec.pooler is Pooler.LM}
    return tasks if backbone.lm_head else {address: tasks[address] for address in tasks.keys() - needs}


def _inputs(asked: Asked, tasks: Mapping[Address, TaskPrompt]) -> object:
    return family_input(tasks[asked.address], asked.text)


async def _ask_all(url: str, mixture: list[Asked], tasks: Mapping[Address, TaskPrompt]) -> list[Got | httpx.Response]:
    limits = httpx.Limits(max_connections=CONNECTIONS)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:
        return await asyncio.gather(*(_ask(client, asked.address, _inputs(asked, tasks)) for asked in mixture))


async def _ask(client: httpx.AsyncClient, address: Address, inputs: object) -> Got | httpx.Response:
    response = await client.post(f"/models/{address}", json={"inputs": inputs, "parameters": {"truncation": True}})
    if response.status_code != 200:
        return response
    return Got(response.json(), response.headers["x-prefixbank-revision"])


def _compare(mixture: list[Asked], got: list[Got | httpx.Response], wanted: dict[Asked, Got]) -> dict[str, Any]:
    wrong = of_another_task = 0
    largest = 0.0
    for asked, answer in zip(mixture, got, strict=True):
        expected = wanted[asked]
        if isinstance(answer, httpx.Response) or answer.revision != expected.revision or not _alike(answer, expected):
            wrong += 1
            print(f"{asked}: wanted {expected}, got {answer}", file=sys.stderr)  # noqa: T201
            continue
        largest = max([largest, *_differences(answer.value, expected.value)])
        of_another_task += any(
            _scores(answer.value) and answer.value == other.value
            for key, other in wanted.items()
            if key.text == asked.text and key.address != asked.address
        )
    tasks = len({asked.address for asked in mixture})
    return {
        "requests": len(mixture),
        "tasks": tasks,
        "bitwise_equal": sum(answer == wanted[asked] for asked, answer in zip(mixture, got, strict=True)),
        "largest_difference": largest,
        "wrong": wrong,
        "of_another_task": of_another_task,
    }


def _alike(answer: Got, expected: Got) -> bool:
    """Equal in everything but scores; labels are compared by name, as near ties may change places."""
    return bool(_without_scores(answer.value) == _without_scores(expected.value))


def _ordered(value: list[Any]) -> list[Any]:
    """A list in an order that does not depend on scores."""
    is_ranked = bool(value) and isinstance(value[0], dict) and "label" in value[0]
    return sorted(value, key=lambda entry: str(entry["label"])) if is_ranked else value


def _without_scores(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_scores(entry) for entry in _ordered(value)]
    if isinstance(value, dict):
        return {key: _without_scores(field) for key, field in value.items() if key != "score"}
    return value


def _scores(value: Any) -> list[float]:
    if isinstance(value, list):
        return [score for entry in _ordered(value) for score in _scores(entry)]
    if isinstance(value, dict):
        return [score for key, field in value.items() for score in ([field] if key == "score" else _scores(field))]
    return []


def _differences(value: Any, expected: Any) -> list[float]:
    return [abs(a - b) for a, b in zip(_scores(value), _scores(expected), strict=True)]


if __name__ == "__main__":
    sys.exit(main())
