"""Whole runs on tiny backbones: what learns, what is repeated, what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from prefixbank.model_store import artifact
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.errors import (
    InvalidData,
    ServingMismatch,
    TrainingError,
)
from prefixbank.model_store.task_prompt import Pooler, TaskPrompt
from prefixbank.trainer.build import build
from prefixbank.trainer.deep_prompt import DeepPrompt
from prefixbank.trainer.pack import Pack
from prefixbank.trainer.prepare import prepare
from prefixbank.trainer.progress import LogDisplay
from tests.conftest import DEVICE
from tests.tiny import tiny_backbone_folder
from tests.training_cases import prompt_of, recipe_of, run, same_bits, write_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.backbones.packing import PackedTokens
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.trainer.build import Built
    from prefixbank.trainer.recipe import Recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "metric"), [("text-classification", "accuracy"), ("token-classification", "span_f1")]
)
def test_a_prompt_learns_a_small_set_by_heart(
    family: str, metric: str, root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    recipe = recipe_of(family, optimiser={"epochs": 25, "prompt_rate": 0.05, "head_rate": 0.02}, head={"dropout": 0.0})
    trained = run(recipe, root, tmp_path, backbone)
    assert trained.report["metrics"]["test"][metric] > 0.95


def test_the_artifact_answers_what_the_report_says(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    trained = run(recipe_of(), root, tmp_path, backbone)
    assert trained.folder is not None
    stored = artifact.read(trained.folder, expect_digest=trained.report["revision"])
    assert same_bits(stored, prompt_of(trained))
    assert stored.metrics["test_accuracy"] == trained.report["metrics"]["test"]["accuracy"]
    assert sorted(path.name for path in trained.folder.iterdir()) == ["manifest.json", "prompt.safetensors"]


def built(recipe: Recipe, root: Path, backbone: Backbone) -> Built:
    prepared = prepare(recipe, root, backbone)
    return build(recipe, backbone, prepared, root=root, folder=None, display=LogDisplay())


def deep_prompt(recipe: Recipe, root: Path, backbone: Backbone) -> DeepPrompt:
    prompt = built(recipe, root, backbone).trial.prompt
    assert isinstance(prompt, DeepPrompt)
    return prompt


def test_nothing_is_differentiated_below_the_lowest_prompted_layer(root: Path, backbone: Backbone) -> None:
    trial, pack = built(recipe_of(prompt={"layers": [2]}), root, backbone)
    states: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, o: states.append(o)) for layer in backbone.model.encoder.layer]
    Pack(backbone, keep_states=False).losses([trial], [trial.share()])
    for hook in hooks:
        hook.remove()
    assert [state.requires_grad for state in states] == [False, False, True]
    assert pack.keep_states


@pytest.mark.parametrize("init", ["text", "random"])
def test_a_prompt_begins_at_the_scale_of_real_keys_and_values(init: str, root: Path, backbone: Backbone) -> None:
    recipe = recipe_of(prompt={"init": init, "length": 400, "layers": [0, 2]})
    kv_N2HPD = deep_prompt(recipe, root, backbone).values().detach()
    assert kv_N2HPD.shape == (2, 2, 4, 400, 8)
    real = backbone.key_values(packed_training_rows(recipe, root, backbone))[[0, 2]]
    torch.testing.assert_close(kv_N2HPD.mean((3, 4)), real.mean((3, 4)), atol=0.1, rtol=0.1)
    torch.testing.assert_close(kv_N2HPD.std(3), real.std(3), atol=0.1, rtol=0.2)


def packed_training_rows(recipe: Recipe, root: Path, backbone: Backbone) -> PackedTokens:
    items = prepare(recipe, root, backbone).parts[""].items["train"]
    return backbone.pack([PackRow(row.token_ids, row.type_ids) for item in items for row in item.rows])


def test_a_text_start_copies_keys_and_values_of_training_tokens(root: Path, backbone: Backbone) -> None:
    recipe = recipe_of()
    real_TD = backbone.key_values(packed_training_rows(recipe, root, backbone))[0, 0, 0]
    begun = deep_prompt(recipe, root, backbone).values()[0, 0, 0].detach()
    assert torch.cdist(begun, real_TD).min(1).values.max() < 1e-4


def test_a_start_from_labels_repeats_their_words(root: Path, backbone: Backbone) -> None:
    kv_N2HPD = deep_prompt(recipe_of(prompt={"init": "labels", "length": 40}), root, backbone).values().detach()
    assert len(torch.unique(kv_N2HPD[0, 0, 0], dim=0)) < 40


def test_a_published_start_is_small_noise(root: Path, backbone: Backbone) -> None:
    kv_N2HPD = deep_prompt(recipe_of(prompt={"init": "normal", "length": 200}), root, backbone).values().detach()
    assert float(kv_N2HPD.std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("parameterisation", ["embedding", "mlp"])
def test_a_stored_start_continues_where_the_other_run_ended(
    parameterisation: str, root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    first = run(recipe_of(prompt={"dtype": "float32"}), root, tmp_path / "first", backbone)
    stored = {"init": "stored", "start": str(first.folder), "dtype": "float32", "parameterisation": parameterisation}
    still = {"prompt_rate": 0.0, "head_rate": 0.0, "epochs": 1}
    again = run(recipe_of(prompt=stored, optimiser=still), root, tmp_path / "again", backbone)
    assert same_bits(prompt_of(first), prompt_of(again))
    assert again.report["metrics"] == first.report["metrics"]


def test_a_stored_start_of_another_length_is_refused(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    first = run(recipe_of(), root, tmp_path / "first", backbone)
    stored = {"init": "stored", "start": str(first.folder), "length": 7}
    with pytest.raises(TrainingError, match=r"found 6 tokens in layers .*wanted 7 tokens"):
        run(recipe_of(prompt=stored), root, tmp_path / "again", backbone)


def test_an_mlp_is_folded_away(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    changes = {"parameterisation": "mlp", "mlp_width": 16, "dtype": "float32"}
    trained = run(recipe_of(prompt=changes), root, tmp_path, backbone)
    assert prompt_of(trained).kv_N2HPD.shape == (3, 2, 4, 6, 8)
    assert trained.report["trained_parameters"] == 6 * 32 + (32 * 16 + 16) + (16 * 6 * 32 + 6 * 32) + 2 * 32 + 2


def test_a_shallow_prompt_is_vectors_before_the_text(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    prompt = prompt_of(run(recipe_of(method="shallow"), root, tmp_path, backbone))
    assert prompt.shallow_PM is not None
    assert prompt.shallow_PM.shape == (6, 32)
    assert (prompt.layers, prompt.prefix_length, prompt.shallow_length) == ((), 0, 6)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    first, again = (prompt_of(run(recipe_of(), root, tmp_path / name, backbone)) for name in "ab")
    other = prompt_of(run(recipe_of(seed=12), root, tmp_path / "c", backbone))
    assert same_bits(first, again)
    assert not same_bits(first, other)


@pytest.mark.parametrize("label", ["x" * 1001, "\ud800"], ids=["long", "half a character"])
def test_a_label_that_no_artifact_holds_is_refused_before_training(
    label: str, root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    rows = [{"text": "a film", "label": label if n % 2 else "b"} for n in range(8)]
    (root / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InvalidData, match=r"labels\.jsonl:2: label: found"):
        run(recipe_of(data={"train": "labels.jsonl"}), root, tmp_path, backbone)


def test_a_run_stops_when_it_is_out_of_patience(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    rates = {"epochs": 50, "prompt_rate": 0.0, "head_rate": 0.0}
    trained = run(recipe_of(optimiser=rates, selection={"patience": 2}), root, tmp_path, backbone)
    assert len(trained.report["curve"]) == 3
    assert trained.report["selection"]["epoch"] == 1


def test_the_best_epoch_is_kept(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    trained = run(recipe_of(optimiser={"epochs": 6, "prompt_rate": 0.5}), root, tmp_path, backbone)
    curve = [epoch["validation"]["accuracy"] for epoch in trained.report["curve"]]
    assert trained.report["selection"]["epoch"] == curve.index(max(curve)) + 1
    assert trained.report["metrics"]["validation"]["accuracy"] == pytest.approx(max(curve), abs=0.03)


def test_a_head_alone_makes_a_prompt_without_prefix(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    prompt = prompt_of(run(recipe_of(method="head"), root, tmp_path, backbone))
    assert (prompt.layers, prompt.prefix_length) == ((), 0)


@pytest.mark.parametrize("family", ["text-classification", "token-classification"])
def test_full_fine_tuning_makes_a_report_only_and_leaves_the_backbone_alone(
    family: str, root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    trained = run(recipe_of(family, method="full", optimiser={"backbone_rate": 1e-3}), root, tmp_path, backbone)
    assert (trained.prompt, trained.folder) == (None, None)
    assert trained.report["trained_share"] > 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    losses = [epoch["train_loss"] for epoch in trained.report["curve"]]
    assert losses[-1] < losses[0]


def test_a_backbone_without_pooler_gets_one_in_the_head(root: Path, tmp_path: Path) -> None:
    roberta = load_backbone(str(tiny_backbone_folder(tmp_path, "roberta")), device=DEVICE)
    prompt = prompt_of(run(recipe_of(), root, tmp_path / "out", roberta))
    assert prompt.head.spec.pooler == Pooler.OWN
    assert prompt.head.pooler_weight_MM is not None
    with pytest.raises(TrainingError, match="has no pooler"):
        run(recipe_of(head={"pooler": "backbone"}), root, tmp_path / "refused", roberta)


def test_bfloat16_trains_float32_prompts(root: Path, tmp_path: Path) -> None:
    folder = str(tiny_backbone_folder(tmp_path, "bert"))
    halved = load_backbone(folder, dtype=torch.bfloat16, device=DEVICE)
    recipe = recipe_of(dtype="bfloat16", prompt={"dtype": "float32"})
    assert prompt_of(run(recipe, root, tmp_path / "out", halved)).kv_N2HPD.dtype == torch.float32


@pytest.mark.parametrize("parameterisation", ["embedding", "mlp"])
def test_what_is_folded_is_what_was_evaluated(parameterisation: str, root: Path, backbone: Backbone) -> None:
    prompt = deep_prompt(recipe_of(prompt={"parameterisation": parameterisation}), root, backbone)
    prompt.round_to(torch.float16)
    assert torch.equal(prompt.fold(torch.float16).float(), prompt.values())


def test_a_row_is_evaluated_the_same_alone(root: Path, backbone: Backbone) -> None:
    trial, pack = built(recipe_of("token-classification"), root, backbone)
    [part] = trial.parts
    together = pack.predict(trial, part, part.train)
    for item, [logits_TC] in list(zip(part.train, together, strict=True))[:5]:
        np.testing.assert_allclose(pack.predict(trial, part, [item])[0][0], logits_TC, atol=1e-5)


def test_served_logits_that_differ_are_refused(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    def wrong(prompt: TaskPrompt, rows: Sequence[Features], _: Backbone) -> list[np.ndarray[Any, Any]]:
        return [np.zeros(len(prompt.labels), dtype=np.float32) for _ in rows]

    with pytest.raises(ServingMismatch, match="not published"):
        run(recipe_of(), root, tmp_path, backbone, verify=wrong)
    assert not (tmp_path / "artifact").exists()


def test_a_position_offset_shifts_and_shortens(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    prompt = prompt_of(run(recipe_of(prompt={"position_offset": "length"}), root, tmp_path, backbone))
    assert prompt.position_offset == 6
    with pytest.raises(TrainingError, match="wanted at most 506"):
        run(recipe_of(prompt={"position_offset": "length"}, max_tokens=507), root, tmp_path, backbone)


def test_a_layer_that_the_backbone_lacks_is_refused(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(TrainingError, match="found layer 3, wanted 0 to 2"):
        run(recipe_of(prompt={"layers": [1, 3]}), root, tmp_path, backbone)


def test_a_label_unseen_in_training_is_refused_by_line(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    (root / "odd.jsonl").write_text('{"text": "a film", "label": "odd"}\n')
    with pytest.raises(InvalidData, match=r"odd\.jsonl:1: found label 'odd', wanted one of"):
        run(recipe_of(data={"test": "odd.jsonl"}), root, tmp_path, backbone)


def test_a_loss_that_is_no_number_stops_the_run(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(TrainingError, match=r"found a loss of nan in step \d+, wanted finite ones"):
        run(recipe_of(optimiser={"weight_decay": 1e30}), root, tmp_path, backbone)


def test_a_prompt_that_overflows_its_storage_is_refused(root: Path, backbone: Backbone) -> None:
    prompt = deep_prompt(recipe_of(), root, backbone)
    torch.nn.init.constant_(prompt.kv_N2HPD, 1e30)
    with pytest.raises(TrainingError, match=r"prompt\.dtype"):
        prompt.fold(torch.float16)


def test_the_report_counts_and_doubts(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    report = run(recipe_of(), root, tmp_path, backbone).report
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["trained_parameters"] == 3 * 2 * 4 * 6 * 8 + 2 * 32 + 2
    assert report["data"]["splits"]["train"]["rows"] == 48
    low, high = report["confidence"]["intervals"]["test"]["accuracy"]
    assert low <= report["metrics"]["test"]["accuracy"] <= high
    assert sum(map(sum, report["details"]["test"]["confusion"])) == 48
    assert report["serving_check"] is None
