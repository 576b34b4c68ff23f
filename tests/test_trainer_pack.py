"""Trials that share every step end where each ends alone, and what they share is computed once."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from prefixbank.model_store.backbones.cpu_products import STRICT, SUMS_VARIABLE, amx_is_allowed
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.trainer.build import build_trial
from prefixbank.trainer.loop import Loop
from prefixbank.trainer.pack import Pack
from prefixbank.trainer.prepare import prepare
from prefixbank.trainer.progress import LogDisplay
from prefixbank.trainer.recipe import Recipe, parse
from prefixbank.trainer.states import Room
from tests.conftest import DEVICE

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.trial import Trial

WORDS = ["film", "quiet", "joy", "dull", "plot", "table", "seven", "lights", "kitchen", "weather", "music", "sky"]
EQUAL = 1e-5
"""Largest difference of a parameter after a run in fp32, where bits are not kept."""
BITS_ARE_KEPT = DEVICE == "cpu" and os.environ.get(SUMS_VARIABLE) == STRICT and not amx_is_allowed()
"""As conftest sets it on Intel's CPUs: docs/decisions/0016."""

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "long": {"prompt": {"length": 17, "dropout": 0.2}},
    "own draws": {"prompt": {"length": 3, "dropout": 0.3, "dropout_per": "row"}},
    "top layer": {"prompt": {"layers": {"from": "top", "count": 1}}},
    "mlp": {"prompt": {"parameterisation": "mlp", "init": "normal", "mlp_width": 16}},
    "shallow": {"method": "shallow", "prompt": {"length": 4, "dropout": 0.1}},
    "shallow, own draws": {"method": "shallow", "prompt": {"length": 4, "dropout": 0.3, "dropout_per": "row"}},
    "head": {"method": "head"},
    "shifted": {"prompt": {"position_offset": "length"}, "optimiser": {"backbone_dropout": True}},
    "fast": {"optimiser": {"prompt_rate": 0.05, "schedule": "exponential", "batch_rows": 5}, "seed": 3},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    rows = []
    for _ in range(48):
        words = random.choice(WORDS, random.integers(3, 9)).tolist()
        rows.append({"text": " ".join(words), "label": "happy" if "joy" in words or "music" in words else "plain"})
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe_of(**changes: Any) -> Recipe:
    table: dict[str, Any] = {
        "family": "text-classification",
        "data": {"train": "texts.jsonl", "validation": "texts.jsonl"},
        "prompt": {"length": 6},
        "optimiser": {"epochs": 9, "batch_rows": 8},
        "dtype": "float32",
    }
    for section, fields in changes.items():
        table[section] = table[section] | fields if isinstance(fields, dict) and section in table else fields
    return parse(table)


def trial_of(recipe: Recipe, root: Path, backbone: Backbone) -> Trial:
    prepared = prepare(recipe, root, backbone)
    return build_trial(recipe, backbone, prepared, root=root, folder=None, display=LogDisplay())


def finished(recipes: list[Recipe], root: Path, backbone: Backbone, most: int) -> list[Trial]:
    """All trials run to their ends, in the order given."""
    trials = [trial_of(recipe, root, backbone) for recipe in recipes]
    ended = list(Loop(Pack(backbone), most_trials=most).run(trials))
    assert {id(trial) for trial in ended} == {id(trial) for trial in trials}
    return trials


def test_packed_trials_equal_trials_alone(root: Path, backbone: Backbone) -> None:
    recipes = [recipe_of(**changes) for changes in VARIANTS.values()]
    packed = finished(recipes, root, backbone, most=len(recipes))
    equal = 0.0 if BITS_ARE_KEPT else EQUAL
    for name, recipe, together in zip(VARIANTS, recipes, packed, strict=True):
        [alone] = finished([recipe], root, backbone, most=1)
        assert alone.state.step >= 50, name
        for key, tensor in alone.trained.items():
            torch.testing.assert_close(together.trained[key], tensor, atol=equal, rtol=0, msg=f"{name}: {key}")
        assert [e.validation for e in together.state.curve] == [
            pytest.approx(e.validation, abs=1e-4) for e in alone.state.curve
        ], name


