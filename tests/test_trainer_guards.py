"""What a run refuses to begin from, to write over and to say: baselines, stored starts, half written runs, texts."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from prefixbank.cli_training import served_logits
from prefixbank.model_store import artifact
from prefixbank.model_store.backbones import cpu_products
from prefixbank.model_store.backbones.devices import device_named
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import (
    BackboneError,
    InvalidRecipe,
    ServingMismatch,
    TrainingError,
    TrainingInterrupted,
)
from prefixbank.trainer.build import build, precision_of
from prefixbank.trainer.prepare import prepare
from prefixbank.trainer.progress import LogDisplay
from tests.training_cases import Interrupter, recipe_of, run, write_rows

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.recipe import Recipe

FILES = dict.fromkeys(("train", "validation", "test"), "texts.jsonl")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder)
    return folder


@pytest.fixture(scope="module")
def start(root: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A prompt section that goes on from a run of these rows."""
    trained = run(recipe_of(optimiser={"epochs": 1}), root, tmp_path_factory.mktemp("start"), backbone)
    return {"init": "stored", "start": str(trained.folder)}


def head_of(recipe: Recipe, root: Path, backbone: Backbone) -> torch.Tensor:
    built = build(recipe, backbone, prepare(recipe, root, backbone), root=root, folder=None, display=LogDisplay())
    [part] = built.trial.parts
    return part.head.fold().weight_CM


def test_a_baseline_begins_from_nothing_stored(root: Path, backbone: Backbone, start: dict[str, Any]) -> None:
    stored = artifact.read(root / start["start"]).head.weight_CM
    assert torch.equal(head_of(recipe_of(prompt=start), root, backbone), stored)
    for method in ("head", "full"):
        heads = [head_of(recipe_of(method=method, prompt=prompt), root, backbone) for prompt in ({}, start)]
        assert torch.equal(*heads)


def test_a_run_goes_on_from_the_start_that_it_began_from(
    root: Path, tmp_path: Path, backbone: Backbone, start: dict[str, Any]
) -> None:
    copied = shutil.copytree(start["start"], tmp_path / "stored")
    recipe = recipe_of(
        prompt=start | {"start": str(copied), "parameterisation": "mlp"}, optimiser={"prompt_rate": 1e-3}
    )
    with pytest.raises(TrainingInterrupted):
        run(recipe, root, tmp_path / "out", backbone, display=Interrupter(2))
    other = run(recipe_of(seed=3, optimiser={"epochs": 1}), root, tmp_path / "other", backbone)
    assert other.prompt is not None
    artifact.write(other.prompt, copied)
    with pytest.raises(TrainingError, match="of another recipe"):
        run(recipe, root, tmp_path / "out", backbone, resume=True)


def test_nothing_is_written_where_one_data_set_is_served_otherwise(
    root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    asked: list[int] = []

    def second_differs(prompt: Any, rows: Any, backbone: Backbone) -> Any:
        asked.append(len(rows))
        served = served_logits(prompt, rows, backbone)
        return served if len(asked) == 1 else [row + 99 * (n % 2) for n, row in enumerate(served)]

    recipe = recipe_of(data=None, tasks={"a": {"data": FILES}, "b": {"data": FILES}}, optimiser={"epochs": 1})
    with pytest.raises(ServingMismatch):
        run(recipe, root, tmp_path, backbone, verify=second_differs)
    assert len(asked) == 2
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["checkpoint.safetensors"]


def test_a_file_of_the_users_in_the_artifacts_folder_stays(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"holds 'notes\.txt'.*--resume continues"):
        run(recipe_of(optimiser={"epochs": 1}), root, tmp_path, backbone)
    (tmp_path / "artifact" / "notes.txt").unlink()
    assert run(recipe_of(optimiser={"epochs": 1}), root, tmp_path, backbone, resume=True).folder is not None


@pytest.mark.parametrize(("mistakes", "is_told"), [(0, False), (5, True)])
def test_no_text_of_a_bad_row_is_in_a_report_without_mistakes(
    root: Path, tmp_path: Path, backbone: Backbone, mistakes: int, *, is_told: bool
) -> None:
    rows = (root / "texts.jsonl").read_text()
    (root / "bad.jsonl").write_text(rows * 3 + '{"text": "SECRET \\ud800", "label": "plain"}\n')
    recipe = recipe_of(data={"train": "bad.jsonl"}, report={"mistakes": mistakes}, optimiser={"epochs": 1})
    trained = run(recipe, root, tmp_path, backbone)
    assert trained.report["skipped"]["train"]["rows"] == 1
    assert ("SECRET" in json.dumps(trained.report["skipped"])) is is_told
    assert ("SECRET" in (tmp_path / "report.html").read_text()) is is_told


@pytest.mark.parametrize("name", ["../out", "seeds", "trials", "artifact", "Upper", "a/b", ""])
def test_a_data_set_has_a_name_that_a_folder_can_have(name: str) -> None:
    with pytest.raises(InvalidRecipe, match=r"names in \[tasks\] of 1 to 64 of a-z"):
        recipe_of(data=None, tasks={name: {"data": FILES}, "b": {"data": FILES}})


def test_a_device_that_is_none_or_not_here_is_told() -> None:
    with pytest.raises(BackboneError, match="device: found 'gpu', wanted auto, cpu, cuda"):
        device_named("gpu")
    with pytest.raises(BackboneError, match="device: found cuda:99, wanted one that is here"):
        load_backbone("minilm", device="cuda:99")


def test_a_label_that_only_carved_rows_have_is_a_label(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    rows = [{"text": f"film {n}", "label": "rare" if n == 0 else "ab"[n % 2]} for n in range(40)]
    (root / "rare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(8):
        data = {"train": "rare.jsonl", "validation": None, "test": None, "carve": 0.2, "carve_test": 0.2}
        recipe = recipe_of(seed=seed, data=data)
        assert prepare(recipe, root, backbone).parts[""].labels == ("a", "b", "rare")


@pytest.mark.parametrize(
    ("has_bfloat16", "has_amx", "instructions", "wanted"),
    [
        (False, False, "ALL", torch.float32),
        (True, False, cpu_products.MOST, torch.bfloat16),
        (True, True, cpu_products.MOST, torch.float32),
        (True, True, "ALL", torch.bfloat16),
    ],
)
def test_the_arithmetic_is_chosen_by_what_the_cpu_may_use(
    has_bfloat16: bool, has_amx: bool, instructions: str, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    monkeypatch.setenv(cpu_products.ISA_VARIABLE, instructions)
    assert precision_of(recipe_of(dtype="auto"), torch.device("cpu")) == wanted
    assert precision_of(recipe_of(dtype="bfloat16"), torch.device("cpu")) == torch.bfloat16
