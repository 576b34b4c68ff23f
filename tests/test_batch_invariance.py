"""A row's numbers do not depend on who shares its batch: through a whole real backbone, to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from prefixbank.kernels.plan import LayerPrefix
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow

if TYPE_CHECKING:
    from prefixbank.model_store.backbones.backbone import Backbone

SLOT_START, SLOT_LENGTH = (0, 0, 16, 32), (0, 5, 16, 64)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return load_backbone("minilm", dtype=request.param)


def prefixes_of(backbone: Backbone) -> list[LayerPrefix]:
    random = torch.Generator().manual_seed(0)
    shape = (backbone.ref.num_heads, 96, backbone.ref.head_dim)
    k_HND, v_HND = (torch.randn(shape, generator=random).to(backbone.dtype) for _ in range(2))
    tables = (torch.tensor(table, dtype=torch.int32) for table in (SLOT_START, SLOT_LENGTH))
    return [LayerPrefix(k_HND, v_HND, *tables)] * backbone.ref.num_layers


def random_rows(count: int) -> list[PackRow]:
    random = np.random.default_rng(1)
    lengths, slots = random.integers(1, 73, count), random.integers(0, len(SLOT_START), count)
    return [
        PackRow(random.integers(1000, 20000, length), np.zeros(length, dtype=np.int64), int(slot))
        for length, slot in zip(lengths, slots, strict=True)
    ]


@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_among_any_others(backbone: Backbone) -> None:
    prefixes, rows = prefixes_of(backbone), random_rows(32)
    together_TM = backbone.forward(backbone.pack(rows), prefixes)
    alone_TM = torch.cat([backbone.forward(backbone.pack([row]), prefixes) for row in rows])
    assert torch.equal(together_TM, alone_TM)


@torch.inference_mode()
def test_a_pooled_row_has_the_same_bits_alone_and_among_any_others(backbone: Backbone) -> None:
    first_RM = torch.randn(20, backbone.ref.width, generator=torch.Generator().manual_seed(2)).to(backbone.dtype)
    alone_RM = torch.cat([backbone.pooled(first_RM[r : r + 1]) for r in range(len(first_RM))])
    assert torch.equal(backbone.pooled(first_RM), alone_RM)
