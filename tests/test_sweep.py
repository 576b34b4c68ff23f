"""Whole sweeps on a tiny backbone: what they write, what is pruned, what time allows, what an interruption costs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from prefixbank.model_store import artifact
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import InvalidRecipe, TrainingError, TrainingInterrupted
from prefixbank.trainer import checkpoint
from prefixbank.trainer.build import build_trial
from prefixbank.trainer.pack import Pack
from prefixbank.trainer.prepare import prepare
from prefixbank.trainer.progress import LogDisplay
from prefixbank.trainer.recipe import load
from prefixbank.trainer.report import render_sweep
from prefixbank.trainer.run import train
from prefixbank.trainer.sweep import Job, TimeLimit, sweep
from prefixbank.trainer.sweep.record import seconds_in
from prefixbank.trainer.sweep.referee import Referee, Timekeeper
from prefixbank.trainer.sweep.speed import Speed, fit_threads
from prefixbank.trainer.sweep.time_limit import Pace
from prefixbank.trainer.sweep.watch import Watch
from prefixbank.trainer.trial import Trial
from tests.sweep_cases import Clock, Quiet, recipe_of, swept, write_texts
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.recipe import Recipe
    from prefixbank.trainer.trial import Epoch


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("backbones"), "bert")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder)
    return folder


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of trials, once for each epoch that was trained."""
    seeds: list[int] = []
    close_epoch = Trial.close_epoch

    def close(trial: Trial, scores: Mapping[str, float]) -> Epoch:
        seeds.append(trial.recipe.seed)
        return close_epoch(trial, scores)

    monkeypatch.setattr(Trial, "close_epoch", close)
    return seeds


