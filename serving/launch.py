"""A server of this machine alone, from start to end: its folder, its environment, its log, its readiness.

Whatever happens inside, everything it started has ended afterwards. It refuses to know the terminal it is run from.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import InvalidConfig, ServerNotStarted
from prefixbank.serving.front import LOG_VARIABLE, environment
from prefixbank.serving.haproxy import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefixbank.serving.config import ServeConfig

_SHORT_FOLDER = "/tmp"
"""Sockets lie in it, and the path of one has 107 bytes at most."""
_REMOVAL_ROUNDS = 10
_READY_TIMEOUT_S = 60.0
_LOG_INTERVAL_S = 0.2


@contextmanager
def launched(
    config: ServeConfig, on_log_line: Callable[[str], None], on_cluster: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """A server that answers, as its base URL. `on_cluster` is called when Ray runs, with its own signal handlers.

    Raises:
        InvalidConfig: the port is taken, or the host not ours.
        ServerNotStarted: it did not come up; its log has been passed on.
    """
    _check_port(config)
    with _run_folder() as folder:
        log = folder / "replica.log"
        os.environ.update(environment(config, folder) | {LOG_VARIABLE: str(log)})
        config = _absolute(config)
        with followed(log, on_log_line):
            from prefixbank.serving.app import running  # ray reads the environment when it is imported

            with running(config, folder, on_cluster):
                _wait_until_ready(config)
                yield f"http://{reachable_host(config)}:{config.port}"


@contextmanager
def _run_folder() -> Iterator[Path]:
    """A folder for this run; the last of Ray's processes may still write to it while it is removed."""
    folder = Path(tempfile.mkdtemp(prefix="prefixbank-", dir=_SHORT_FOLDER))
    try:
        yield folder
    finally:
        for _ in range(_REMOVAL_ROUNDS):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.2)


def _absolute(config: ServeConfig) -> ServeConfig:
    """Replicas run in a folder of their own."""
    backbone = Path(config.backbone)
    return config.model_copy(
        update={
            "store": str(Path(config.store).absolute()),
            "keys": config.keys and config.keys.absolute(),
            "backbone": str(backbone.absolute()) if backbone.is_dir() else config.backbone,
        }
    )


def reachable_host(config: ServeConfig) -> str:
    """Where a client on this machine connects."""
    return LOOPBACK if config.host == "0.0.0.0" else config.host


@contextmanager
def followed(log: Path, on_line: Callable[[str], None]) -> Iterator[None]:
    """Passes on the lines of a growing file, the last ones too."""
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(log, on_line, ended), name="log", daemon=True)
    log.touch()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(log: Path, on_line: Callable[[str], None], ended: threading.Event) -> None:
    with log.open(encoding="utf-8", errors="replace") as lines:
        while True:
            last_round = ended.wait(_LOG_INTERVAL_S)
            for line in lines:
                on_line(line.rstrip("\n"))
            if last_round:
                return


def _check_port(config: ServeConfig) -> None:
    try:
        socket.create_server((config.host, config.port)).close()
    except OSError as error:
        raise InvalidConfig(f"cannot listen on {config.host}:{config.port}: {error.strerror}") from None


def _wait_until_ready(config: ServeConfig) -> None:
    end = time.monotonic() + _READY_TIMEOUT_S
    while not _is_ready(config):
        if time.monotonic() > end:
            raise ServerNotStarted(f"no answer on port {config.port} within {_READY_TIMEOUT_S:g} s")
        time.sleep(0.1)


def _is_ready(config: ServeConfig) -> bool:
    connection = http.client.HTTPConnection(reachable_host(config), config.port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
