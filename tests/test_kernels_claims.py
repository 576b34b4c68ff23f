"""What the room says about itself is true: its README runs, and its benchmark prints no speed of a wrong route."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks import attention_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

README = Path(__file__).resolve().parent.parent / "kernels" / "README.md"


def test_the_readmes_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})


def _small_workload() -> attention_cpu.Workload:
    return attention_cpu.workloads(2, 8, torch.float32)[-1]


def test_the_benchmark_names_the_workload_its_speeds_and_who_is_ahead() -> None:
    measured = attention_cpu.measure(_small_workload(), turns=1)
    pattern = r"32 rows mixed, 8 tasks +(\d+\.\d+ +){3}nan +(\d+\.\d+ +){3}nan +\d+% +(yes|behind .*)"
    assert re.fullmatch(pattern, measured.line)


def test_the_benchmark_says_which_peers_are_faster() -> None:
    measured = attention_cpu.measure(_small_workload(), turns=1)
    peers = {attention_cpu.ROWS: 0.99, attention_cpu.PADDED: 1.0}
    assert replace(measured, ratio=peers).ahead == ["rows"]


def test_the_benchmark_prints_no_speed_when_a_route_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention_cpu.padded

    def wrong(work: attention_cpu.Workload) -> Callable[[], torch.Tensor]:
        return lambda: right(work)() * 1.001

    monkeypatch.setattr(attention_cpu, "padded", wrong)
    with pytest.raises(SystemExit, match=r"padded SDPA, mask, 32 rows mixed.*no speeds are printed"):
        attention_cpu.measure(_small_workload(), turns=1)
