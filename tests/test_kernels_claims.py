"""What the room says about itself is true: its README runs, and its benchmark prints no speed of a wrong route."""

from __future__ import annotations

import re
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


def test_the_benchmark_names_the_workload_and_seven_numbers() -> None:
    line = attention_cpu.measure(_small_workload(), repeats=1)
    assert re.fullmatch(r"32 rows mixed, 8 tasks +(\d+\.\d+ +){6}\d+%", line)


def test_the_benchmark_prints_no_speed_when_a_route_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention_cpu.padded

    def wrong(work: attention_cpu.Workload) -> Callable[[], torch.Tensor]:
        return lambda: right(work)() * 1.001

    monkeypatch.setattr(attention_cpu, "padded", wrong)
    with pytest.raises(SystemExit, match=r"padded SDPA, mask, 32 rows mixed.*no speeds are printed"):
        attention_cpu.measure(_small_workload(), repeats=1)
