"""The training step's benchmark compares gradients before it times anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks import train_step
from benchmarks.random_backbone import make_backbone
from benchmarks.train_step import LONGEST, OURS, PUBLISHED, SDPA, Bench

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = make_backbone(tmp_path_factory.mktemp("backbone"), small=True)
    return train_step.make_bench(str(folder), torch.float32, 2, alike=False)


def test_every_route_has_the_gradients_of_the_original(bench: Bench) -> None:
    found = train_step.distances(bench)
    assert list(found) == [OURS, LONGEST, PUBLISHED, SDPA]
    assert max(found.values()) <= train_step.FAR[torch.float32]


def test_no_time_is_taken_of_a_step_with_other_gradients(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train_step.FAR, torch.float32, 0.0)
    with pytest.raises(SystemExit, match=r"packed, ours: gradients \d.* from those in fp64, wanted 0e\+00; no times"):
        train_step.measure(bench, 1, "tiny", "at random")


def test_a_report_has_a_ratio_for_every_route(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    report = train_step.measure(bench, 1, "tiny", "at random")
    train_step.show(report)
    assert report.ratio[OURS] == report.ratio_with_optimiser[OURS] == 1
    assert [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()[3:]] == [
        OURS,
        LONGEST,
        PUBLISHED,
        SDPA,
    ]


def test_batches_of_like_length_hold_less_padding(tmp_path: Path) -> None:
    folder = str(make_backbone(tmp_path, small=True))
    rows = train_step.read_rows(train_step.load_backbone(folder), 128)
    waste = {}
    for alike in (True, False):
        batches = train_step.batches_of(rows, alike=alike)
        waste[alike] = sum(len(batch) * max(row.num_tokens for row in batch) for batch in batches)
    assert waste[True] < waste[False]
