"""Heads in Triton: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefixbank.kernels.attention import Route
from prefixbank.kernels.head_plan import TILE_VECTORS, HeadPlan, HeadRow
from prefixbank.kernels.plan import Capacity
from tests.conftest import DEVICE
from tests.head_cases import EDGES, HeadCase, assert_gradients, assert_logits, make_heads, plan_of
from tests.kernel_cases import poisoned_memory as poisoned_memory
from tests.test_kernels_compile import run_compiler

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
SMALL = [HeadRow(0, *row) for row in ((1, 5, 3), (40, 0, 17), (1, 30, 0), (3, 30, 2), (1, 5, 3), (2, 5, 3))]
OTHER = [HeadRow(0, *row) for row in ((33, 1, 16), (1, 0, 17), (1, 29, 3), (0, 3, 3))]
GARBAGE = 2**30


def heads(
    rows: list[HeadRow] = EDGES, width: int = 24, dtype: torch.dtype = F32, tail: int = 0, seed: int = 0
) -> HeadCase:
    return make_heads(rows, width, dtype=dtype, tail=tail, device=DEVICE, seed=seed)


@pytest.mark.parametrize(("dtype", "width"), [(F32, 16), (F32, 17), (F32, 100), (F32, 384), (BF16, 100), (F16, 100)])
def test_logits_are_those_of_the_definition(dtype: torch.dtype, width: int) -> None:
    case = heads(EDGES, width, dtype, tail=3)
    assert_logits(case.run(Route.TRITON), case)


@pytest.mark.parametrize("vectors", [1, 5])
def test_a_pooler_is_as_many_arena_rows_as_the_model_is_wide(vectors: int) -> None:
    case = heads([HeadRow(0, vectors, start, 80) for start in (0, 100, 0, 0)], 80)
    assert_logits(case.run(Route.TRITON), case)


def test_a_wide_head_is_read_by_several_rows_at_once_and_gives_the_same_bits() -> None:
    case = heads([HeadRow(0, 1, start, 65) for start in [0] * 11 + [70]], 64)
    assert case.plan.indices.bunch_B4[:, 3].tolist() == [8, 3, 1]
    logits_NC = case.run(Route.TRITON)
    for index in (0, 7, 8, 11):
        assert torch.equal(case.alone(index).run(Route.TRITON), logits_NC[index : index + 1])


def test_a_row_alone_gives_the_bits_it_gives_in_company() -> None:
    case = heads(EDGES)
    logits_NC = case.run(Route.TRITON)
    for index in range(len(EDGES)):
        assert torch.equal(case.alone(index).run(Route.TRITON), case.logits_of(index, logits_NC))


def test_the_order_of_rows_changes_no_bit() -> None:
    case, order = heads(EDGES), list(reversed(range(len(EDGES))))
    logits_NC = case.run(Route.TRITON)
    wanted_NC = torch.cat([case.rows_of(index, logits_NC) for index in order])
    assert torch.equal(case.ordered(order).run(Route.TRITON), wanted_NC)


def test_more_columns_change_no_bit_and_are_minus_infinity() -> None:
    case = heads(SMALL)
    wider_NC = case.run(Route.TRITON, plan_of(SMALL, DEVICE, num_classes=37))
    assert torch.equal(wider_NC[:, :17], case.run(Route.TRITON))
    assert wider_NC[:, 17:].isneginf().all()


@pytest.mark.parametrize("rows", [[], [HeadRow(0, 0, 0, 2)] * 2, [HeadRow(0, 1, 0, 0), HeadRow(0, 4, 0, 0)]])
@pytest.mark.parametrize("tail", [0, 5])
def test_where_there_is_nothing_to_multiply_all_is_minus_infinity(rows: list[HeadRow], tail: int) -> None:
    case = heads(rows, tail=tail)
    logits_NC = case.run(Route.TRITON, plan_of(rows, DEVICE, num_classes=3))
    assert logits_NC.shape == (len(case.x_NM), 3)
    assert logits_NC.isneginf().all()


def test_vectors_of_no_row_are_minus_infinity_however_many() -> None:
    case = heads([HeadRow(0, 1, 0, 3)], tail=2000)
    assert_logits(case.run(Route.TRITON), case)


def with_garbage(plan: HeadPlan) -> HeadPlan:
    """The plan with numbers that point anywhere in what lies beyond the entries that count."""
    single_K, bunch_B4, tile_Y4, group_G6, _, _ = plan.indices
    bunches, tiles, _ = plan.indices.total_3.tolist()
    single_K[int((bunch_B4[:bunches, 3]).sum()) :] = GARBAGE
    bunch_B4[bunches:], tile_Y4[tiles:] = GARBAGE, GARBAGE
    assert (bunch_B4 == GARBAGE).any()
    assert (tile_Y4 == GARBAGE).any()
    assert (group_G6[-1] == 0).all()
    return plan


ROOM = Capacity.of(60, 9, TILE_VECTORS)


def test_a_plan_with_room_to_spare_changes_no_bit() -> None:
    case = heads(SMALL, tail=4)
    roomy_NC = case.run(Route.TRITON, with_garbage(plan_of(SMALL, DEVICE, capacity=ROOM)))
    assert torch.equal(roomy_NC, case.run(Route.TRITON))


def test_an_overwritten_plan_is_the_other_plan() -> None:
    plan = plan_of(SMALL, DEVICE, num_classes=17, capacity=ROOM)
    plan.overwrite(plan_of(OTHER, DEVICE, num_classes=17, capacity=ROOM))
    case = heads(OTHER, tail=20)
    assert torch.equal(case.run(Route.TRITON, plan), case.run(Route.TRITON))


@pytest.mark.parametrize(("dtype", "width"), [(F32, 16), (F32, 100), (BF16, 24), (F16, 24)])
def test_gradients_are_those_of_the_definition(dtype: torch.dtype, width: int) -> None:
    assert_gradients(heads(EDGES, width, dtype, tail=2), Route.TRITON)


def test_gradients_of_a_plan_with_room_to_spare_are_the_same_bits() -> None:
    case, d_logits_NC = heads(SMALL, tail=4), torch.randn(52, 17, device=DEVICE)
    leaves = [tensor.clone().requires_grad_() for tensor in case.differentiated]
    logits_NC = case.with_tensors(leaves).run(
        Route.TRITON, with_garbage(plan_of(SMALL, DEVICE, num_classes=17, capacity=ROOM))
    )
    found = torch.autograd.grad(logits_NC, leaves, d_logits_NC)
    for gradient, wanted in zip(found, case.gradients(Route.TRITON, d_logits_NC), strict=True):
        assert torch.equal(gradient, wanted)


def test_gradients_of_one_batch_are_the_same_bits_each_time() -> None:
    case, d_logits_NC = heads(SMALL), torch.randn(48, 17, device=DEVICE)
    once, again = (case.gradients(Route.TRITON, d_logits_NC) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_vectors_may_lie_apart() -> None:
    case = heads(SMALL)
    apart_NM = torch.cat([case.x_NM, torch.full_like(case.x_NM, torch.nan)], 1)[:, : case.x_NM.shape[1]]
    assert torch.equal(replace(case, x_NM=apart_NM).run(Route.TRITON), case.run(Route.TRITON))


def test_vectors_are_taken_in_the_precision_of_the_head() -> None:
    case = heads(SMALL)
    narrow_NM = case.x_NM.to(BF16)
    narrow, wide = (replace(case, x_NM=x_NM).run(Route.TRITON) for x_NM in (narrow_NM, narrow_NM.float()))
    assert torch.equal(narrow, wide)


def test_an_arena_in_fp64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"heads of torch\.float64"):
        heads(SMALL, dtype=torch.float64).run(Route.TRITON)


def test_an_arena_whose_rows_lie_apart_is_refused() -> None:
    case = heads(SMALL)
    apart_QM = torch.cat([case.weight_QM] * 2, 1)[:, : case.weight_QM.shape[1]]
    with pytest.raises(ValueError, match="wanted its rows end to end"):
        replace(case, weight_QM=apart_QM).run(Route.TRITON)


def test_what_is_launched_is_what_was_declared_and_no_batch_compiles_anything_again() -> None:
    launched = run_compiler("tests.head_launches")
    assert launched["undeclared"] == {}
    assert "multiply_bunches" in launched["recompiled"]
    assert not any(launched["recompiled"].values()), launched["recompiled"]


def test_torch_accepts_the_operator() -> None:
    case = heads(SMALL)
    leaves = [tensor.nan_to_num().requires_grad_() for tensor in case.differentiated]
    plan = case.plan
    arguments = (*leaves, *plan.indices, plan.num_classes, Route.TRITON.value)
    torch.library.opcheck(torch.ops.prefixbank.apply_heads.default, arguments)
