"""Virtual tokens give the numbers of plain transformers with `inputs_embeds` and positions written out by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow, PositionRule, pack
from prefixbank.model_store.errors import BackboneError, InputTooLong
from tests.tiny import ARCHITECTURES, LAYERS, WIDTH, prompt_pools, random_prompt, tiny_backbone_folder, tiny_lm_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from prefixbank.model_store.backbones.backbone import Backbone

FP64 = 1e-6
"""Absolute, on states of order 1. In fp32 rounding alone is larger, so that both sides are computed in fp64."""
LENGTHS = (9, 3, 40, 1, 17, 16, 5, 9)
VIRTUAL = (5, 0, 1, 20, 0, 7, 0, 3)
"""Virtual tokens of each row. Of the rows without any, the last but one has no prompt and the others a deep one."""


class Pair(NamedTuple):
    """A backbone and the plain transformers model of the same files."""

    backbone: Backbone
    plain: PreTrainedModel


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    parent = tmp_path_factory.mktemp("backbones")
    make = tiny_lm_folder if request.param == "electra" else tiny_backbone_folder  # an ELECTRA that is not factorised
    folder = make(parent, request.param)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return Pair(load_backbone(str(folder)), AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval())


def random_rows(backbone: Backbone, position_offset: int | None = None) -> list[PackRow]:
    """Deep rows, shallow rows and one without a prompt; shallow rows at this offset, or at their length."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i, (length, virtual) in enumerate(zip(LENGTHS, VIRTUAL, strict=True)):
        ids = torch.randint(5, backbone.tokenizer.get_vocab_size(), (length,), generator=generator).tolist()
        types = [t % 2 for t in range(length)] if backbone.has_token_types else [0] * length
        offset = virtual if position_offset is None else position_offset
        is_deep = not virtual and i != len(LENGTHS) - 2
        rows.append(PackRow(ids, types, slot=int(is_deep), position_offset=offset, num_virtual=virtual))
    return rows


def doubled(pair: Pair) -> Pair:
    """The two with the same weights in fp64."""
    model = copy.deepcopy(pair.backbone.model).double()
    return Pair(replace(pair.backbone, model=model, dtype=torch.float64), copy.deepcopy(pair.plain).double())


def vectors(rows: Sequence[PackRow]) -> list[Tensor]:
    """Random vectors for the virtual tokens of each row."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(row.num_virtual, WIDTH, generator=generator) for row in rows]


def packed(backbone: Backbone, rows: Sequence[PackRow], virtual: Sequence[Tensor]) -> list[Tensor]:
    """The hidden states of each row, its virtual tokens first; slot 1 holds a deep prompt."""
    tokens = backbone.pack(rows)
    prefixes = prompt_pools([random_prompt(range(LAYERS), 6)], dtype=backbone.dtype)
    hidden_TM = backbone.forward(tokens, prefixes, torch.cat(list(virtual)))
    return list(hidden_TM.split(tokens.plan.row_start_R1.diff().tolist()))


def by_hand(pair: Pair, row: PackRow, virtual_PM: Tensor) -> Tensor:
    """The plain model's hidden states of one shallow row."""
    backbone, num_virtual, length = pair.backbone, row.num_virtual, len(row.token_ids)
    words_TM = pair.plain.get_input_embeddings()(torch.tensor(row.token_ids))
    places = [*range(num_virtual), *range(row.position_offset, row.position_offset + length)]
    types = {"token_type_ids": torch.tensor([[0] * num_virtual + [*row.type_ids]])} if backbone.has_token_types else {}
    output = pair.plain(
        inputs_embeds=torch.cat([virtual_PM.to(words_TM.dtype), words_TM])[None],
        position_ids=torch.tensor([places]) + backbone.positions.first,
        **types,
    )
    hidden_TM: Tensor = output.last_hidden_state[0]
    return hidden_TM


@pytest.mark.parametrize("offset", [None, 0, 3], ids=["offset-P", "offset-0", "offset-3"])
def test_rows_with_virtual_tokens_equal_transformers_in_any_company(pair: Pair, offset: int | None) -> None:
    exact, rows = doubled(pair), random_rows(pair.backbone, offset)
    virtual = vectors(rows)
    with torch.inference_mode():
        for row, vectors_PM, got in zip(rows, virtual, packed(exact.backbone, rows, virtual), strict=True):
            if row.num_virtual:
                torch.testing.assert_close(got, by_hand(exact, row, vectors_PM), atol=FP64, rtol=0)