def record_in(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return record


def outcomes(folder: Path) -> list[tuple[Any, ...]]:
    """What a sweep did, times apart."""
    return [
        (
            trial["settings"],
            trial["state"],
            trial["score"],
            [(e["train_loss"], e["validation"]) for e in trial["curve"]],
        )
        for trial in record_in(folder)["trials"]
    ]


def test_a_sweep_tries_settings_and_runs_the_best_once_per_seed(
    root: Path, tmp_path: Path, backbone: Backbone, closed: list[int]
) -> None:
    result = swept(recipe_of(sweep={"pruner": "none"}), root, tmp_path, backbone)
    record = record_in(tmp_path)
    assert [trial["number"] for trial in record["trials"]] == [0, 1, 2, 3, 4]
    best = max(record["trials"], key=lambda trial: trial["score"])
    assert record["best"]["settings"] == result.settings == best["settings"]
    assert record["best"]["validation"][0] == best["score"]
    assert (result.seeds, len(result.reported), result.split) == ((11, 12), 2, "test")
    assert record["best"]["reported"]["mean"] == pytest.approx(np.mean(result.reported))
    assert record["best"]["reported"]["std"] == pytest.approx(np.std(result.reported, ddof=1))
    assert len(closed) == 5 * 3 + 3, "the trial that won is one of the two seeds already"
    assert "texts" not in render_sweep(record) or record["trials"], "the page can be drawn"
    assert not list(tmp_path.rglob("checkpoint.safetensors"))


def test_the_recipe_of_the_best_trains_the_artifact_that_was_kept(
    root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    result = swept(recipe_of(prompt={"dtype": "float32"}), root, tmp_path / "sweep", backbone)
    recipe = load(tmp_path / "sweep" / "best.toml")
    again = train(recipe, tmp_path / "again", root=tmp_path / "sweep", backbone=backbone)
    kept = artifact.read(tmp_path / "sweep" / "artifact")
    assert again.prompt is not None
    torch.testing.assert_close(again.prompt.kv_N2HPD, kept.kv_N2HPD, atol=1e-5, rtol=0)
    assert recipe.seed in result.seeds
    assert recipe.sweep is None


def test_rows_that_chose_settings_are_never_reported_by_the_recipe_of_the_best(
    root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    carved = {"validation": None, "test": None, "carve": 12, "carve_test": 12}
    recipe = recipe_of(data=carved, sweep={"trials": 2, "seeds": 3}, prompt={"dtype": "float32"})
    result = swept(recipe, root, tmp_path, backbone)
    best = load(tmp_path / "best.toml")
    assert (best.seed, best.data and best.data.seed) == (result.recipe.seed, 11)
    rows = {again: splits_of(best.model_copy(update={"seed": again}), tmp_path, backbone) for again in (11, 12, 13)}
    assert rows[11] == rows[12] == rows[13] == splits_of(recipe, root, backbone)
    again = train(best, tmp_path / "again", root=tmp_path, backbone=backbone)
    assert again.report["metrics"]["test"] == pytest.approx(result.trained.report["metrics"]["test"], abs=1e-5)


def splits_of(recipe: Recipe, root: Path, backbone: Backbone) -> dict[str, list[str]]:
    """Where the rows of each split stand."""
    items = prepare(recipe, root, backbone).parts[""].items
    return {split: [item.example.where for item in found] for split, found in items.items()}


def test_interrupted_sweeps_end_where_the_uninterrupted_one_does(
    root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    recipe = recipe_of(prompt={"dropout": 0.1}, sweep={"pruner": "none"})
    whole = swept(recipe, root, tmp_path / "whole", backbone)
    for after in (2, 5, 7):  # among the first trials, among later ones, among the runs of the best
        with pytest.raises(TrainingInterrupted, match="--resume continues"):
            swept(recipe, root, tmp_path / "cut", backbone, display=Quiet(after), resume=(tmp_path / "cut").exists())
    resumed = swept(recipe, root, tmp_path / "cut", backbone, resume=True)
    assert outcomes(tmp_path / "cut") == outcomes(tmp_path / "whole")
    assert (resumed.settings, resumed.validation, resumed.reported) == (
        whole.settings,
        whole.validation,
        whole.reported,
    )
    kept = [artifact.read(tmp_path / name / "artifact") for name in ("whole", "cut")]
    assert torch.equal(kept[0].kv_N2HPD, kept[1].kv_N2HPD)


def test_the_time_of_interrupted_trials_is_spent(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(TrainingInterrupted):
        swept(recipe_of(), root, tmp_path, backbone, display=Quiet(4))  # all three of the first pack run
    states = [checkpoint.load(path.parent).state for path in tmp_path.rglob(checkpoint.FILE)]
    assert len(states) == 3
    found = seconds_in(tmp_path / "trials")
    assert found == pytest.approx(sum(state["train_seconds"] + state["epoch_seconds"] for state in states))
    assert found > 0


def test_another_sweep_in_the_folder_is_refused(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(TrainingError, match="found no sweep, wanted one to resume"):
        swept(recipe_of(), root, tmp_path / "out", backbone, resume=True)
    with pytest.raises(TrainingInterrupted):
        swept(recipe_of(), root, tmp_path / "out", backbone, display=Quiet(1))
    with pytest.raises(TrainingError, match="wanted --resume to continue it"):
        swept(recipe_of(), root, tmp_path / "out", backbone)
    with pytest.raises(TrainingError, match="another recipe, space, backbone"):
        swept(recipe_of(seed=4), root, tmp_path / "out", backbone, resume=True)


def test_trials_that_are_behind_end_early(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    rates = {"space": {"optimiser.prompt_rate": [0.0, 1e-9, 2e-9, 3e-9, 0.05, 0.08]}, "trials": 6, "together": 6}
    still = {"epochs": 12, "head_rate": 0.0, "warmup": 0.0}
    swept(recipe_of(optimiser=still, sweep=rates | {"pruner": "halving"}), root, tmp_path, backbone)
    trials = record_in(tmp_path)["trials"]
    assert sorted(trial["epochs"] for trial in trials) == [2, 2, 2, 3, 6, 12]
    assert [trial["state"] for trial in trials].count("pruned") == 5
    assert all("others have come further" in trial["reason"] for trial in trials if trial["state"] == "pruned")


def test_what_diverges_or_does_not_fit_has_failed_and_nothing_else_has(
    root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    space = {"space": {"optimiser.weight_decay": [0.0, 1e30], "prompt.layers": ["all", [7]]}, "sampler": "grid"}
    swept(recipe_of(sweep=space | {"trials": 9, "pruner": "none"}), root, tmp_path, backbone)
    found = {json.dumps(trial["settings"]): trial for trial in record_in(tmp_path)["trials"]}
    states = {name: trial["state"] for name, trial in found.items()}
    assert sorted(states.values()) == ["complete", "failed", "failed", "failed"]
    reasons = [trial["reason"] for trial in found.values() if trial["state"] == "failed"]
    assert sorted("loss of nan" in reason for reason in reasons) == [False, False, True]
    assert sum("found layer 7, wanted 0 to 2" in reason for reason in reasons) == 2


def test_a_sweep_in_which_all_fails_says_why(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    recipe = recipe_of(sweep={"space": {"prompt.layers": [[7], [8]]}, "trials": 2})
    with pytest.raises(TrainingError, match=r"no trial of 2 has a score\. First: .*found layer"):
        swept(recipe, root, tmp_path, backbone)


@pytest.mark.parametrize(("seconds", "pruner"), [(60, "median"), (120, "halving")])
def test_a_sweep_is_done_in_its_time(
    seconds: float, pruner: str, root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    clock = Clock(epoch_s=4.0)
    tokens = 4.0 / 500  # about as slow as the clock: an epoch has some 400 tokens, and 400 to validate
    recipe = recipe_of(optimiser={"epochs": 4}, sweep={"pruner": pruner, "together": 4})
    options = {"limit": TimeLimit(seconds, 0.0, clock), "speed": Speed(tokens, tokens / 10)}
    swept(recipe, root, tmp_path, backbone, display=Quiet(clock=clock), **options)
    trials = record_in(tmp_path)["trials"]
    assert 0.5 * seconds <= clock.now <= seconds, "what follows the last epoch takes none of this clock's time"
    assert any(trial["state"] == "complete" for trial in trials)
    assert not any(trial["state"] == "failed" for trial in trials)


@pytest.mark.parametrize(("cost", "fastest"), [({1: 2.0, 2: 9.0, 4: 1.0}, 1), ({1: 4.0, 2: 2.1, 4: 1.2}, 4)])
def test_as_many_threads_as_are_of_use(cost: dict[int, float], fastest: int, root: Path, backbone: Backbone) -> None:
    prepared = prepare(recipe_of(), root, backbone)
    trial = build_trial(recipe_of(), backbone, prepared, root=root, folder=None, display=LogDisplay())
    before, now = torch.get_num_threads(), [0.0]

    def clock() -> float:
        now[0] += cost[torch.get_num_threads()]
        return now[0]

    torch.set_num_threads(4)
    try:
        assert fit_threads(Pack(backbone), trial, seconds=1.0, clock=clock) == fastest == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def test_time_that_runs_out_in_mid_epoch_ends_what_has_an_epoch(root: Path, backbone: Backbone) -> None:
    clock, speed = Clock(epoch_s=0.0), Speed(1.0, 1.0)
    prepared = prepare(recipe_of(), root, backbone)
    old, new = (
        build_trial(recipe_of(), backbone, prepared, root=root, folder=None, display=LogDisplay()) for _ in range(2)
    )
    old.state.best_epoch = 1
    watch = Watch(TimeLimit(100.0, 0.0, clock), speed, lambda: 20.0)
    watch([old, new])
    assert not old.state.finished
    clock.now = 81.0
    watch([old, new])
    assert (old.state.finished, new.state.finished) == (True, False)


@pytest.mark.parametrize("has_better", [True, False], ids=["of several", "alone"])
def test_a_trial_without_an_epoch_is_never_taken_for_a_whole_one(
    has_better: bool, root: Path, backbone: Backbone
) -> None:
    prepared = prepare(recipe_of(), root, backbone)
    judged, begun = (
        build_trial(recipe_of(), backbone, prepared, root=root, folder=None, display=LogDisplay()) for _ in range(2)
    )
    clock = Clock(epoch_s=0.0)
    pace = Pace(clock)
    searches = [_searched(judged, None), _searched(begun, object() if has_better else None)]
    referee = Referee(searches, pace, TimeLimit(100.0, 0.0, clock), Speed(1.0, 1.0))  # type: ignore[arg-type]
    clock.now = 90.0
    judged.state.epoch_seconds = 90.0
    judged.close_epoch({"accuracy": 0.5, "loss": 1.0})
    referee(judged)
    assert (judged.state.finished, judged.state.failure) == (True, "")
    assert begun.state.finished == has_better
    assert begun.state.failure == ("pruned after epoch 0: no time for more" if has_better else "")


def _searched(trial: Trial, best: object) -> SimpleNamespace:
    """As much of a search with one running trial as a referee asks."""
    return SimpleNamespace(
        running={0: trial},
        records=[],
        best=best,
        base=trial.recipe,
        section=trial.recipe.sweep,
        held_out_tokens=(0, 0),
        prepared=SimpleNamespace(parts={"": SimpleNamespace(items={"train": trial.parts[0].train})}),
        pruner=SimpleNamespace(losers=lambda _: [], rungs=lambda *_: []),
        standings=list,
        note=lambda _: None,
    )


def test_a_seed_without_an_epoch_goes_on_to_its_first(root: Path, backbone: Backbone) -> None:
    prepared = prepare(recipe_of(), root, backbone)
    judged, begun = (
        build_trial(recipe_of(), backbone, prepared, root=root, folder=None, display=LogDisplay()) for _ in range(2)
    )
    clock = Clock(epoch_s=0.0)
    pace, limit = Pace(clock), TimeLimit(100.0, 0.0, clock)
    referee = Referee([_searched(judged, None)], pace, limit, Speed(1.0, 1.0))  # type: ignore[list-item]
    timekeeper = Timekeeper([judged, begun], pace, referee)
    clock.now = 99.0
    judged.state.epoch_seconds = 99.0
    judged.close_epoch({"accuracy": 0.5, "loss": 1.0})
    timekeeper(judged)
    assert (judged.state.finished, begun.state.finished) == (True, False)


def test_a_machine_that_got_slow_gets_fewer_threads(root: Path, backbone: Backbone) -> None:
    prepared = prepare(recipe_of(), root, backbone)
    trial = build_trial(recipe_of(), backbone, prepared, root=root, folder=None, display=LogDisplay())
    watch = Watch(TimeLimit(100.0, 0.0, Clock(0.0)), Speed(1e-3, 1e-3), lambda: 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for cost, threads in [(0.0, 4), *[(1.0, 4)] * 8, (10.0, 2)]:
            trial.state.epoch_seconds += cost
            trial.state.trained_tokens += 1000
            watch([trial])
            assert torch.get_num_threads() == threads
        assert watch.slowness > 3
    finally:
        torch.set_num_threads(before)


def test_recipes_that_share_a_backbone_are_swept_together(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    few = {"trials": 3, "seeds": 1}
    recipes = {"one": recipe_of(sweep=few), "other": recipe_of(method="head", sweep=few | {"space": {}, "trials": 2})}
    jobs = [
        Job(name, recipe, root, tmp_path / name, recipe.sweep.trials if recipe.sweep else 0)
        for name, recipe in recipes.items()
    ]
    one, other = sweep(jobs, backbone, show=lambda _: Quiet())
    assert (len(record_in(tmp_path / "one")["trials"]), len(record_in(tmp_path / "other")["trials"])) == (3, 2)
    assert (len(one.seeds), len(other.seeds)) == (1, 1)
    alone = swept(recipes["one"], root, tmp_path / "alone", backbone)
    assert alone.settings == one.settings
    assert [found[0] for found in outcomes(tmp_path / "alone")] == [found[0] for found in outcomes(tmp_path / "one")]


def test_recipes_that_do_not_share_a_backbone_are_refused(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    recipes = [recipe_of(), recipe_of(dtype="bfloat16")]
    jobs = [Job(str(place), recipe, root, tmp_path / str(place), 2) for place, recipe in enumerate(recipes)]
    with pytest.raises(InvalidRecipe, match="dtype: found 'bfloat16', wanted 'float32'"):
        sweep(jobs, backbone, show=lambda _: Quiet())


def test_full_fine_tuning_is_swept_one_by_one(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    recipe = recipe_of(method="full", optimiser={"epochs": 1}, sweep={"space": {}, "trials": 2, "seeds": 2})
    result = swept(recipe, root, tmp_path, backbone)
    assert set(result.settings) == {"optimiser.backbone_rate", "optimiser.head_rate"}
    assert len(result.reported) == 2
    assert not (tmp_path / "artifact").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())


def test_the_rows_do_not_depend_on_the_seed_of_a_trial(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    data = {"train": {"path": "texts.jsonl", "limit": 30}, "validation": None, "carve": 10, "test": None}
    recipe = recipe_of(data=data, sweep={"space": {"seed": [1, 2, 3]}, "trials": 3, "seeds": 2, "pruner": "none"})
    result = swept(recipe, root, tmp_path, backbone)
    assert result.split == "validation"
    trials = record_in(tmp_path)["trials"]
    assert len({trial["seed"] for trial in trials}) == len(trials) == 3
    best = max(trials, key=lambda trial: (trial["score"], -trial["number"]))
    assert result.seeds == (best["seed"], best["seed"] + 1)


class Killed(BaseException):
    """Nothing catches it, so nothing is written after it: what is on disk is what SIGKILL would leave."""


class Kill(Quiet):
    def epoch(self, *told: Any) -> None:
        super().epoch(*told)
        if self.epochs == 8:
            raise Killed


def test_a_killed_sweep_loses_no_more_than_the_epochs_at_hand(
    root: Path, tmp_path: Path, backbone: Backbone, closed: list[int]
) -> None:
    recipe = recipe_of(sweep={"pruner": "none"})
    with pytest.raises(Killed):
        swept(recipe, root, tmp_path / "cut", backbone, display=Kill())
    assert len(closed) == 8
    cut = swept(recipe, root, tmp_path / "cut", backbone, resume=True)
    assert len(closed) == 18 + 1, "the eighth epoch was judged, and killed before it was written"
    whole = swept(recipe, root, tmp_path / "whole", backbone)
    assert [found[0] for found in outcomes(tmp_path / "cut")] == [found[0] for found in outcomes(tmp_path / "whole")]
    assert (cut.settings, cut.reported) == (whole.settings, whole.reported)
