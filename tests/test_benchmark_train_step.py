"""The training step's benchmark compares gradients before it times anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks import train_memory, train_step
from benchmarks.random_backbone import make_backbone
from benchmarks.train_routes import FULL, OURS, PUBLISHED
from benchmarks.train_step import ROUTES, Bench

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone(tmp_path_factory.mktemp("backbone"), small=True)


@pytest.fixture(scope="module")
def bench(folder: Path) -> Bench:
    return train_step.make_bench(str(folder), torch.float32, 2, alike=False)


def test_every_route_has_the_exact_gradients(bench: Bench) -> None:
    found = train_step.distances(bench)
    assert tuple(found) == ROUTES
    assert max(found.values()) <= train_step.FAR[torch.float32]


def test_no_time_is_taken_of_a_step_with_other_gradients(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train_step.FAR, torch.float32, 0.0)
    with pytest.raises(SystemExit, match=r"packed, ours: gradients \d.* from those in fp64, wanted 0e\+00; no times"):
        train_step.measure(bench, 1, "tiny", "at random")


def test_a_report_has_a_ratio_for_every_route(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    report = train_step.measure(bench, 1, "tiny", "at random")
    train_step.show(report)
    assert report.ratio[OURS] == report.ratio_with_optimiser[OURS] == 1
    assert tuple(line.split("  ")[1] for line in capsys.readouterr().out.splitlines()[3:]) == ROUTES


def test_batches_of_like_length_hold_less_padding(bench: Bench) -> None:
    waste = {}
    for alike in (True, False):
        batches = train_step.batches_of(bench.workshop.task.items, alike=alike)
        waste[alike] = sum(len(batch) * max(row.num_tokens for row in batch) for batch in batches)
    assert waste[True] < waste[False]


def test_a_prompt_takes_less_memory_than_fine_tuning_and_than_padding(folder: Path) -> None:
    found = {}
    for name in (OURS, PUBLISHED, FULL):
        bench = train_step.make_bench(str(folder), torch.float32, 1, alike=False, names=[name])
        found[name] = train_memory.measure(bench, name)
    assert found[OURS].tensors_mib < min(found[PUBLISHED].tensors_mib, found[FULL].tensors_mib)
    assert found[OURS].trained_mib < found[FULL].trained_mib