def test_fp32_rounds_no_further_than_transformers(pair: Pair) -> None:
    """Against fp64, in the largest error: twice that of the plain model at most."""
    exact, rows = doubled(pair), random_rows(pair.backbone)
    virtual = vectors(rows)
    with torch.inference_mode():
        shallow = [i for i, row in enumerate(rows) if row.num_virtual]
        wanted, theirs = (torch.cat([by_hand(p, rows[i], virtual[i]) for i in shallow]) for p in (exact, pair))
        ours = torch.cat([packed(pair.backbone, rows, virtual)[i] for i in shallow])
    assert (ours - wanted).abs().max() < 2 * (theirs - wanted).abs().max()


def test_company_does_not_change_a_bit(pair: Pair) -> None:
    rows = random_rows(pair.backbone)
    virtual = vectors(rows)
    with torch.inference_mode():
        together = packed(pair.backbone, rows, virtual)
        for row, vectors_PM, got in zip(rows, virtual, together, strict=True):
            assert torch.equal(packed(pair.backbone, [row], [vectors_PM])[0], got)


def test_the_words_own_vectors_as_virtual_tokens_are_the_text(pair: Pair) -> None:
    backbone = pair.backbone
    row = random_rows(backbone)[2]._replace(type_ids=[0] * 40, num_virtual=0, position_offset=0)
    shallow = PackRow(row.token_ids[8:], [0] * 32, position_offset=8, num_virtual=8)
    words_PM = backbone.word_embedding_VM[torch.tensor(row.token_ids[:8])]
    with torch.inference_mode():
        (wanted,), (got,) = packed(backbone, [row], [words_PM[:0]]), packed(backbone, [shallow], [words_PM])
    assert torch.equal(got, wanted)


def test_gradients_reach_the_vectors_as_by_hand(pair: Pair) -> None:
    row = random_rows(pair.backbone)[0]
    vectors_PM = vectors([row])[0].requires_grad_()
    found, wanted = (
        torch.autograd.grad(hidden_TM.pow(2).sum(), vectors_PM)[0]
        for hidden_TM in (packed(pair.backbone, [row], [vectors_PM])[0], by_hand(pair, row, vectors_PM))
    )
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert found.abs().mean() > 1e-3


def test_vectors_and_virtual_tokens_must_be_as_many(pair: Pair) -> None:
    row = random_rows(pair.backbone)[0]
    with pytest.raises(ValueError, match="4 vectors for 5 virtual tokens"):
        packed(pair.backbone, [row], [torch.zeros(4, WIDTH)])
    with pytest.raises(ValueError, match="0 vectors for 5 virtual tokens"):
        pair.backbone.forward(pair.backbone.pack([row]), pair.backbone.no_prefixes())


def test_a_factorised_electra_takes_no_virtual_tokens(tmp_path_factory: pytest.TempPathFactory) -> None:
    backbone = load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("electra"), "electra")))
    rows = random_rows(backbone)[:1]
    with pytest.raises(BackboneError, match="word embeddings of width 16 and is 32 wide"):
        packed(backbone, rows, vectors(rows))


def test_virtual_tokens_begin_a_row_and_its_positions() -> None:
    rows = [PackRow([5, 6], [0, 1], position_offset=3, num_virtual=3), PackRow([7], [1]), PackRow([8], [1], 0, 0, 0, 2)]
    tokens = pack(rows, PositionRule(2, 512, padding_id=1))
    assert tokens.plan.row_start_R1.tolist() == [0, 5, 6, 9]
    assert tokens.virtual_V.tolist() == [0, 1, 2, 6, 7]
    assert tokens.position_ids_T.tolist() == [2, 3, 4, 5, 6, 2, 2, 3, 2]
    assert tokens.type_ids_T.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1]
    assert tokens.token_ids_T.tolist() == [0, 0, 0, 5, 6, 7, 0, 0, 8]


def test_more_virtual_tokens_than_positions_are_refused() -> None:
    with pytest.raises(InputTooLong, match="row 1 has 513 virtual tokens; the backbone has 512 positions"):
        pack([PackRow([5], [0]), PackRow([5], [0], num_virtual=513)], PositionRule(0, 512))
