"""Folders that PEFT saved: the imported prompt answers as PEFT's own model; what it cannot answer is refused."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.utils import logging as transformers_logging

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable, SourceInvalid, UnknownFormat
from prefixbank.model_store.formats.exporter import export_prompt
from prefixbank.model_store.formats.foreign import Format
from prefixbank.model_store.formats.importer import Choices, import_prompt
from prefixbank.model_store.formats.peft import TYPED
from prefixbank.model_store.task_prompt import Pooler
from tests.format_cases import (
    PREFIX,
    SPANS,
    TEXT,
    WORDS,
    assert_same,
    edit_json,
    exact_logits,
    random_ids,
    save_tensors,
)
from tests.serving_cases import random_prompt
from tests.tiny import WIDTH, tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from prefixbank.model_store.backbones.backbone import Backbone

peft = pytest.importorskip("peft", reason="PEFT is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
"""PEFT 0.21 asks transformers 5.23 by an old name."""

MODELS = {
    TEXT: ("SEQ_CLS", AutoModelForSequenceClassification, 3),
    WORDS: ("TOKEN_CLS", AutoModelForTokenClassification, 5),
    SPANS: ("QUESTION_ANS", AutoModelForQuestionAnswering, 2),
}
ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "electra")
DEEP = ("PREFIX_TUNING", "CARTRIDGE")
POOLERS = {
    "bert": (Pooler.BACKBONE, None),
    "roberta": (Pooler.OWN, "tanh"),
    "xlm-roberta": (Pooler.OWN, "tanh"),
    "electra": (Pooler.OWN, "gelu"),
}


class Saved(NamedTuple):
    """A model of PEFT, and the folder it was saved to."""

    model: nn.Module
    folder: Path


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Backbone]:
    """Load a tiny backbone once."""
    parent, loaded = tmp_path_factory.mktemp("backbones"), {}

    def load(architecture: str, seed: int = 0) -> Backbone:
        if (architecture, seed) not in loaded:
            loaded[architecture, seed] = load_backbone(str(tiny_backbone_folder(parent, architecture, seed)))
        return loaded[architecture, seed]

    return load


@pytest.fixture
def bert(load: Callable[..., Backbone]) -> Backbone:
    return load("bert")


def save(backbone: Backbone, folder: Path, family: Any = TEXT, kind: str = "PrefixTuning", **fields: Any) -> Saved:
    """A model of PEFT with a random prompt and head, saved."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    task_type, auto, classes = MODELS[family]
    torch.manual_seed(0)
    model = auto.from_pretrained(backbone.ref.name, num_labels=classes)
    config = getattr(peft, f"{kind}Config")(task_type=task_type, num_virtual_tokens=PREFIX, **fields)
    tuned = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in sorted(tuned.named_parameters()):
            if "modules_to_save.default" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    tuned.save_pretrained(folder)
    return Saved(tuned, folder)


@torch.no_grad()
def logits_of(saved: Saved, row: list[int]) -> Tensor:
    output = saved.model.double()(torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.int64))
    return (
        torch.stack([output.start_logits, output.end_logits], -1)[0] if "start_logits" in output else output.logits[0]
    )


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize("architecture", TYPED)
def test_questions_of_a_model_with_token_types_are_refused(
    load: Callable[..., Backbone], tmp_path: Path, architecture: str
) -> None:
    """PEFT's model for questions hands no token types on, so it answers otherwise than any prompt here."""
    backbone = load(architecture)
    saved = save(backbone, tmp_path / "source", SPANS)
    ids = torch.tensor([random_ids()[0]])
    types = torch.arange(ids.shape[1])[None] % 2
    with torch.no_grad():
        answers = [
            saved.model(ids, torch.ones_like(ids), token_type_ids=one).start_logits for one in (types, 0 * types)
        ]
    assert torch.equal(*answers)
    with pytest.raises(NotRepresentable, match="for questions: it gives question and text the same token type"):
        import_prompt(saved.folder, backbone)
    with pytest.raises(NotRepresentable, match="for questions: it gives"):
        export_prompt(random_prompt(backbone, PREFIX, seed=0, family=SPANS, num_labels=2), Format.PEFT, tmp_path / "o")


