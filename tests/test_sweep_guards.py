"""What a sweep refuses, what ends one of its trials alone, and what it says of data sets that are reported unlike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.model_store.errors import TrainingError, TrainingInterrupted
from prefixbank.trainer.sweep import Job, TimeLimit, sweep
from prefixbank.trainer.sweep.record import seconds_in
from tests.sweep_cases import Quiet, recipe_of, swept, write_texts

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone

SMALL: dict[str, Any] = {"space": {"prompt.length": [2, 4]}, "trials": 2, "seeds": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data")).parent


def test_a_finished_sweep_is_not_resumed(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    recipe = recipe_of(sweep=SMALL)
    swept(recipe, root, tmp_path, backbone)
    kept = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(TrainingError, match="found a sweep that is finished, wanted an interrupted one"):
        swept(recipe, root, tmp_path, backbone, resume=True)
    assert (tmp_path / "sweep.json").read_bytes() == kept


def test_a_damaged_identity_is_told(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    for content in ("{", "[]", "{}"):
        (tmp_path / "identity.json").write_text(content)
        with pytest.raises(TrainingError, match=r"identity\.json: found no identity of a sweep"):
            swept(recipe_of(sweep=SMALL), root, tmp_path, backbone, resume=True)


def test_what_trials_took_before_an_interruption_counts(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    spent: list[float] = []

    class Noted(TimeLimit):
        def shortened(self, seconds: float) -> TimeLimit:
            spent.append(seconds)
            return TimeLimit.shortened(self, seconds)

    with pytest.raises(TrainingInterrupted):
        swept(recipe_of(), root, tmp_path, backbone, display=Quiet(4))
    before = seconds_in(tmp_path / "trials")
    job = Job("texts", recipe_of(), root, tmp_path, 5)
    sweep([job], backbone, show=lambda _: Quiet(), resume=True, limit=Noted(600, 0, lambda: 0.0))
    assert spent == [before]


def test_labels_without_a_word_end_a_trial_and_not_the_sweep(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    rows = [{"text": f"film {n}", "label": "-_"[n % 2]} for n in range(24)]
    (root / "signs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = dict.fromkeys(("train", "validation", "test"), "signs.jsonl")
    space = {"prompt.init": ["text", "labels"]}
    result = swept(recipe_of(data=files, sweep=SMALL | {"space": space}), root, tmp_path, backbone)
    assert result.settings == {"prompt.init": "text"}
    trials = json.loads((tmp_path / "sweep.json").read_bytes())["trials"]
    assert [trial["reason"] for trial in trials if trial["state"] == "failed"] == [
        'prompt.init: found "labels" and no word in any label, wanted "text" or another start'
    ]


def test_more_words_of_labels_than_the_backbone_reads_are_a_start(
    root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    rows = [{"text": f"film {n % 7}", "label": f"the quiet kitchen number {n % 60}"} for n in range(240)]
    (root / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = dict.fromkeys(("train", "validation", "test"), "many.jsonl")
    recipe = recipe_of(data=files, prompt={"init": "labels"}, optimiser={"epochs": 1}, sweep=SMALL)
    assert swept(recipe, root, tmp_path, backbone).reported


def test_the_last_seed_is_followed_by_the_first(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    recipe = recipe_of(seed=2**31 - 1, sweep=SMALL | {"seeds": 2})
    assert swept(recipe, root, tmp_path, backbone).seeds == (2**31 - 1, 0)


def test_data_sets_that_are_reported_on_unlike_rows_are_both_named(
    root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    tasks = {
        "a": {"data": dict.fromkeys(("train", "validation", "test"), "texts.jsonl")},
        "b": {"data": {"train": "texts.jsonl", "validation": "texts.jsonl"}},
    }
    result = swept(recipe_of(data=None, tasks=tasks, sweep=SMALL), root, tmp_path, backbone)
    assert result.split == "test and validation"
