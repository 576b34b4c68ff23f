"""What survives an interruption, and what does not go on with a run that was interrupted."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from prefixbank.model_store.errors import TrainingError, TrainingInterrupted
from prefixbank.trainer.outcome import conclude
from tests.training_cases import Interrupter, prompt_of, recipe_of, run, same_bits, write_rows

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.outcome import Outcome


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder)
    return folder


@pytest.mark.parametrize(("after", "number"), [(9, signal.SIGINT), (12, signal.SIGTERM)])
def test_a_resumed_run_equals_the_uninterrupted_one(
    after: int, number: int, root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    recipe = recipe_of(prompt={"dropout": 0.1}, optimiser={"backbone_dropout": True})
    whole = run(recipe, root, tmp_path / "whole", backbone)
    with pytest.raises(TrainingInterrupted, match=f"after step {after}"):
        run(recipe, root, tmp_path / "cut", backbone, display=Interrupter(after, number))
    resumed = run(recipe, root, tmp_path / "cut", backbone, resume=True)
    assert same_bits(prompt_of(whole), prompt_of(resumed))
    curves = [[(e["train_loss"], e["validation"]) for e in t.report["curve"]] for t in (whole, resumed)]
    assert curves[0] == curves[1]
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()


def test_the_checkpoint_of_another_recipe_is_refused(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(TrainingInterrupted):
        run(recipe_of(), root, tmp_path, backbone, display=Interrupter(2, signal.SIGINT))
    with pytest.raises(TrainingError, match="another recipe"):
        run(recipe_of(seed=3), root, tmp_path, backbone, resume=True)


def test_another_backbone_does_not_go_on_with_a_run(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(TrainingInterrupted):
        run(recipe_of(), root, tmp_path, backbone, display=Interrupter(2, signal.SIGINT))
    other = replace(backbone, ref=backbone.ref.model_copy(update={"fingerprint": "f" * 64}))
    with pytest.raises(TrainingError, match="of another backbone"):
        run(recipe_of(), root, tmp_path, other, resume=True)


def test_a_checkpoint_of_another_version_is_refused(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    for state in ("{}", "[]", "null", '{"identity": "x", "curve": [], "more": 1}'):
        save_file({"now.a": torch.ones(1)}, tmp_path / "checkpoint.safetensors", {"prefixbank": state})
        with pytest.raises(TrainingError, match="another version of this program"):
            run(recipe_of(), root, tmp_path, backbone, resume=True)


def test_a_disk_that_is_full_at_the_end_says_where_and_what_goes_on(
    root: Path, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:

        def concluded(*arguments: Any) -> Outcome:
            patched.setattr(os, "fsync", full)
            return conclude(*arguments)

        patched.setattr("prefixbank.trainer.run.conclude", concluded)
        with pytest.raises(TrainingError, match=r"/\S*: found no way .*No space left on device.*--resume continues"):
            run(recipe_of(), root, tmp_path, backbone)
    assert run(recipe_of(), root, tmp_path, backbone, resume=True).folder == tmp_path / "artifact"


def test_an_unfinished_run_is_not_begun_anew(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(TrainingInterrupted):
        run(recipe_of(), root, tmp_path, backbone, display=Interrupter(2, signal.SIGINT))
    with pytest.raises(TrainingError, match="found an unfinished run, wanted --resume"):
        run(recipe_of(), root, tmp_path, backbone)


def test_resuming_nothing_is_refused(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(TrainingError, match="no checkpoint"):
        run(recipe_of(), root, tmp_path, backbone, resume=True)


def test_a_checkpoint_cut_short_is_refused(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(TrainingError, match="no checkpoint of this program"):
        run(recipe_of(), root, tmp_path, backbone, resume=True)
