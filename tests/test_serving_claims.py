"""What the serving room says is true: its README runs, and its benchmark prints no number of a wrong answer."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from benchmarks import engine
from prefixbank.serving import service as service_module
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    import typer

README = Path(__file__).resolve().parent.parent / "serving" / "README.md"


@pytest.fixture
def benchmark(tmp_path: Path) -> tuple[typer.Typer, list[str]]:
    import typer

    app = typer.Typer()
    app.command()(engine.main)
    folder = str(tiny_backbone_folder(tmp_path, "bert"))
    return app, ["--backbone", folder, "--tasks", "12", "--seconds", "0.1", "--rounds", "1", "--json"]


def test_the_readmes_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})


def test_the_benchmark_says_what_it_measured_and_where(benchmark: tuple[typer.Typer, list[str]]) -> None:
    said = json.loads(CliRunner().invoke(*benchmark, catch_exceptions=False).stdout)
    assert said.keys() >= {"hardware", "commit", "dtype", "shapes", "backbone"}
    assert {(one["mix"], one["num_clients"]) for one in said["measured"]} == {
        (mix, clients) for mix in ("identical", "uniform", "zipf:1.5") for clients in (1, 64)
    }
    assert all(one["requests_per_s"] > 0 and one["p99_ms"] >= one["p50_ms"] > 0 for one in said["measured"])


def test_the_benchmark_prints_no_number_when_an_answer_is_wrong(
    benchmark: tuple[typer.Typer, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = service_module.answers.answer, itertools.count()

    def wrong(prompt: Any, request: Any, logits: Any) -> Any:
        return right(prompt, request, [row * (1 + 0.01 * next(calls)) for row in logits])

    monkeypatch.setattr(service_module.answers, "answer", wrong)
    result = CliRunner().invoke(*benchmark)
    assert result.exit_code != 0
    assert "no numbers are printed" in result.output
    assert "requests_per_s" not in result.output
