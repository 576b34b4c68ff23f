"""A backbone with a prompt gives the logits of PEFT's prefix and prompt tuning: same formula, same positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from tests.tiny import LAYERS, prompt_pools, tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from prefixbank.model_store.backbones.backbone import Backbone

peft = pytest.importorskip("peft", reason="PEFT is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
"""PEFT 0.21 asks transformers 5.23 by an old name."""

LENGTHS = (4, 30, 11)
PREFIX = 6


class Tuned(NamedTuple):
    model: nn.Module
    padding_id: int
    prompt: dict[int, Tensor]
    """Deep: keys and values of each layer; empty for a shallow one."""
    virtual_PM: Tensor | None = None


def prefix_tuned(folder: Path) -> Tuned:
    """A PEFT model with a random prefix and head, and that prefix as keys and values of each layer."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    config = peft.PrefixTuningConfig(task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=PREFIX)
    tuned = peft.get_peft_model(model, config).eval()
    flat_PX = tuned.prompt_encoder["default"].embedding.weight.detach()
    kv_LKHPD = flat_PX.view(PREFIX, LAYERS, 2, 4, 8).permute(1, 2, 3, 0, 4)
    return Tuned(tuned, model.config.pad_token_id, dict(enumerate(kv_LKHPD)))


def prompt_tuned(folder: Path) -> Tuned:
    """A PEFT model with random vectors before the words, and those vectors."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
    config = peft.PromptTuningConfig(task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=PREFIX)
    tuned = peft.get_peft_model(model, config).eval()
    return Tuned(tuned, model.config.pad_token_id, {}, tuned.prompt_encoder["default"].embedding.weight.detach())


def padded_logits(tuned: Tuned, rows: list[PackRow]) -> Tensor:
    longest = max(len(row.token_ids) for row in rows)
    padded = [[*row.token_ids] + [tuned.padding_id] * (longest - len(row.token_ids)) for row in rows]
    mask = [[1] * len(row.token_ids) + [0] * (longest - len(row.token_ids)) for row in rows]
    with torch.no_grad():
        logits: Tensor = tuned.model(torch.tensor(padded), attention_mask=torch.tensor(mask)).logits
    return logits


def packed_logits(backbone: Backbone, tuned: Tuned, rows: list[PackRow]) -> Tensor:
    """The head reads the first token of a row, which is the first virtual one where there are any."""
    tokens = backbone.pack(rows)
    prefixes = prompt_pools([tuned.prompt]) if tuned.prompt else backbone.no_prefixes()
    virtual_VM = None if tuned.virtual_PM is None else tuned.virtual_PM.repeat(len(rows), 1)
    with torch.no_grad():
        hidden_TM = backbone.forward(tokens, prefixes, virtual_VM)
        first_RM = hidden_TM[tokens.plan.row_start_R1[:-1]]
        head = tuned.model.base_model.classifier
        return head(backbone.pooled(first_RM) if backbone.has_pooler else first_RM[:, None])


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_logits_equal_those_of_peft(tmp_path: Path, architecture: str) -> None:
    folder = tiny_backbone_folder(tmp_path, architecture)
    backbone, tuned = load_backbone(str(folder)), prefix_tuned(folder)
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(5, 120, (length,), generator=generator).tolist() for length in LENGTHS]
    rows = [PackRow(row, [0] * len(row), slot=1, position_offset=PREFIX) for row in ids]
    wanted = padded_logits(tuned, rows)
    torch.testing.assert_close(packed_logits(backbone, tuned, rows), wanted, atol=1e-5, rtol=0)
    assert wanted.std(0).min() > 1e-3
    unshifted = [row._replace(position_offset=0) for row in rows]
    assert (packed_logits(backbone, tuned, unshifted) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_logits_with_virtual_tokens_equal_those_of_peft(tmp_path: Path, architecture: str) -> None:
    """Virtual tokens stand at positions 0 to P - 1, the text after them, and the head reads virtual token 0."""
    folder = tiny_backbone_folder(tmp_path, architecture)
    backbone, tuned = load_backbone(str(folder)), prompt_tuned(folder)
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(5, 120, (length,), generator=generator).tolist() for length in LENGTHS]
    rows = [PackRow(row, [0] * len(row), position_offset=PREFIX, num_virtual=PREFIX) for row in ids]
    wanted = padded_logits(tuned, rows)
    torch.testing.assert_close(packed_logits(backbone, tuned, rows), wanted, atol=1e-5, rtol=0)
    assert wanted.std(0).mean() > 1e-3
    unshifted = [row._replace(position_offset=0) for row in rows]
    assert (packed_logits(backbone, tuned, unshifted) - wanted).abs().max() > 1e-3
