"""The masked-LM head of a checkpoint gives transformers' logits, or is none; it is never a random one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.errors import BackboneError
from tests.tiny import ARCHITECTURES, WIDTH, tiny_backbone_folder, tiny_lm_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.backbones.lm_head import LmHead

FP64 = 1e-6
"""Absolute, on logits of order 5. In fp32 rounding alone is larger, so that both sides are computed in fp64."""
CHANGED: dict[str, list[dict[str, Any]]] = {
    "bert": [{"hidden_act": "relu"}, {"tie_word_embeddings": False}],
    "roberta": [{"tie_word_embeddings": False}],
    "distilbert": [{"activation": "relu"}],
    "modernbert": [
        {"decoder_bias": False},
        {"classifier_bias": True, "norm_bias": True, "classifier_activation": "relu"},
        {"tie_word_embeddings": False},
    ],
}
CASES = [(name, changed) for name in ARCHITECTURES for changed in [{}, *CHANGED.get(name, [])]]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return tmp_path_factory.mktemp("backbones")


def head_of(backbone: Backbone) -> LmHead:
    assert backbone.lm_head is not None
    return backbone.lm_head


def doubled(backbone: Backbone) -> Backbone:
    """The same weights in fp64."""
    head = head_of(backbone)
    bias_V = None if head.bias_V is None else head.bias_V.double()
    head = replace(head, dense_norm=head.dense_norm.double(), decoder_VM=head.decoder_VM.double(), bias_V=bias_V)
    return replace(backbone, model=backbone.model.double(), lm_head=head, dtype=torch.float64)


def logits(backbone: Backbone, ids: list[int]) -> Tensor:
    head = head_of(backbone)
    hidden_TM = backbone.forward(backbone.pack([PackRow(ids, [0] * len(ids))]), backbone.no_prefixes())
    logits_TV = head.transform(hidden_TM) @ head.decoder_VM.T
    return logits_TV if head.bias_V is None else logits_TV + head.bias_V


@pytest.mark.parametrize(("architecture", "changed"), CASES, ids=str)
def test_logits_are_those_of_transformers(parent: Path, architecture: str, changed: dict[str, Any]) -> None:
    folder = tiny_lm_folder(parent, architecture, **changed)
    plain = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="sdpa").double().eval()
    ids = [2, 9, 30, 4, 17, 3]
    with torch.inference_mode():
        wanted = plain(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits(doubled(load_backbone(str(folder))), ids), wanted, atol=FP64, rtol=0)
    assert wanted.std() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_without_one_has_none(parent: Path, architecture: str) -> None:
    assert load_backbone(str(tiny_backbone_folder(parent, architecture))).lm_head is None


def test_a_classifiers_transform_is_no_lm_head(parent: Path) -> None:
    """ModernBERT's classifiers name their dense layer and norm as its masked-LM head does."""
    folder = parent / "classifier"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_lm_folder(parent, "modernbert"), num_labels=2)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((tiny_lm_folder(parent, "modernbert") / "tokenizer.json").read_bytes())
    assert load_backbone(str(folder)).lm_head is None


def test_a_factorised_generator_has_none(parent: Path) -> None:
    backbone = load_backbone(str(tiny_lm_folder(parent, "electra", embedding_size=16)))
    assert backbone.lm_head is None
    with pytest.raises(BackboneError, match="neither shallow prompts nor verbalizer heads"):
        _ = backbone.word_embedding_VM


def without(folder: Path, to: Path, *names: str, **others: Tensor) -> Path:
    """The folder's checkpoint without some tensors, and with others in place of some."""
    to.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (to / name).write_bytes((folder / name).read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name.replace("__", "."): tensor for name, tensor in others.items()}
    save_file({name: tensor for name, tensor in tensors.items() if name not in names}, to / "model.safetensors")
    return to


def test_a_head_in_part_is_none(parent: Path) -> None:
    folder = without(tiny_lm_folder(parent, "bert"), parent / "part", "cls.predictions.transform.LayerNorm.weight")
    assert load_backbone(str(folder)).lm_head is None


def test_a_missing_bias_is_no_bias(parent: Path) -> None:
    folder = without(tiny_lm_folder(parent, "distilbert"), parent / "no-bias", "vocab_projector.bias")
    head = head_of(load_backbone(str(folder)))
    assert head.bias_V is None


def test_a_head_of_another_width_is_refused(parent: Path) -> None:
    narrow = torch.zeros(WIDTH, 8)
    folder = without(tiny_lm_folder(parent, "roberta"), parent / "narrow", lm_head__dense__weight=narrow)
    with pytest.raises(
        BackboneError, match=r"lm_head\.dense\.weight of the checkpoint is \(32, 8\), wanted \(32, 32\)"
    ):
        load_backbone(str(folder))


def test_the_digest_is_the_transforms(parent: Path) -> None:
    folder = tiny_lm_folder(parent, "bert")
    one = head_of(load_backbone(str(folder))).digest
    assert len(one) == 64
    bias = torch.zeros(load_file(folder / "model.safetensors")["cls.predictions.bias"].shape)
    same = without(folder, parent / "same", cls__predictions__bias=bias)
    assert head_of(load_backbone(str(same))).digest == one
    other = without(folder, parent / "other", cls__predictions__transform__dense__bias=torch.zeros(WIDTH))
    assert head_of(load_backbone(str(other))).digest != one
    half = head_of(load_backbone(str(folder), dtype=torch.bfloat16))
    assert half.digest == one
    assert half.transform(torch.zeros(3, WIDTH, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_state_has_the_same_bits_alone(parent: Path) -> None:
    head = head_of(load_backbone(str(tiny_lm_folder(parent, "modernbert"))))
    x_KM = torch.randn(40, WIDTH)
    assert torch.equal(head.transform(x_KM[7:8])[0], head.transform(x_KM)[7])


def test_nothing_of_the_head_is_trained_and_gradients_pass(parent: Path) -> None:
    head = head_of(load_backbone(str(tiny_lm_folder(parent, "roberta"))))
    assert not any(parameter.requires_grad for parameter in head.dense_norm.parameters())
    x_KM = torch.randn(2, WIDTH, requires_grad=True)
    head.transform(x_KM).square().sum().backward()
    assert x_KM.grad is not None


@pytest.mark.parametrize(("architecture", "token"), [("bert", "[MASK]"), ("xlm-roberta", "<mask>")])
def test_the_mask_is_the_tokenizers(parent: Path, architecture: str, token: str) -> None:
    backbone = load_backbone(str(tiny_backbone_folder(parent, architecture)))
    assert backbone.mask_id == backbone.tokenizer.token_to_id(token)
