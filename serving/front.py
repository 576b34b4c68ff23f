"""The front: the environment that Ray Serve and its HAProxy are started in.

Ray reads these variables when its modules are imported, so they are set before. It refuses to know Ray itself.
"""

from __future__ import annotations

import secrets
import shlex
import socket
import sys
from typing import TYPE_CHECKING

from prefixbank.serving.haproxy import HOST_VARIABLE, LOOPBACK

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.serving.config import ServeConfig

LOG_VARIABLE = "PREFIXBANK_LOG_FILE"
"""Environment variable with the file that the replicas of a local server log to; without it, standard error."""

_GRACE_S = 10
"""How long after the engine's own deadline HAProxy gives up on a request."""


def environment(config: ServeConfig, run_folder: Path) -> dict[str, str]:
    """The variables for Ray, Ray Serve and HAProxy of one server whose files are in `run_folder`."""
    fallback_port, metrics_port, stats_port = _free_ports(3)
    return {
        **PERFORMANCE,
        **_control_plane(),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(round(config.limits.timeout_s) + _GRACE_S),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_write_launcher(run_folder)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run_folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_folder / "server-state"),
        "RAY_USAGE_STATS_ENABLED": "0",
        HOST_VARIABLE: config.host,
    }


PERFORMANCE = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # a log line per request through a socket, for numbers that we have
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",  # one thread passes on more than an engine answers
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.2",  # 30 s by default, spent at every Ctrl-C
}


def _control_plane() -> dict[str, str]:
    """Whoever may speak to Ray's own ports may run code as us: only holders of this run's token may."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _write_launcher(run_folder: Path) -> Path:
    launcher = run_folder / "haproxy"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m prefixbank.serving.haproxy "$@"\n')
    launcher.chmod(0o700)
    return launcher


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports
