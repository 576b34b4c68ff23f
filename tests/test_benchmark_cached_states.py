"""The benchmark of kept states compares them with fresh ones before it gives a time."""

from __future__ import annotations

import pytest

from benchmarks import cached_states
from benchmarks.cached_states import HALF, HEAD
from benchmarks.random_backbone import make_backbone
from benchmarks.training_rows import Task, read_task
from prefixbank.model_store.backbones.load import load_backbone


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("backbone")
    return read_task("sst2", load_backbone(str(make_backbone(folder, small=True))), folder, 64, ["max_tokens=16"])


@pytest.mark.parametrize("kind", [HALF, HEAD])
def test_kept_states_take_the_memory_of_what_is_read(task: Task, kind: str) -> None:
    result = cached_states.measure(task, "sst2", kind, 2)
    states = result.tokens if kind == HALF else len(task.items)
    assert result.kept_mib * cached_states.MIB == states * task.backbone.ref.width * 4
    assert len(result.kept_ms) == len(result.ratio) == 2


def test_no_time_is_given_where_kept_states_change_what_is_learned(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_states, "EQUAL", -1.0)
    with pytest.raises(SystemExit, match=r"kept states end .* from fresh ones, wanted -1e\+00; no times"):
        cached_states.measure(task, "sst2", HEAD, 1)
