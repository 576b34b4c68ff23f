"""A head plan gives every vector to one program, and every arena row to one writer of gradients."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixbank.kernels.head_plan import BUNCH_VECTORS, TILE_VECTORS, WIDE_HEAD, HeadPlan, HeadRow
from prefixbank.kernels.plan import Capacity
from tests.head_cases import EDGES, laid_out, plan_of

ROWS = st.lists(
    st.builds(
        HeadRow,
        st.just(0),
        st.sampled_from([0, 1, 1, 1, 2, 31, 32, 33, 70]),
        st.integers(0, 90),
        st.sampled_from([0, 1, 3, WIDE_HEAD - 1, WIDE_HEAD, WIDE_HEAD + 1]),
    ),
    max_size=30,
)


def entries(plan: HeadPlan) -> dict[int, tuple[int, int]]:
    """Each vector, with start and count of the head that its bunch or tile meets."""
    found: dict[int, tuple[int, int]] = {}
    single = plan.indices.single_K.tolist()
    taken = [
        *((start, count, single[first : first + n]) for start, count, first, n in plan.indices.bunch_B4.tolist()),
        *((start, count, range(first, first + n)) for start, count, first, n in plan.indices.tile_Y4.tolist()),
    ]
    for start, count, vectors in taken:
        assert vectors
        assert not found.keys() & set(vectors)
        found |= dict.fromkeys(vectors, (start, count))
    return found


@given(rows=ROWS)
@settings(max_examples=200, deadline=None)
def test_every_vector_meets_its_rows_head_once(rows: list[HeadRow]) -> None:
    wanted = {
        row.first + vector: (row.head_start, row.num_classes) for row in laid_out(rows) for vector in range(row[1])
    }
    assert entries(plan_of(rows)) == wanted


@given(rows=ROWS)
@settings(max_examples=200, deadline=None)
def test_every_arena_row_that_is_read_is_in_one_group_with_all_that_read_it(rows: list[HeadRow]) -> None:
    indices = plan_of(rows).indices
    bunches, tiles = indices.bunch_B4.tolist(), indices.tile_Y4.tolist()
    covered: list[int] = []
    for begin, end, first_bunch, num_bunches, first_tile, num_tiles in indices.group_G6.tolist():
        covered += range(begin, end)
        own = bunches[first_bunch : first_bunch + num_bunches] + tiles[first_tile : first_tile + num_tiles]
        readers = [entry for entry in bunches + tiles if entry[1] and begin <= entry[0] < end]
        assert sorted(entry for entry in own if entry[1]) == sorted(readers)
        assert all(entry[0] + entry[1] <= end for entry in readers)
    assert len(covered) == len(set(covered))
    assert set(covered) == {row[2] + c for row in rows if row.num_vectors for c in range(row.num_classes)}


@given(rows=ROWS)
@settings(max_examples=50, deadline=None)
def test_the_room_for_any_batch_is_room_for_this_one(rows: list[HeadRow]) -> None:
    vectors = sum(row.num_vectors for row in rows)
    room = Capacity.of(vectors, len(rows), TILE_VECTORS)
    roomy, exact = plan_of(rows, capacity=room), plan_of(rows)
    totals = exact.indices.total_3.tolist()
    assert (
        roomy.indices.total_3.tolist() == totals == [len(exact.indices.bunch_B4), len(exact.indices.tile_Y4), vectors]
    )
    assert np.array_equal(roomy.indices.bunch_B4[: totals[0]], exact.indices.bunch_B4)
    assert np.array_equal(roomy.indices.tile_Y4[: totals[1]], exact.indices.tile_Y4)


def test_tables_are_in_the_order_of_heads() -> None:
    rows = EDGES[:]
    random.Random(0).shuffle(rows)
    indices = plan_of(rows).indices
    assert indices.bunch_B4[:, 0].tolist() == sorted(indices.bunch_B4[:, 0].tolist())
    assert indices.tile_Y4[:, 0].tolist() == sorted(indices.tile_Y4[:, 0].tolist())


def test_only_wide_heads_are_shared_by_rows_of_one_vector() -> None:
    rows = [HeadRow(0, 1, 0, 3)] * 9 + [HeadRow(0, 1, 3, WIDE_HEAD)] * 9
    assert plan_of(rows).indices.bunch_B4[:, 3].tolist() == [1] * 9 + [BUNCH_VECTORS, 1]


def test_all_tables_for_the_device_are_one_blob() -> None:
    plan = plan_of(EDGES)
    blob = plan.blob_I.untyped_storage().data_ptr()
    assert {table.untyped_storage().data_ptr() for table in plan.indices[:-1]} == {blob}
    assert plan.indices.row_R4.untyped_storage().data_ptr() != blob


def test_rows_are_kept_in_the_order_given() -> None:
    assert plan_of(EDGES).rows == laid_out(EDGES)


@pytest.mark.parametrize(
    ("lengths", "starts", "counts", "options", "refusal"),
    [
        ([1], [0, 1], [1], {}, "differ in length: 1, 2, 1"),
        ([1], [-1], [1], {}, "must not be negative"),
        ([1], [0], [3], {"num_classes": 2}, "the widest head has 3 classes, and num_classes is 2"),
        ([1, 1], [0, 0], [1, 1], {"capacity": Capacity(1, 5)}, r"needs Capacity\(rows=2, tiles=0\)"),
        ([65], [0], [1], {"capacity": Capacity(1, 2)}, r"needs Capacity\(rows=1, tiles=3\)"),
    ],
)
def test_what_makes_no_plan_is_refused(
    lengths: list[int], starts: list[int], counts: list[int], options: dict[str, int], refusal: str
) -> None:
    with pytest.raises(ValueError, match=refusal):
        HeadPlan.build(lengths, starts, counts, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{}, {"capacity": Capacity(9, 9)}, {"capacity": Capacity(30, 30), "num_classes": 70}]
)
def test_a_plan_of_another_size_does_not_overwrite(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        plan_of(EDGES, capacity=Capacity(30, 30)).overwrite(plan_of(EDGES[:3], **options))
