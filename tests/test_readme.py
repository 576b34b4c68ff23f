"""The README's code blocks run: against a real server, in the order in which a reader meets them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.live_server import free_port
from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = re.compile(r"^```(sh|python|json)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOLERANCE = 1e-3
"""The README rounds scores to three places."""
EPOCHS = "optimiser.epochs=1"
"""The reader trains to the end, the test only to an artifact."""
BUDGET = "30s"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout, so that nothing is written into the real one."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_PROXY": "localhost"}


@pytest.fixture(scope="module")
def port(checkout: Path, environment: dict[str, str]) -> Iterator[int]:
    """Where the server of `make serve` listens: the same command, with another port."""
    port = free_port()
    command = [shutil.which("prefixbank", path=environment["PATH"]) or "prefixbank", "serve", "--port", str(port)]
    with subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith("All tasks:"):
                break
        yield port
        server.terminate()
        server.stdout.read()


def blocks() -> list[tuple[str, str]]:
    found = BLOCK.findall((ROOT / "README.md").read_text())
    return [(language, code) for language, code in found if "make serve" not in code]


@pytest.mark.server
@pytest.mark.slow
def test_the_code_blocks_run_in_order(checkout: Path, environment: dict[str, str], port: int) -> None:
    output = ""
    for language, code in blocks():
        if language == "json":
            assert_same_answer(json.loads(output), json.loads(code))
            continue
        here = code.replace("localhost:8000", f"localhost:{port}").replace("--publish", f"--set {EPOCHS} --publish")
        here = re.sub(r"--budget \d+m", f"--budget {BUDGET}", here)
        command = ["bash", "-euc", here] if language == "sh" else [sys.executable, "-c", here]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        assert '"error"' not in done.stdout, f"{code}\n{done.stdout}"
        output = done.stdout


def assert_same_answer(got: list[list[dict[str, object]]], shown: list[list[dict[str, object]]]) -> None:
    assert [entry["label"] for entry in got[0]] == [entry["label"] for entry in shown[0]]
    scores = [[entry["score"] for entry in answer[0]] for answer in (got, shown)]
    assert scores[0] == pytest.approx(scores[1], abs=TOLERANCE)


def test_every_link_to_a_file_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *ROOT.glob("docs/**/*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
