"""From rows and a time to a plan on disk: rare labels, other methods, and an end between plan and search."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank.model_store.errors import TrainingError
from prefixbank.trainer import defaults
from prefixbank.trainer.defaults.choose import FIRST, PLAN_FILE
from prefixbank.trainer.sweep import TimeLimit
from prefixbank.trainer.sweep.search import IDENTITY_FILE
from prefixbank.trainer.sweep.speed import measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.pack import Pack
    from prefixbank.trainer.sweep.speed import Speed
    from prefixbank.trainer.trial import Trial


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """A plan may set how many there are."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def request_of(folder: Path, labels: int, *overrides: str) -> defaults.Request:
    rows = [{"text": f"film number {n % 90}", "label": f"label {n % labels}"} for n in range(450)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return defaults.Request(folder / "rows.jsonl", overrides=overrides)


def chosen(request: defaults.Request, out: Path, backbone: Backbone) -> defaults.Choice:
    limit = TimeLimit(20, time.monotonic())
    return defaults.choose(request, defaults.begin(request, out), out, backbone, limit)


def test_labels_that_the_measured_rows_lack_are_known(tmp_path: Path, backbone: Backbone) -> None:
    assert chosen(request_of(tmp_path, 150), tmp_path / "out", backbone).recipe.sweep is not None


def test_every_plan_begins_from_the_same_first_settings(tmp_path: Path, backbone: Backbone) -> None:
    before = json.dumps(list(FIRST.values()))
    found = [chosen(request_of(tmp_path, 2), tmp_path / "out", backbone).recipe for _ in range(2)]
    assert json.dumps(list(FIRST.values())) == before
    assert found[0].optimiser.prompt_rate == found[1].optimiser.prompt_rate or (
        found[0].optimiser.batch_rows != found[1].optimiser.batch_rows
    )


def test_fine_tuning_is_measured_as_it_runs(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[tuple[int, bool]] = []

    def noted(pack: Pack, trial: Trial, count: int) -> Speed:
        together.append((count, pack.backbone is backbone))
        return measure(pack, trial, count)

    monkeypatch.setattr(sys.modules["prefixbank.trainer.defaults.choose"], "measure", noted)
    chosen(request_of(tmp_path, 2, "method=full"), tmp_path / "out", backbone)
    assert together == [(1, False)]


def test_a_plan_whose_search_never_began_is_made_again(tmp_path: Path, backbone: Backbone) -> None:
    request, out = request_of(tmp_path, 2), tmp_path / "out"
    chosen(request, out, backbone)
    assert (out / PLAN_FILE).exists()
    with pytest.raises(TrainingError, match="found no search, wanted one to resume"):
        defaults.resumed(out, TimeLimit(20, time.monotonic()))
    assert defaults.begin(request, out).family == "text-classification"
    (out / IDENTITY_FILE).write_text('{"identity": "a"}')
    with pytest.raises(TrainingError, match="found an interrupted search, wanted --resume"):
        defaults.begin(request, out)
