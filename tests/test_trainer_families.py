"""Whole runs of every family on a tiny backbone: each learns a few rows, and the serving engine answers the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from prefixbank.cli_training import served_logits
from prefixbank.model_store import artifact
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import InvalidRecipe
from prefixbank.trainer.recipe import parse
from prefixbank.trainer.run import Trained, train
from tests.conftest import DEVICE
from tests.tiny import tiny_lm_folder

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone

PLACES = ("oslo", "paris", "madrid", "berlin", "tokyo")
OTHERS = ("film", "quiet", "joy", "dull", "plot", "table", "kitchen", "weather", "music", "sky")
TEMPLATE = {"kind": "verbalizer", "template": "{text} . {mask}", "words": {"no": "dull", "yes": "joys"}}
COLUMNS = ["premise", "choice1", "choice2"]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "question-answering": ("f1", {"answering": {"max_question_tokens": 8}}),
    "semantic-role-labeling": ("role_f1", {"data": {"layout": "tagged"}}),
    "multiple-choice": ("accuracy", {"data": {"text": COLUMNS}}),
    "text-classification": ("accuracy", {"head": TEMPLATE}),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_lm_folder(tmp_path_factory.mktemp("backbones"), "bert")), device=DEVICE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences with one place each: where it is, whether it comes early, which of two texts names it."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    lines: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for number in range(32):
        words = random.choice(OTHERS, 6).tolist()
        other, place, at = " ".join(words), str(random.choice(PLACES)), int(random.integers(6))
        words[at] = place
        text = " ".join(words)
        answer = (
            {"text": [place], "answer_start": [text.index(place)]} if number % 4 else {"text": [], "answer_start": []}
        )
        context = text if number % 4 else other
        lines["question-answering"].append(json.dumps({"question": "where?", "context": context, "answers": answer}))
        tags = ["B-LOC" if word in PLACES else "O" for word in words]
        tags[(at + 1) % 6] = "B-V"
        lines["semantic-role-labeling"].append(f"{(at + 1) % 6} {text} ||| {' '.join(tags)}")
        choices = [text, other] if number % 2 else [other, text]
        row = {"premise": "where ?", "choice1": choices[0], "choice2": choices[1], "label": 1 - number % 2}
        lines["multiple-choice"].append(json.dumps(row))
        lines["text-classification"].append(json.dumps({"text": choices[0], "label": "yes" if number % 2 else "no"}))
    for family, rows in lines.items():
        (folder / f"{family}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def run(family: str, root: Path, out: Path, backbone: Backbone, **changes: Any) -> Trained:
    _, own = FAMILIES[family]
    file = f"{family}.jsonl"
    table: dict[str, Any] = {
        "family": family,
        "data": {"train": file, "validation": file, "test": file, **own.get("data", {})},
        "head": {"dropout": 0.0, **own.get("head", {})},
        "answering": own.get("answering", {}),
        "prompt": {"length": 6},
        "optimiser": {"epochs": 12, "batch_rows": 8, "prompt_rate": 0.05, "head_rate": 0.02},
        "max_tokens": 32,
        "dtype": "float32",
    }
    recipe = parse(
        {
            name: table.get(name, {}) | value if isinstance(value, dict) else value
            for name, value in {**table, **changes}.items()
        }
    )
    return train(recipe, out, root=root, backbone=backbone, verify=served_logits)


@pytest.mark.parametrize("method", ["prompt", "shallow"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_and_is_served(
    family: str, method: str, root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    report = run(family, root, tmp_path, backbone, method=method).report
    curve = [epoch["train_loss"] for epoch in report["curve"]]
    assert curve[-1] < 0.9 * curve[0]
    assert report["metrics"]["test"][FAMILIES[family][0]] > 0.6
    assert report["serving_check"]["logit_distance"] < 1e-4
    assert {"calibration", "mistakes"} <= set(report["details"]["test"])


def test_the_artifact_holds_the_tuned_threshold(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    trained = run("question-answering", root, tmp_path, backbone)
    assert trained.folder is not None
    spec = artifact.read(trained.folder).preprocessing.answering
    assert spec is not None
    assert spec.null_threshold not in (None, 0.0)


def test_an_epoch_is_judged_with_the_threshold_it_would_be_stored_with(
    root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    prompt = {"length": 6, "dtype": "float32"}
    report = run("question-answering", root, tmp_path, backbone, prompt=prompt, optimiser={"epochs": 2}).report
    best = report["curve"][report["selection"]["epoch"] - 1]["validation"]
    assert best["f1"] == pytest.approx(report["metrics"]["validation"]["f1"], abs=1e-9)


def test_rows_that_are_cut_are_told(
    root: Path, tmp_path: Path, backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    run("semantic-role-labeling", root, tmp_path, backbone, max_tokens=8, optimiser={"epochs": 1})
    assert "train: cut 32 of 32 rows, which are longer than max_tokens = 8" in caplog.messages


def test_a_verbalizer_starts_from_the_backbones_own_words(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    trained = run("text-classification", root, tmp_path, backbone, optimiser={"epochs": 1, "head_rate": 0.0})
    assert trained.prompt is not None
    spec = trained.prompt.preprocessing.verbalizer
    assert spec is not None
    rows = backbone.word_embedding_VM[list(spec.outputs)].float()
    np.testing.assert_allclose(trained.prompt.head.weight_CM, rows)


def test_a_word_that_the_backbone_lacks_stops_the_run_at_once(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(InvalidRecipe, match=r"head\.words: .*'☃'"):
        run("text-classification", root, tmp_path, backbone, head={"words": {"no": "dull", "yes": "☃"}})
