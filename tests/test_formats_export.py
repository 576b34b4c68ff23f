"""Exported prompts: the other tool's own model answers as ours, and importing them gives the same prompt back."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.utils import logging as transformers_logging

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.exporter import export_prompt
from prefixbank.model_store.formats.foreign import Format
from prefixbank.model_store.formats.importer import Choices, import_prompt
from prefixbank.model_store.task_prompt import HeadSpec, Pooler, Preprocessing
from tests.format_cases import (
    CHOICES,
    PREFIX,
    SPANS,
    TEXT,
    WORDS,
    Published,
    assert_same,
    edit_json,
    exact_logits,
    random_ids,
)
from tests.prompt_cases import same_prompt
from tests.serving_cases import random_prompt
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

AUTO = {
    TEXT: AutoModelForSequenceClassification,
    WORDS: AutoModelForTokenClassification,
    SPANS: AutoModelForQuestionAnswering,
}
LABELS = {TEXT: ("no", "perhaps", "yes"), WORDS: ("O", "B-X", "I-X"), SPANS: ("start", "end"), CHOICES: ("score",)}
TANH, GELU = (HeadSpec(pooler=Pooler.OWN, activation=name) for name in ("tanh", "gelu"))
BACKBONES, NONE = HeadSpec(pooler=Pooler.BACKBONE), HeadSpec(pooler=Pooler.NONE)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    parent, loaded = tmp_path_factory.mktemp("backbones"), {}

    def load(architecture: str) -> Backbone:
        if architecture not in loaded:
            loaded[architecture] = load_backbone(str(tiny_backbone_folder(parent, architecture)))
        return loaded[architecture]

    return load


@pytest.fixture
def bert(load: Callable[[str], Backbone]) -> Backbone:
    return load("bert")


def make(fitting: Backbone, family: Any = TEXT, spec: HeadSpec = BACKBONES, **fields: Any) -> TaskPrompt:
    """A prompt as a trainer would publish it, positions shifted."""
    prompt = random_prompt(
        fitting, PREFIX, seed=7, family=family, pooler=spec.pooler, num_labels=len(LABELS[family]), notes="kept"
    )
    own = {
        "labels": LABELS[family],
        "head": dataclasses.replace(prompt.head, spec=spec),
        "metrics": {"accuracy": 0.75},
        "preprocessing": Preprocessing(max_tokens=99, pair=True, text_fields=("question", "passage")),
    }
    return dataclasses.replace(prompt, **own | fields)


PEFT_CASES = [
    ("bert", TEXT, BACKBONES),
    ("bert", TEXT, TANH),
    ("bert", WORDS, NONE),
    ("roberta", SPANS, NONE),
    ("roberta", TEXT, TANH),
    ("xlm-roberta", WORDS, NONE),
    ("electra", TEXT, GELU),
]
PTUNING_CASES = [
    ("bert", TEXT, BACKBONES),
    ("bert", TEXT, TANH),
    ("bert", WORDS, NONE),
    ("bert", SPANS, NONE),
    ("bert", CHOICES, BACKBONES),
    ("roberta", TEXT, TANH),
    ("roberta", WORDS, NONE),
    ("roberta", CHOICES, TANH),
]
CASES = [(Format.PEFT, *case) for case in PEFT_CASES] + [(Format.PTUNING_V2, *case) for case in PTUNING_CASES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("target", "architecture", "family", "spec"), CASES)
def test_what_is_exported_is_imported_again(
    load: Callable[[str], Backbone],
    tmp_path: Path,
    target: Format,
    architecture: str,
    family: Any,
    spec: HeadSpec,
    dtype: torch.dtype,
) -> None:
    backbone = load(architecture)
    prompt = make(backbone, family, spec)
    prompt = dataclasses.replace(prompt, kv_N2HPD=prompt.kv_N2HPD.to(dtype))
    export_prompt(prompt, target, tmp_path / "out")
    imported = import_prompt(tmp_path / "out", backbone)
    assert same_prompt(imported.prompt, prompt)
    assert "names the fingerprint" in imported.backbone_evidence


@pytest.mark.parametrize(("architecture", "family", "spec"), PEFT_CASES)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_answers_as_we_do(
    load: Callable[[str], Backbone], tmp_path: Path, architecture: str, family: Any, spec: HeadSpec
) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    backbone = load(architecture)
    prompt = make(backbone, family, spec)
    export_prompt(prompt, Format.PEFT, tmp_path / "out")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model = AUTO[family].from_pretrained(backbone.ref.name, num_labels=len(prompt.labels))
    tuned = peft.PeftModel.from_pretrained(model, tmp_path / "out").double().eval()
    wanted = []
    for row in random_ids():
        with torch.no_grad():
            output = tuned(torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.int64))
        spans = "start_logits" in output
        wanted.append(torch.stack([output.start_logits, output.end_logits], -1)[0] if spans else output.logits[0])
    assert_same(exact_logits(prompt, backbone, random_ids()), wanted)


@pytest.mark.parametrize(("architecture", "family", "spec"), PTUNING_CASES)
def test_the_published_model_answers_as_we_do(
    load: Callable[[str], Backbone], tmp_path: Path, architecture: str, family: Any, spec: HeadSpec
) -> None:
    backbone = load(architecture)
    prompt = make(backbone, family, spec)
    export_prompt(prompt, Format.PTUNING_V2, tmp_path / "out")
    model = Published(backbone.ref.name, family, len(prompt.labels))
    loaded = model.load_state_dict(torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True), strict=False)
    assert not loaded.unexpected_keys
    wanted = [model.double().logits(row) for row in random_ids()]
    assert_same(exact_logits(prompt, backbone, random_ids()), wanted)


@pytest.mark.parametrize("target", [Format.PEFT, Format.PTUNING_V2])
def test_an_import_survives_the_journey(load: Callable[[str], Backbone], tmp_path: Path, target: Format) -> None:
    roberta = load("roberta")
    first = import_prompt(Published(roberta.ref.name, TEXT, 3, 7).save(tmp_path / "source"), roberta).prompt
    export_prompt(first, target, tmp_path / "out")
    assert same_prompt(import_prompt(tmp_path / "out", roberta).prompt, first)


@pytest.mark.parametrize("target", [Format.PEFT, Format.PTUNING_V2])
def test_without_the_sidecar_the_answers_are_the_same(bert: Backbone, tmp_path: Path, target: Format) -> None:
    prompt = make(bert)
    export_prompt(prompt, target, tmp_path / "out")
    (tmp_path / "out" / "prefixbank.json").unlink()
    bare = import_prompt(tmp_path / "out", bert, Choices(labels=prompt.labels)).prompt
    assert torch.equal(bare.kv_N2HPD, prompt.kv_N2HPD)
    assert torch.equal(bare.head.weight_CM, prompt.head.weight_CM)
    assert (bare.labels, bare.position_offset, bare.metrics) == (prompt.labels, PREFIX, {})


@pytest.mark.parametrize("target", [Format.PEFT, Format.PTUNING_V2])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"position_offset": 0}, "the position offset is 0, and .* shifts positions by P, 6 here"),
        ({"layers": (0, 2)}, "2 of 3 layers are prompted; .* a prefix of zeros is not none"),
        ({"layers": (), "position_offset": 0}, "a head alone"),
    ],
)
def test_prompts_that_it_would_answer_otherwise_are_refused(
    bert: Backbone, tmp_path: Path, target: Format, fields: dict[str, Any], said: str
) -> None:
    prompt = make(bert, **fields)
    prompt = dataclasses.replace(prompt, kv_N2HPD=prompt.kv_N2HPD[: len(prompt.layers)])
    with pytest.raises(NotRepresentable, match=said):
        export_prompt(prompt, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "architecture", "family", "spec", "said"),
    [
        (Format.PEFT, "bert", TEXT, NONE, "no bert text classifier behind none pooler"),
        (Format.PEFT, "bert", TEXT, GELU, r"behind own pooler \(gelu\)"),
        (Format.PEFT, "roberta", TEXT, NONE, "no roberta text classifier"),
        (Format.PEFT, "bert", CHOICES, BACKBONES, "no head for multiple-choice"),
        (Format.PEFT, "distilbert", WORDS, NONE, "no prefix tuning of distilbert"),
        (Format.PEFT, "modernbert", WORDS, NONE, "no prefix tuning of modernbert"),
        (Format.PTUNING_V2, "bert", TEXT, NONE, "reads its first token through a dense layer and tanh"),
        (Format.PTUNING_V2, "bert", TEXT, GELU, "reads its first token through a dense layer and tanh"),
        (Format.PTUNING_V2, "electra", WORDS, NONE, "no token-classification model of electra"),
        (Format.ADAPTERS, "bert", WORDS, NONE, "no prompt is written as adapters"),
    ],
)
def test_heads_and_backbones_that_it_has_not_are_refused(
    load: Callable[[str], Backbone],
    tmp_path: Path,
    target: Format,
    architecture: str,
    family: Any,
    spec: HeadSpec,
    said: str,
) -> None:
    with pytest.raises(NotRepresentable, match=said):
        export_prompt(make(load(architecture), family, spec), target, tmp_path / "out")


def test_a_prompt_for_deberta_brings_its_pooler(bert: Backbone, tmp_path: Path) -> None:
    """The keys that P-tuning-v2's DeBERTa has; that DeBERTa is served is another part's concern."""
    deberta = make(bert, spec=GELU, backbone=bert.ref.model_copy(update={"architecture": "deberta"}))
    export_prompt(deberta, Format.PTUNING_V2, tmp_path / "out")
    names = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True).keys()
    assert "pooler.dense.weight" in names
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [
        "DebertaPrefixForSequenceClassification"
    ]


@pytest.fixture
def exported(bert: Backbone, tmp_path: Path) -> Path:
    export_prompt(make(bert), Format.PEFT, tmp_path / "out")
    return tmp_path / "out"


def test_a_sidecar_names_the_backbone_by_fingerprint(exported: Path, bert: Backbone) -> None:
    other = dataclasses.replace(bert, ref=bert.ref.model_copy(update={"fingerprint": "cd" * 32}))
    with pytest.raises(BackboneMismatch, match=r"was made for .*; this is .*cdcdcdcdcdcd"):
        import_prompt(exported, other)


def test_a_sidecar_does_not_speak_for_other_weights(exported: Path, bert: Backbone) -> None:
    """Training on in PEFT leaves it behind: its metrics would be another prompt's."""
    with (exported / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    with pytest.raises(SourceInvalid, match="is about other weights than"):
        import_prompt(exported, bert)


@pytest.mark.parametrize(
    "fields",
    [
        {"sidecar_version": 2},
        {"labels": None},
        {"labels": ["a", "b"]},
        {"family": "token-classification"},
        {"metrics": {"accuracy": "good"}},
        {"weights_file": "../adapter_model.safetensors"},
        {"weights_file": "missing.safetensors"},
        {"preprocessing": {"max_tokens": 0}},
    ],
)
def test_a_malformed_sidecar_is_refused(exported: Path, bert: Backbone, fields: dict[str, Any]) -> None:
    edit_json(exported / "prefixbank.json", **fields)
    with pytest.raises(SourceInvalid):
        import_prompt(exported, bert)


def test_choices_go_before_the_sidecar(exported: Path, bert: Backbone) -> None:
    prompt = import_prompt(exported, bert, Choices(labels=("a", "b", "c"), max_tokens=50)).prompt
    assert prompt.labels == ("a", "b", "c")
    assert (prompt.preprocessing.max_tokens, prompt.preprocessing.pair) == (50, True)


def test_nothing_is_overwritten(exported: Path, bert: Backbone) -> None:
    with pytest.raises(FileExistsError, match="new or empty folder"):
        export_prompt(make(bert), Format.PEFT, exported)


def test_an_export_that_fails_leaves_nothing(bert: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefixbank.model_store.formats import exporter

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporter.durable, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        export_prompt(make(bert), Format.PEFT, tmp_path / "out")
    assert not any(tmp_path.iterdir())
