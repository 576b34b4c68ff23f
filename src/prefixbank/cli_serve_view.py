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
    from prefixbank.serving.samples import sample_for

    inputs = sample_for(task.get("task", ""), is_pair=task.get("takes_pairs", False))
    if inputs is None:
        return
    body = json.dumps({"inputs": inputs})
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
