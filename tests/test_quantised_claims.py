"""What the benchmark of stored prefixes says is true: no figure of a wrong answer, and nothing left out in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks import prefix_dtypes
from benchmarks.prefix_dtypes import AS_GIVEN, BF16, BF16_INT8, large_prompt, measure, memory_of, shipped_tasks
from prefixbank.model_store.backbones.load import load_backbone

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.prefix_dtypes import Task
    from prefixbank.model_store.backbones.backbone import Backbone


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("minilm")


@pytest.fixture(scope="module")
def intents(backbone: Backbone) -> Task:
    """The one shipped prompt whose rows are in the repository."""
    return next(task for task in shipped_tasks(backbone, 4) if task.name == "shop/intents")


def test_prompts_without_their_data_are_left_out_by_name(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prefix_dtypes, "RECIPES", tmp_path / "recipes")
    assert list(shipped_tasks(backbone, None)) == []
    assert capsys.readouterr().err.splitlines() == [
        "news/entities: left out, its data set is not here",
        "qa/boolq: left out, its data set is not here",
        "qa/squad: left out, answers of question-answering are not compared here",
        "shop/intents: left out, its data set is not here",
        "web/roles: left out, answers of semantic-role-labeling are not compared here",
    ]


def test_every_way_is_measured_against_the_prefix_as_given(backbone: Backbone, intents: Task) -> None:
    backbones = {torch.float32: backbone, torch.bfloat16: load_backbone("minilm", dtype=torch.bfloat16)}
    given, *others = measure(intents, backbones, is_whole=False)
    assert (given.way, given.changed, given.largest, given.prefix) == (AS_GIVEN.name, 0, 0, 0)
    assert all(0 < one.mean < one.largest < 1 and 0 < one.prefix < 0.05 for one in others)


def test_no_figure_is_printed_when_a_quantised_pool_is_misread(
    backbone: Backbone, intents: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = prefix_dtypes.written_out
    monkeypatch.setattr(prefix_dtypes, "written_out", lambda *args, **given: 1.01 * right(*args, **given))
    with pytest.raises(SystemExit, match="no figures are printed"):
        prefix_dtypes.gate(intents, backbone, torch.int8)


def test_int8_holds_nearly_twice_the_tasks_of_bf16(intents: Task) -> None:
    for prompt in (intents.prompt, large_prompt(intents.prompt, 20), large_prompt(intents.prompt, 128)):
        plain, quantised = memory_of(prompt, BF16), memory_of(prompt, BF16_INT8)
        assert 1.95 < quantised.tasks_per_gib / plain.tasks_per_gib <= 2


def test_a_way_that_no_pool_stores_claims_no_memory(backbone: Backbone, intents: Task) -> None:
    logits: Any = prefix_dtypes.answers_in(AS_GIVEN, intents, backbone, intents.rows)
    for way in prefix_dtypes.WAYS:
        assert (prefix_dtypes.compare(intents, way, logits, logits).memory is None) == (way.values is not None)
