"""What a GPU check found, as Markdown for people and JSON for later.

No speed is written when a check is red, nor of a rehearsal. It refuses to know how sections run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_sections import Outcome, Status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PACKAGES = ("torch", "triton", "transformers", "numpy", "pytest", "hypothesis")
OPTIONAL = (
    "pydantic",
    "orjson",
    "ray",
    "pytest-xdist",
    "sglang",
    "flash-attn-4",
    "flashinfer-python",
    "disentangled-flash",
)


@dataclass(frozen=True)
class Report:
    """One run of the check."""

    device: str
    commit: str
    rehearsed: bool
    checks: Sequence[Outcome]
    benchmarks: Sequence[Outcome]
    seconds: float

    @property
    def is_red(self) -> bool:
        return any(each.status is Status.RED for each in (*self.checks, *self.benchmarks))

    @property
    def may_show_speeds(self) -> bool:
        return not self.rehearsed and not any(each.status is Status.RED for each in self.checks)

    def markdown(self) -> str:
        """The whole report."""
        today = datetime.now(UTC).date().isoformat()
        lines = [f"# GPU check, {today}, commit {self.commit}{', rehearsed' if self.rehearsed else ''}", ""]
        lines += [f"{self.device}; {versions()}", "", f"{self.seconds:.0f} s in all.", ""]
        lines += ["| section | | s | |", "|---|---|---|---|"]
        for each in (*self.checks, *self.benchmarks):
            lines.append(f"| {each.name} | {each.status} | {each.seconds:.0f} | {_one_line(each.summary)} |")
        for each in (*self.checks, *self.benchmarks):
            if each.status is Status.RED:
                lines += ["", f"## {each.name}", "", "```", each.details, "```"]
        lines += ["", *self._speeds()]
        return "\n".join(lines) + "\n"

    def _speeds(self) -> list[str]:
        if self.rehearsed:
            return ["rehearsal: no speeds"]
        if not self.may_show_speeds:
            return ["No speeds: a check is red."]
        return [line for each in self.benchmarks if each.shown for line in (f"## {each.name}", "", each.shown)]

    def as_json(self) -> dict[str, Any]:
        """All of it; the benchmarks' findings only when their speeds may be shown."""
        found = {each.name: each.found for each in self.benchmarks} if self.may_show_speeds else {}
        outcomes = [_without_findings(each) for each in (*self.checks, *self.benchmarks)]
        setting = {"device": self.device, "commit": self.commit, "versions": versions(), "rehearsed": self.rehearsed}
        return {**setting, "seconds": self.seconds, "red": self.is_red, "sections": outcomes, "found": found}

    def write(self, folder: Path, gpu: str) -> Path:
        """Write `<gpu>-<date>-<commit>.json` and `.md`, and return the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{slug(gpu)}-{datetime.now(UTC).date().isoformat()}-{self.commit}"
        (folder / f"{name}.json").write_text(json.dumps(self.as_json(), indent=1))
        path = folder / f"{name}.md"
        path.write_text(self.markdown())
        return path


def slug(name: str) -> str:
    """A name as part of a file name: `NVIDIA H200` is `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions() -> str:
    """Python, the packages that matter, and which of the optional ones are not here."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES if _is_here(name)]
    missing = [name for name in (*PACKAGES, *OPTIONAL) if not _is_here(name)]
    return f"Python {platform.python_version()}, {', '.join(found)}; without {', '.join(missing) or 'nothing'}"


def state_of_gpu() -> str:
    """What nvidia-smi says of driver, clocks, power and temperature; it is only read."""
    query = "name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu,utilization.gpu"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {type(error).__name__}"
    return done.stdout.strip() or done.stderr.strip()


def _is_here(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:300]


def _without_findings(outcome: Outcome) -> dict[str, Any]:
    found = asdict(outcome)
    del found["found"], found["shown"]
    return found
