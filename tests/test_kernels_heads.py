"""Many heads in one batch give what each would give alone: the CPU route, and what all routes refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefixbank.kernels.attention import Route
from prefixbank.kernels.head_plan import HeadRow
from prefixbank.kernels.heads import apply_heads
from tests.head_cases import EDGES, HeadCase, assert_gradients, assert_logits, make_heads, plan_of
from tests.kernel_cases import DTYPES, GRADIENT_TOLERANCE, distance
from tests.kernel_cases import poisoned_memory as poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("width", [16, 24, 384])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_those_of_the_definition(dtype: torch.dtype, width: int) -> None:
    case = make_heads(EDGES, width, dtype=dtype, tail=2)
    assert_logits(case.run(Route.CPU), case)


def test_a_row_alone_gives_the_bits_it_gives_in_company() -> None:
    case = make_heads(EDGES)
    logits_NC = case.run(Route.CPU)
    for index in range(len(EDGES)):
        assert torch.equal(case.alone(index).run(Route.CPU), case.logits_of(index, logits_NC))


def test_the_order_of_rows_changes_no_bit() -> None:
    case, order = make_heads(EDGES), list(reversed(range(len(EDGES))))
    logits_NC = case.run(Route.CPU)
    wanted_NC = torch.cat([case.rows_of(index, logits_NC) for index in order])
    assert torch.equal(case.ordered(order).run(Route.CPU), wanted_NC)


def test_a_pooler_is_as_many_arena_rows_as_the_model_is_wide() -> None:
    case = make_heads([HeadRow(0, 1, start, 24) for start in (0, 0, 40)], 24)
    assert_logits(case.run(Route.CPU), case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_have_the_precision_of_the_head(dtype: torch.dtype) -> None:
    case = make_heads(EDGES)
    narrow = replace(case, x_NM=case.x_NM.to(dtype))
    assert torch.equal(narrow.run(Route.CPU), replace(case, x_NM=narrow.x_NM.float()).run(Route.CPU))


def test_the_definition_is_asked_for_as_elsewhere() -> None:
    case = make_heads(EDGES)
    assert torch.equal(case.run(Route.REFERENCE), case.run(Route.CPU))


def test_more_columns_than_classes_are_minus_infinity() -> None:
    case = make_heads([HeadRow(0, 2, 0, 3)])
    logits_NC = case.run(Route.CPU, plan_of(case.rows, num_classes=5))
    assert logits_NC.isneginf().tolist() == [[False] * 3 + [True] * 2] * 2


@pytest.mark.parametrize("rows", [[], [HeadRow(0, 0, 0, 2)] * 2])
def test_nothing_in_gives_nothing_out(rows: list[HeadRow]) -> None:
    assert make_heads(rows).run(Route.CPU).shape == (0, 2 if rows else 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_the_definition(dtype: torch.dtype) -> None:
    assert_gradients(make_heads(EDGES, dtype=dtype, tail=2), Route.CPU)


@pytest.mark.parametrize("trained", [[0], [1, 2], [2]])
def test_only_the_gradients_that_are_asked_for_are_computed(trained: list[int]) -> None:
    case = make_heads(EDGES)
    leaves = [case.differentiated[index].requires_grad_() for index in trained]
    logits_NC = case.run(Route.CPU)
    found = torch.autograd.grad(logits_NC, leaves, torch.ones_like(logits_NC))
    wanted = case.gradients(None, torch.ones_like(logits_NC))
    for gradient, index in zip(found, trained, strict=True):
        assert distance(gradient, wanted[index]) <= GRADIENT_TOLERANCE[torch.float32]


def test_torch_accepts_the_operator() -> None:
    case = make_heads()
    leaves = [tensor.nan_to_num().requires_grad_() for tensor in case.differentiated]
    plan = case.plan
    arguments = (*leaves, *plan.indices, plan.num_classes, Route.CPU.value)
    torch.library.opcheck(torch.ops.prefixbank.apply_heads.default, arguments)


REFUSED = [
    ("x_NM", torch.zeros(400, 7), r"wanted \[N, M\], \[Q, M\] and \[Q\]"),
    ("bias_Q", torch.zeros(7), r"wanted \[N, M\], \[Q, M\] and \[Q\]"),
    ("bias_Q", torch.zeros(270).half(), "the last two one"),
    ("x_NM", torch.zeros(400, 24).long(), "wanted floating dtypes"),
    ("x_NM", torch.zeros(5, 24), "x has 5 vectors, wanted the 197"),
    ("x_NM", torch.zeros(400, 24, device="meta"), "wanted one device"),
]


@pytest.mark.parametrize(("name", "value", "refusal"), REFUSED)
def test_what_does_not_fit_is_refused_at_the_door(name: str, value: torch.Tensor, refusal: str) -> None:
    case = make_heads(EDGES)
    with pytest.raises(ValueError, match=refusal):
        replace(case, **{name: value}).run(Route.CPU)


def test_a_head_beyond_the_arena_is_refused() -> None:
    case: HeadCase = make_heads(EDGES)
    with pytest.raises(ValueError, match="end at arena row 270 of 269"):
        apply_heads(case.x_NM, case.weight_QM[:269], case.bias_Q[:269], case.plan)
