"""A row's numbers do not depend on who shares its batch: through a whole real backbone, to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from prefixbank.kernels.plan import LayerPrefix
from prefixbank.model_store.backbones.lm_head import LmHead
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from tests.conftest import DEVICE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.model_store.backbones.backbone import Backbone

THREADS = 2
"""As a server has: a library may cut a sum between them."""
SLOT_START, SLOT_LENGTH = (0, 0, 16, 32), (0, 5, 16, 64)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    # On a GPU that is a promise of 16-bit numbers: docs/decisions/0017-rows-on-a-gpu.md.
    return load_backbone("minilm", dtype=request.param, device=DEVICE if request.param == torch.bfloat16 else "cpu")


@pytest.fixture(scope="module", autouse=True)
def _several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def prefixes_of(backbone: Backbone) -> list[LayerPrefix]:
    random = torch.Generator().manual_seed(0)
    shape = (backbone.ref.num_heads, 96, backbone.ref.head_dim)
    k_HND, v_HND = (torch.randn(shape, generator=random).to(backbone.device, backbone.dtype) for _ in range(2))
    tables = (torch.tensor(table, dtype=torch.int32, device=backbone.device) for table in (SLOT_START, SLOT_LENGTH))
    return [LayerPrefix(k_HND, v_HND, *tables)] * backbone.ref.num_layers


def random_rows(count: int) -> list[PackRow]:
    random = np.random.default_rng(1)
    lengths, slots = random.integers(1, 73, count), random.integers(0, len(SLOT_START), count)
    virtual = random.choice([0, 0, 1, 7, 20], count) * (slots == 0)  # deep, shallow or neither
    return [
        PackRow(random.integers(1000, 20000, length), np.zeros(length, dtype=np.int64), int(slot), num_virtual=int(num))
        for length, slot, num in zip(lengths, slots, virtual, strict=True)
    ]


def vectors_of(backbone: Backbone, rows: list[PackRow]) -> list[torch.Tensor]:
    """What stands at each row's virtual tokens."""
    random = torch.Generator().manual_seed(3)
    return [torch.randn(row.num_virtual, backbone.ref.width, generator=random).to(backbone.device) for row in rows]


@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_among_any_others(backbone: Backbone) -> None:
    prefixes, rows = prefixes_of(backbone), random_rows(32)
    vectors = vectors_of(backbone, rows)
    together_TM = backbone.forward(backbone.pack(rows), prefixes, torch.cat(vectors))
    alone = [backbone.forward(backbone.pack([row]), prefixes, own) for row, own in zip(rows, vectors, strict=True)]
    assert torch.equal(together_TM, torch.cat(alone))


@torch.inference_mode()
def test_a_row_without_virtual_tokens_has_the_bits_it_has_where_nobody_has_any(backbone: Backbone) -> None:
    prefixes, rows = prefixes_of(backbone), random_rows(32)
    hidden_TM = backbone.forward(backbone.pack(rows), prefixes, torch.cat(vectors_of(backbone, rows)))
    found = hidden_TM.split([row.num_virtual + len(row.token_ids) for row in rows])
    plain = [number for number, row in enumerate(rows) if not row.num_virtual]
    wanted_TM = backbone.forward(backbone.pack([rows[number] for number in plain]), prefixes)
    assert torch.equal(torch.cat([found[number] for number in plain]), wanted_TM)


@torch.inference_mode()
def test_a_pooled_row_has_the_same_bits_alone_and_among_any_others(backbone: Backbone) -> None:
    first_RM = torch.randn(20, backbone.ref.width, generator=torch.Generator().manual_seed(2)).to(
        backbone.device, backbone.dtype
    )
    alone_RM = torch.cat([backbone.pooled(first_RM[r : r + 1]) for r in range(len(first_RM))])
    assert torch.equal(backbone.pooled(first_RM), alone_RM)


@torch.inference_mode()
def test_a_state_before_the_vocabulary_has_the_same_bits_alone_and_among_any_others(backbone: Backbone) -> None:
    width = backbone.ref.width
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)).to(backbone.device, backbone.dtype)
    head = LmHead(module, backbone.word_embedding_VM, None, "")
    x_KM = torch.randn(40, width).to(backbone.device, backbone.dtype)
    assert torch.equal(head.transform(x_KM), torch.cat([head.transform(x_KM[k : k + 1]) for k in range(len(x_KM))]))
