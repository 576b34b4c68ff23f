"""What `prefixbank serve` tells: where it listens, and one curl line per task with its real answer."""

import json
import shlex
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import typer

MAX_SHOWN = 6
"""Curl lines at start; /v1/models lists every task."""

SAMPLES: dict[str, tuple[object, ...]] = {
    "token-classification": ("Maria Lopez of Acme flew from Madrid to Oslo on Monday.",),
    "text-classification": (
        "The parcel should have been here on Monday. Where is it?",
        {"text": "is the sky blue", "text_pair": "The sky looks blue because air scatters blue light more than red."},
    ),
}
"""By family: the input of a task of single texts, then that of a task of pairs."""


def remark(text: str) -> None:
    """Says something beside the results."""
    typer.echo(text, err=True)


def remark_seeded(addresses: Sequence[str]) -> None:
    """Says which examples went into the store."""
    if addresses:
        remark(f"published the example prompts {', '.join(addresses)} in the folder store/")


def show_curls(url: str) -> None:
    """Prints where the server listens, and for each task a line that works with the answer it gives now."""
    typer.echo(f"\nprefixbank listens on {url}   (Ctrl-C ends it)\n")
    tasks = _get(f"{url}/v1/models").get("data", [])
    for task in tasks[:MAX_SHOWN]:
        _show_curl(f"{url}/models/{task['id']}", task)
    if not tasks:
        typer.echo("No task is live yet: prefixbank store publish FOLDER TENANT/TASK --promote")
    typer.echo(f"All tasks: curl {url}/v1/models   Routes: {url}/openapi.json   Metrics: {url}/metrics\n")


def _show_curl(url: str, task: dict[str, Any]) -> None:
    samples = SAMPLES.get(task.get("task", ""))
    if samples is None:
        return
    body = json.dumps({"inputs": samples[-1] if task["takes_pairs"] else samples[0]})
    typer.echo(f"curl {url} -H 'Content-Type: application/json' -d {shlex.quote(body)}")
    typer.echo(f"{json.dumps(_post(url, body))}\n")


def _get(url: str) -> Any:
    return _answer(urllib.request.Request(url))


def _post(url: str, body: str) -> Any:
    return _answer(urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"}))


def _answer(request: urllib.request.Request) -> Any:
    """The JSON answer, an error's too; never through a proxy, for it is this machine that is asked."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)