@pytest.mark.skipif(not BITS_ARE_KEPT, reason="sums depend on company or on where they lie in memory here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_packed_trials_have_the_bits_of_trials_alone(dtype: torch.dtype, root: Path) -> None:
    backbone = load_backbone("minilm", dtype=dtype, device="cpu")
    few = {"data": {"train": {"path": "texts.jsonl", "limit": 16}}}
    changes = [VARIANTS[name] | few for name in ("own draws", "mlp", "shallow", "shifted", "top layer")]
    recipes = [recipe_of(**one | {"optimiser": one.get("optimiser", {}) | {"epochs": 2}}) for one in changes]
    packed = finished(recipes, root, backbone, most=len(recipes))
    for recipe, together in zip(recipes, packed, strict=True):
        [alone] = finished([recipe], root, backbone, most=1)
        assert all(torch.equal(together.trained[key], tensor) for key, tensor in alone.trained.items()), recipe
        assert [e.validation for e in together.state.curve] == [e.validation for e in alone.state.curve], recipe


def test_a_trial_that_ends_makes_room_for_the_next(root: Path, backbone: Backbone) -> None:
    recipes = [recipe_of(seed=seed, optimiser={"epochs": epochs}) for seed, epochs in enumerate((1, 4, 2, 3, 1))]
    trials = [trial_of(recipe, root, backbone) for recipe in recipes]
    loop, most_running, ends = Loop(Pack(backbone), most_trials=2), 0, []
    for trial in loop.run(iter(trials)):
        ends.append(trials.index(trial))
        most_running = max(most_running, len(loop.running) + 1)
    assert (ends, most_running) == ([0, 2, 1, 4, 3], 2)


def test_a_trial_that_diverges_ends_alone(root: Path, backbone: Backbone) -> None:
    recipes = [recipe_of(seed=1), recipe_of(seed=2)]
    trials = [trial_of(recipe, root, backbone) for recipe in recipes]
    torch.nn.init.constant_(trials[0].trained["head.classifier.bias"], float("nan"))
    list(Loop(Pack(backbone), most_trials=2).run(trials))
    assert "found a loss of nan" in trials[0].state.failure
    [alone] = finished([recipes[1]], root, backbone, most=1)
    assert not trials[1].state.failure
    torch.testing.assert_close(
        trials[1].trained["prompt.kv_N2HPD"], alone.trained["prompt.kv_N2HPD"], atol=EQUAL, rtol=0
    )


@pytest.mark.parametrize("steps_more", [3, 0], ids=["in a step", "in a validation"])
def test_a_trial_that_diverges_late_keeps_its_best_epoch(steps_more: int, root: Path, backbone: Backbone) -> None:
    trial, other = (trial_of(recipe_of(seed=seed), root, backbone) for seed in (1, 2))
    judged: list[tuple[int, int]] = []
    loop = Loop(Pack(backbone), most_trials=2, judge=lambda one: judged.append((one.recipe.seed, one.state.epoch)))
    move = trial.move

    def moved(*arguments: Any) -> None:
        move(*arguments)
        if trial.state.step == 2 * trial.steps_per_epoch - steps_more:
            torch.nn.init.constant_(trial.trained["head.classifier.bias"], float("nan"))

    trial.move = moved  # type: ignore[method-assign]
    list(loop.run([trial, other]))
    state = trial.state
    assert (state.finished, state.failure, state.epoch, state.best_epoch) == (True, "", 1, 1)
    assert "nan" in state.stopped
    assert "lower the rates of [optimiser]" in state.stopped
    assert all(tensor.isfinite().all() for tensor in trial.trained.values())
    assert (other.state.stopped, other.state.epoch) == ("", other.recipe.optimiser.epochs)
    assert judged == [(1, 1), *((2, epoch + 1) for epoch in range(other.state.epoch))]


@pytest.mark.parametrize("changes", [{"prompt": {"layers": [2]}}, {"method": "head"}], ids=["top layer", "head"])
def test_kept_states_change_nothing(changes: dict[str, Any], root: Path, backbone: Backbone) -> None:
    recipe = recipe_of(**changes)
    kept, fresh = (trial_of(recipe, root, backbone) for _ in range(2))
    list(Loop(Pack(backbone)).run([kept]))
    list(Loop(Pack(backbone, keep_states=False)).run([fresh]))
    for key, tensor in fresh.trained.items():
        torch.testing.assert_close(kept.trained[key], tensor, atol=1e-6, rtol=0)


def test_kept_states_are_computed_once(root: Path, backbone: Backbone) -> None:
    trial = trial_of(recipe_of(method="head"), root, backbone)
    calls: list[int] = []
    hook = backbone.model.register_forward_hook(lambda *_: calls.append(1))
    list(Loop(Pack(backbone)).run([trial]))
    hook.remove()
    assert trial.state.epoch == 9
    assert len(calls) <= trial.steps_per_epoch + 2, "the first epoch and the first validation"


def test_trials_of_unlike_depths_keep_states_in_one_room(root: Path, backbone: Backbone) -> None:
    recipes = [recipe_of(prompt={"layers": [layer]}, seed=layer) for layer in (1, 2)]
    pack = Pack(backbone)
    roomy = run_one_by_one(pack, recipes, root)
    tight = Pack(backbone, room=Room(pack.kept_bytes // 3))
    cramped = run_one_by_one(tight, recipes, root)
    assert 0 < tight.kept_bytes <= pack.kept_bytes // 3
    for one, other in zip(roomy, cramped, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def run_one_by_one(pack: Pack, recipes: list[Recipe], root: Path) -> list[Tensor]:
    """The prompts of trials that never share a step."""
    trials = [trial_of(recipe, root, pack.backbone) for recipe in recipes]
    for trial in trials:
        list(Loop(pack).run([trial]))
    return [trial.trained["prompt.kv_N2HPD"].detach() for trial in trials]


def test_a_shallow_prompt_drops_out_for_each_row_where_it_is_asked_to(root: Path, backbone: Backbone) -> None:
    losses = set()
    for per in ("batch", "row"):
        shallow = {"length": 4, "dropout": 0.5, "dropout_per": per}
        trial = trial_of(recipe_of(method="shallow", prompt=shallow), root, backbone)
        losses.add(Pack(backbone).losses([trial], [trial.share()])[0].item())
    assert len(losses) == 2


def test_short_epochs_take_the_same_steps_and_validate_more_often(root: Path, backbone: Backbone) -> None:
    steady = {"schedule": "constant", "warmup": 0.0}
    whole = trial_of(recipe_of(optimiser=steady | {"epochs": 2}), root, backbone)
    short = trial_of(recipe_of(optimiser=steady | {"epochs": 6, "epoch_rows": 16}), root, backbone)
    list(Loop(Pack(backbone)).run([whole]))
    list(Loop(Pack(backbone)).run([short]))
    assert (whole.state.step, short.state.step) == (12, 12)
    assert [len(trial.state.curve) for trial in (whole, short)] == [2, 6]
    assert short.state.curve[-1].validation == whole.state.curve[-1].validation


def test_only_prompt_and_head_take_gradients(root: Path, backbone: Backbone) -> None:
    trial = trial_of(recipe_of(), root, backbone)
    share = trial.share()
    [loss] = Pack(backbone).losses([trial], [share])
    loss.backward()
    assert set(trial.trained) == {"prompt.kv_N2HPD", "head.classifier.weight", "head.classifier.bias"}
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in trial.trained.values())
    assert all(tensor.grad is None for tensor in backbone.model.parameters())


def test_rows_that_draw_for_themselves_lose_different_values(root: Path, backbone: Backbone) -> None:
    trial = trial_of(recipe_of(**VARIANTS["own draws"]), root, backbone)
    [loss] = Pack(backbone).losses([trial], [trial.share()])
    loss.backward()
    gradient = trial.trained["prompt.kv_N2HPD"].grad
    assert gradient is not None
    assert gradient.ne(0).float().mean() > 0.9, "of eight rows, nearly every value is kept by one"
