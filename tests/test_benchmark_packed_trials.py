"""The benchmark of packed trials compares them with trials alone before it times anything."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from benchmarks import packed_trials, training_rows
from benchmarks.random_backbone import make_backbone
from benchmarks.training_rows import Task, TaskName, read_task
from prefixbank.model_store.backbones.load import load_backbone

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("backbone")
    return read_task("conll04", load_backbone(str(make_backbone(folder, small=True))), folder, 32, ["max_tokens=16"])


def test_packed_trials_end_where_trials_alone_end(task: Task) -> None:
    assert packed_trials.largest_difference(task, "conll04", 2, steps=3) <= packed_trials.EQUAL


def test_no_time_is_taken_of_trials_that_packing_changes(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_trials, "EQUAL", -1.0)
    with pytest.raises(SystemExit, match=r"conll04: packed trials end .* from trials alone, wanted -1e\+00; no times"):
        packed_trials.measure(task, "conll04", 2, 1, gate_steps=1)


def test_a_result_has_a_ratio_for_every_count(
    task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packed_trials, "COUNTS", (1, 2))
    monkeypatch.setattr(packed_trials, "GATE_TRIALS", 2)
    result = packed_trials.measure(task, "conll04", 2, 1, gate_steps=1)
    packed_trials.show(result)
    assert list(result.ratio) == list(result.packed_tokens_per_s) == [1, 2]
    assert "2 packed" in capsys.readouterr().out.splitlines()[-1]


def test_rows_are_made_up_where_the_data_set_is_absent(
    task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(training_rows.RECIPES, elsewhere)
    monkeypatch.setattr(training_rows, "RECIPES", elsewhere)
    names: tuple[TaskName, ...] = ("sst2", "conll04")
    for name in names:
        made = read_task(name, task.backbone, tmp_path, 8)
        assert (made.is_real, len(made.items)) == (False, 8)
