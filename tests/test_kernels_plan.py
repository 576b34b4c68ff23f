"""A plan's buckets hold every row that has tokens, once, where it lies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefixbank.kernels.plan import BatchPlan, Bucket, Mode


def _rows(plan: BatchPlan) -> list[tuple[int, int, int, int]]:
    """Spell the buckets out as (begin, length, slot, context) of each row."""
    buckets = map(Bucket._make, plan.bucket_B5.tolist())
    return sorted((b.begin + i * b.length, b.length, b.slot, b.context) for b in buckets for i in range(b.num_rows))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_buckets_are_the_rows_that_have_tokens(rows: list[tuple[int, int, int]]) -> None:
    lengths, slots, contexts = ([row[i] for row in rows] for i in range(3))
    plan = BatchPlan.build(lengths, slots, mode=Mode.PREFIX_LM, context=contexts)
    begins = plan.row_start_R1.tolist()
    wanted = [(b, n, s, c) for b, n, s, c in zip(begins[:-1], lengths, slots, contexts, strict=True) if n]
    assert _rows(plan) == sorted(wanted)
    assert plan.num_tokens == begins[-1] == sum(lengths)
    assert plan.num_rows == len(rows)


def test_adjacent_equal_rows_of_a_slot_are_one_bucket() -> None:
    plan = BatchPlan.build([4] * 7, [2] * 7)
    assert plan.bucket_B5.tolist() == [list(Bucket(2, 4, 0, 0, 7))]


def test_context_parts_no_rows_in_modes_that_ignore_it() -> None:
    plan = BatchPlan.build([4, 4], [2, 2], context=[1, 3])
    assert len(plan.bucket_B5) == 1


def test_every_index_tensor_is_int32() -> None:
    plan = BatchPlan.build([4, 0], [2, 0])
    assert {x.dtype for x in plan.indices} == {torch.int32}


def test_sequences_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length: 2, 1, 2"):
        BatchPlan.build([1, 2], [0])


@pytest.mark.parametrize(("lengths", "slots", "context"), [([-1], [0], [0]), ([1], [-1], [0]), ([1], [0], [-1])])
def test_negative_numbers_are_refused(lengths: list[int], slots: list[int], context: list[int]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        BatchPlan.build(lengths, slots, mode=Mode.PREFIX_LM, context=context)
