"""A plan's buckets hold every row that has tokens, once, where it lies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefixbank.kernels.plan import BatchPlan, Bucket, Capacity, Mode, Tiling


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


def _covered(plan: BatchPlan) -> list[tuple[int, int]]:
    """Spell the tiles out as (row, query)."""
    bounds, block_m = plan.row_start_R1.tolist(), plan.tiling.block_m
    tiles = plan.tile_Y2[: int(plan.num_tiles_1)].tolist()
    return [(r, q) for r, first in tiles for q in range(first, min(first + block_m, bounds[r + 1] - bounds[r]))]


@given(
    rows=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 3)), max_size=12),
    block_m=st.sampled_from([16, 32, 64]),
    spare=st.integers(0, 3),
)
def test_tiles_hold_every_query_once_in_the_order_of_slots(
    rows: list[tuple[int, int]], block_m: int, spare: int
) -> None:
    lengths, slots = [row[0] for row in rows], [row[1] for row in rows]
    capacity = Capacity.of(sum(lengths) + spare * block_m, len(rows) + spare, block_m)
    plan = BatchPlan.build(lengths, slots, tiling=Tiling(block_m), capacity=capacity)
    assert sorted(_covered(plan)) == [(r, q) for r, length in enumerate(lengths) for q in range(length)]
    read = [slots[row] for row, _ in plan.tile_Y2[: int(plan.num_tiles_1)].tolist()]
    assert read == sorted(read)
    groups = [group for group in plan.group_G3.tolist() if group[2]]
    assert [slot for slot, first, count in groups for _ in range(first, first + count)] == read
    assert len({slot for slot, *_ in groups}) == len(groups)


def test_rows_beyond_the_batch_are_empty_rows_without_a_prompt() -> None:
    plan = BatchPlan.build([4, 2], [1, 2], capacity=Capacity(5, 9))
    assert plan.row_start_R1.tolist() == [0, 4, 6, 6, 6, 6]
    assert plan.slot_R.tolist() == [1, 2, 0, 0, 0]
    assert plan.capacity == Capacity(5, 9)


def test_a_batch_beyond_the_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 rows and 3 tiles, and there is room for Capacity\(rows=2, tiles=9\)"):
        BatchPlan.build([4, 2, 1], [1, 2, 0], capacity=Capacity(2, 9))


def test_index_tensors_lie_in_one_blob_at_multiples_of_16_bytes() -> None:
    plan = BatchPlan.build([4, 2, 9], [1, 2, 0])
    blob = plan.blob_I.data_ptr()
    offsets = [x.data_ptr() - blob for x in plan.indices[:-1]]
    assert all(0 <= offset < plan.blob_I.nbytes and offset % 16 == 0 for offset in offsets)


def test_overwriting_a_plan_moves_no_memory() -> None:
    capacity = Capacity(3, 4)
    static, other = (
        BatchPlan.build(lengths, slots, tiling=Tiling(16), capacity=capacity)
        for lengths, slots in (([4, 2], [1, 2]), ([3, 3, 3], [0, 5, 5]))
    )
    held = [x.data_ptr() for x in static.indices]
    static.overwrite(other)
    assert [x.data_ptr() for x in static.indices] == held
    for mine, theirs in zip(static.indices[:-1], other.indices[:-1], strict=True):
        assert torch.equal(mine, theirs)


def test_a_plan_is_not_overwritten_by_one_of_another_size() -> None:
    plan = BatchPlan.build([4], [1], capacity=Capacity(1, 2))
    with pytest.raises(ValueError, match=r"the plan is for .*rows=2.*, wanted .*rows=1"):
        plan.overwrite(BatchPlan.build([4, 4], [1, 1]))


@pytest.mark.parametrize(
    ("lengths", "longest_prefix", "tiling"),
    [
        ([9] * 40, 0, Tiling(16)),
        ([40] * 40, 0, Tiling(32)),
        ([128] * 40, 1024, Tiling(64)),
        ([12], 255, Tiling(16)),
        ([12], 256, Tiling(16, 2)),
        ([128], 512, Tiling(64, 4)),
        ([], 0, Tiling(16)),
    ],
)
def test_tiles_follow_the_mean_length_and_small_batches_share_long_prefixes(
    lengths: list[int], longest_prefix: int, tiling: Tiling
) -> None:
    assert Tiling.choose(lengths, longest_prefix) == tiling
