"""Rows laid end to end keep their tokens, and are numbered as each alone would be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from prefixbank.model_store.backbones.packing import PackRow, PositionRule, pack
from prefixbank.model_store.errors import InputTooLong

BERT = PositionRule(0, 512)
ROBERTA = PositionRule(2, 512, padding_id=1)

token_lists = st.lists(st.integers(0, 9), min_size=1, max_size=20)
batches = st.lists(st.tuples(token_lists, st.integers(0, 200)), min_size=1, max_size=8)


def test_tokens_types_and_slots_keep_their_order() -> None:
    rows = [PackRow([5, 6, 7], [0, 0, 1], slot=3), PackRow(np.array([8, 9], dtype=np.int32), [1, 1], slot=0)]
    tokens = pack(rows, BERT)
    assert tokens.token_ids_T.tolist() == [5, 6, 7, 8, 9]
    assert tokens.type_ids_T.tolist() == [0, 0, 1, 1, 1]
    assert tokens.plan.row_start_R1.tolist() == [0, 3, 5]
    assert tokens.plan.slot_R.tolist() == [3, 0]


def test_an_offset_moves_only_its_own_row() -> None:
    rows = [PackRow([5, 5], [0, 0]), PackRow([5, 5, 5], [0] * 3, position_offset=20), PackRow([5], [0])]
    assert pack(rows, BERT).position_ids_T.tolist() == [0, 1, 20, 21, 22, 0]
    assert pack(rows, ROBERTA).position_ids_T.tolist() == [2, 3, 22, 23, 24, 2]


@given(batches)
def test_roberta_rows_are_numbered_as_transformers_numbers_each(batch: list[tuple[list[int], int]]) -> None:
    rows = [PackRow(ids, [0] * len(ids), position_offset=offset) for ids, offset in batch]
    number = RobertaEmbeddings.create_position_ids_from_input_ids
    wanted = [number(torch.tensor([ids]), 1, offset)[0] for ids, offset in batch]
    assert pack(rows, ROBERTA).position_ids_T.tolist() == torch.cat(wanted).tolist()


def test_a_row_longer_than_the_positions_is_refused() -> None:
    fits, too_long = ([PackRow([5] * n, [0] * n, position_offset=500)] for n in (12, 13))
    assert pack(fits, BERT).position_ids_T[-1] == 511
    with pytest.raises(InputTooLong, match="row 0 has 13 tokens at position offset 500; the backbone has 512"):
        pack(too_long, BERT)


@pytest.mark.parametrize("rows", [[], [PackRow([], [])], [PackRow([1], [0]), PackRow([], [])]], ids=str)
def test_nothing_to_run_is_refused(rows: list[PackRow]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack(rows, BERT)


def test_types_that_do_not_match_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in number"):
        pack([PackRow([1, 2], [0]), PackRow([1], [0, 0])], BERT)
