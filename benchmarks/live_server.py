"""A real server for the benchmarks that look at prefixbank from outside: `prefixbank serve` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.environment import commit, hardware

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

READY_TIMEOUT_S = 120.0


@contextmanager
def live_server(store: Path, **settings: object) -> Iterator[str]:
    """The base URL of a server of `store` that answers; `settings` are fields of its configuration.

    Raises:
        RuntimeError: it did not become ready, or did not end when told to.
    """
    port = free_port()
    environment = os.environ | {f"PREFIXBANK__{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "prefixbank.cli", "serve", "--store", str(store), "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    if _is_open(port):
        raise RuntimeError(f"port {port} is still open after the server ended")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
        return port


def report(figures: dict[str, object], file: Path | None) -> None:
    """Print figures with where they come from, and keep them as JSON if a file is given."""
    figures = {"hardware": hardware(), "commit": commit(), **figures}
    for name, value in figures.items():
        print(f"{name:36} {value}")  # noqa: T201
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n")


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while not _is_ready(url):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode} before it was ready")
        if time.monotonic() > end:
            raise RuntimeError(f"the server is not ready after {READY_TIMEOUT_S:g} s")
        time.sleep(0.2)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