@pytest.mark.parametrize(
    ("architecture", "family"),
    [pair for pair in itertools.product(ARCHITECTURES, MODELS) if pair not in itertools.product(TYPED, [SPANS])],
)
def test_answers_are_those_of_peft(
    load: Callable[..., Backbone], tmp_path: Path, architecture: str, family: Any
) -> None:
    backbone = load(architecture)
    saved = save(backbone, tmp_path / "source", family)
    prompt = import_prompt(saved.folder, backbone).prompt
    rows = random_ids()
    assert_same(exact_logits(prompt, backbone, rows), [logits_of(saved, row) for row in rows])
    assert (prompt.family, prompt.position_offset, prompt.layers) == (family, PREFIX, (0, 1, 2))
    wanted = POOLERS[architecture] if family is TEXT else (Pooler.NONE, None)
    assert (prompt.head.spec.pooler, prompt.head.spec.activation) == wanted


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("PrefixTuning", {"prefix_projection": True, "encoder_hidden_size": 7}),
        ("PrefixTuning", {"modules_to_save": ["classifier", "pooler"]}),
        ("Cartridge", {"num_frozen_tokens": 2}),
    ],
    ids=["projected", "trained-pooler", "cartridge"],
)
def test_so_are_those_of_its_variants(bert: Backbone, tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    saved = save(bert, tmp_path / "source", TEXT, kind, **fields)
    imported = import_prompt(saved.folder, bert)
    rows = random_ids()
    assert_same(exact_logits(imported.prompt, bert, rows), [logits_of(saved, row) for row in rows])
    assert imported.method == {"Cartridge": "PEFT CARTRIDGE"}.get(kind, "PEFT PREFIX_TUNING")


def test_a_pooler_that_was_trained_is_the_heads_own(bert: Backbone, tmp_path: Path) -> None:
    saved = save(bert, tmp_path / "source", modules_to_save=["classifier", "pooler"])
    assert import_prompt(saved.folder, bert).prompt.head.spec.pooler is Pooler.OWN


def test_an_older_pickled_folder_is_read(bert: Backbone, tmp_path: Path) -> None:
    saved = save(bert, tmp_path / "source")
    wanted = import_prompt(saved.folder, bert).prompt.kv_N2HPD
    safe = saved.folder / "adapter_model.safetensors"
    save_tensors(load_file(safe), saved.folder / "adapter_model.bin")
    safe.unlink()
    assert torch.equal(import_prompt(saved.folder, bert).prompt.kv_N2HPD, wanted)


def test_that_the_backbone_is_the_right_one_is_taken_on_trust_and_said(bert: Backbone, tmp_path: Path) -> None:
    folder = save(bert, tmp_path / "source").folder
    edit_json(folder / "adapter_config.json", base_model_name_or_path="bert-large-cased")
    said = import_prompt(folder, bert).backbone_evidence
    assert "which the source calls 'bert-large-cased'" in said
    assert "taken on trust" in said


def test_provenance_names_the_tool(bert: Backbone, tmp_path: Path) -> None:
    provenance = import_prompt(save(bert, tmp_path / "source").folder, bert).prompt.provenance
    assert provenance.source == "peft"
    assert provenance.software == {"peft": peft.__version__}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "LORA"}, "LORA: it is no prompt"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "encoder-decoder"),
        ({"num_transformer_submodules": 2}, "encoder-decoder"),
        ({"task_type": "CAUSAL_LM"}, "no head that is served"),
        ({"task_type": "FEATURE_EXTRACTION"}, "no head that is served"),
        ({"task_type": None}, "no head that is served"),
    ],
)
def test_what_has_no_equal_here_is_refused(bert: Backbone, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    folder = save(bert, tmp_path / "source").folder
    edit_json(folder / "adapter_config.json", **fields)
    with pytest.raises(NotRepresentable, match=said):
        import_prompt(folder, bert)


@pytest.mark.parametrize("fields", [{"num_layers": 24}, {"token_dim": 1024}, {"num_attention_heads": 16}])
def test_other_sizes_are_another_backbones(bert: Backbone, tmp_path: Path, fields: dict[str, int]) -> None:
    folder = save(bert, tmp_path / "source").folder
    edit_json(folder / "adapter_config.json", **fields)
    with pytest.raises(BackboneMismatch, match=f"{next(iter(fields))} is"):
        import_prompt(folder, bert)


def test_a_prefix_of_another_width_is_another_backbones(bert: Backbone, tmp_path: Path) -> None:
    folder = save(bert, tmp_path / "source").folder
    edit_weights(folder, prompt_embeddings=torch.zeros(PREFIX, 7))
    with pytest.raises(BackboneMismatch, match=r"take \[P, 192\]"):
        import_prompt(folder, bert)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_embeddings": None}, "no 'prompt_embeddings'"),
        ({"prompt_embeddings": torch.zeros(PREFIX + 1, 192)}, "num_virtual_tokens is 6"),
        ({"prompt_embeddings": torch.zeros(192)}, "num_virtual_tokens is 6"),
        ({"prompt_embeddings": torch.zeros(0, 192)}, "num_virtual_tokens is 6"),
        ({"base_model__classifier__bias": None}, "no 'classifier.bias'"),
        ({"base_model__classifier__weight": torch.zeros(0, WIDTH)}, "not a matrix and its bias"),
    ],
)
def test_a_malformed_folder_is_refused(
    bert: Backbone, tmp_path: Path, changes: dict[str, torch.Tensor | None], said: str
) -> None:
    folder = save(bert, tmp_path / "source").folder
    edit_weights(folder, **changes)
    with pytest.raises(SourceInvalid, match=said):
        import_prompt(folder, bert)


