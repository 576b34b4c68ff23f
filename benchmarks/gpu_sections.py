"""Sections of the GPU check: a program of its own each, with a time limit, so that none can take another with it.

It refuses to know what a section checks, and how results are shown.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
TAIL = 6000
"""Characters of a section's output that are kept, half of them from its beginning."""
FAULT_FOUND = 86
"""With this compute-sanitizer ends when it found a fault."""
TIMED_OUT = 124


class Status(StrEnum):
    """How a section ended."""

    GREEN = "green"
    RED = "RED"
    ABSENT = "absent"
    """It cannot run here, for a reason that is no fault: a tool or a wheel is missing."""
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Ended:
    """A program's end."""

    code: int
    seconds: float
    stdout: str
    stderr: str

    @property
    def tail(self) -> str:
        """The ends of what it said, errors last."""
        return f"{_ends_of(self.stdout)}\n{_ends_of(self.stderr)}".strip()

    @property
    def last_line(self) -> str:
        lines = [line for line in self.tail.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"


def _ends_of(said: str) -> str:
    """The first and the last of what is long: what failed first often failed the rest."""
    return said if len(said) <= TAIL else f"{said[: TAIL // 2]}\n...\n{said[-TAIL // 2 :]}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a section showed."""

    name: str
    status: Status
    seconds: float
    summary: str
    """One line."""
    details: str = ""
    """Output or traceback; empty when green."""
    shown: str = ""
    """Markdown, for a benchmark."""
    found: Any = field(default=None)
    """What goes into the file of results."""


def run_program(arguments: Sequence[str], limit_s: float, environment: Mapping[str, str]) -> Ended:
    """Run a program until it ends or its time is up; then end it and all that it started."""
    began = time.monotonic()
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=limit_s)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        code, stderr = TIMED_OUT, f"{stderr}\nit took longer than {limit_s:.0f} s"
    return Ended(code, time.monotonic() - began, stdout, stderr)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def environment_of(*, interpreted: bool, **more: str) -> dict[str, str]:
    """The environment of a section: the sources on the path, Triton's interpreter on or off."""
    path = os.pathsep.join(["src", ".", *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", **more}
    environment.pop("TRITON_INTERPRET", None)
    return {**environment, "TRITON_INTERPRET": "1"} if interpreted else environment


def check_of(name: str, ended: Ended, summary: str | None = None, found: Any = None) -> Outcome:
    """A check is green when its program ends with 0."""
    if ended.code == 0:
        return Outcome(name, Status.GREEN, ended.seconds, summary or ended.last_line, found=found)
    return Outcome(name, Status.RED, ended.seconds, summary or ended.last_line, ended.tail, found=found)


def benchmark_of(name: str, ended: Ended, file: Path) -> Outcome:
    """A benchmark shows what it printed; it is red when something in it failed that should not have."""
    found = json.loads(file.read_text()) if file.exists() else None
    status = Status.GREEN if ended.code == 0 else Status.RED
    summary = f"ended with {ended.code}" if ended.code else "done"
    return Outcome(name, status, ended.seconds, summary, "" if ended.code == 0 else ended.tail, ended.stdout, found)


def find_sanitizer() -> str | None:
    """Where compute-sanitizer is; None when it is nowhere."""
    places = [os.environ.get("PATH", ""), "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def sanitizer_of(tool: str, sound: Ended, planted: Ended, kernels: Ended) -> Outcome:
    """Believe a tool that passes a sound kernel; its verdict on ours counts."""
    name, seconds = f"compute-sanitizer {tool}", kernels.seconds
    said = "\n---\n".join(ended.tail for ended in (sound, planted, kernels))
    if sound.code:
        reason = f"it does not work here: of a kernel known to be right it said: {sound.last_line}"
        return Outcome(name, Status.ABSENT, seconds, reason, said)
    if planted.code == 0:
        return Outcome(name, Status.ABSENT, seconds, "it does not work here: a planted fault was not found", said)
    proof = "a planted fault was found" if planted.code == FAULT_FOUND else "a fault could not be planted"
    if kernels.code == TIMED_OUT:
        return Outcome(name, Status.ABSENT, seconds, f"it is too slow here; {proof}", said)
    if kernels.code:
        return Outcome(name, Status.RED, seconds, f"of our kernels: {kernels.last_line}", said)
    return Outcome(name, Status.GREEN, seconds, f"our kernels are clean; {proof}")