@pytest.mark.parametrize("name", ["base_model__bert__embeddings__word_embeddings__weight", "lora_A"])
def test_what_else_was_trained_is_not_left_out(bert: Backbone, tmp_path: Path, name: str) -> None:
    folder = save(bert, tmp_path / "source").folder
    edit_weights(folder, **{name: torch.zeros(3)})
    with pytest.raises(NotRepresentable, match="also trains"):
        import_prompt(folder, bert)


def test_a_config_of_wrong_types_is_refused(bert: Backbone, tmp_path: Path) -> None:
    folder = save(bert, tmp_path / "source").folder
    edit_json(folder / "adapter_config.json", num_virtual_tokens="6")
    with pytest.raises(SourceInvalid, match="num_virtual_tokens: Input should be a valid integer"):
        import_prompt(folder, bert)


def test_a_pooler_that_nobody_has_is_refused(bert: Backbone, tmp_path: Path) -> None:
    folder = save(bert, tmp_path / "source").folder
    with pytest.raises(SourceInvalid, match="a pooler that neither the source nor"):
        import_prompt(folder, dataclasses.replace(bert, pooler=None))


def test_an_architecture_that_takes_no_prefix_is_refused(load: Callable[..., Backbone], tmp_path: Path) -> None:
    folder, distilbert = save(load("bert"), tmp_path / "source", WORDS).folder, load("distilbert")
    with pytest.raises(BackboneMismatch, match="no PREFIX_TUNING of 'distilbert', the backbone; it has bert, roberta"):
        import_prompt(folder, distilbert)


def test_another_family_than_the_folders_is_refused(bert: Backbone, tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="--family says question-answering; the source's own files say text"):
        import_prompt(save(bert, tmp_path / "source").folder, bert, Choices(family=SPANS))


def test_a_folder_of_several_adapters_is_not_guessed_about(bert: Backbone, tmp_path: Path) -> None:
    for name in ("first", "second"):
        save(bert, tmp_path / "several" / name)
    with pytest.raises(UnknownFormat, match="several sources, none of its own: name one of first, second"):
        import_prompt(tmp_path / "several", bert)


def test_a_format_may_be_said(bert: Backbone, tmp_path: Path) -> None:
    folder = save(bert, tmp_path / "source").folder
    assert import_prompt(folder, bert, source_format=Format.PEFT).method == "PEFT PREFIX_TUNING"
    with pytest.raises(SourceInvalid, match=r"adapter_config.json: config: Field required"):
        import_prompt(folder, bert, source_format=Format.ADAPTERS)
