"""The Triton kernels of disentangled attention, in the interpreter: shapes that are small, and all that hurt.

The interpreter runs one program after the other, and few programs share all items: so scratch is used again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank.kernels.attention import Route
from prefixbank.kernels.plan import BatchPlan, Capacity, Tiling
from tests.disentangled_cases import NAMES, TERMS, DisentangledCase, make_disentangled
from tests.kernel_cases import GRADIENT_TOLERANCE, TOLERANCE, distance
from tests.kernel_cases import poisoned_memory as poisoned_memory
from tests.test_kernels_disentangled import with_stored_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EDGES = ([0, 1, 15, 16, 17, 33, 17, 1], [1, 4, 3, 0, 4, 2, 3, 0])
"""Rows about a tile of 16, the longest beyond the position table; prefixes of 0, 1, 15, 16 and 17."""
FEW = ([17, 0, 5], [4, 1, 0])


def error(case: DisentangledCase) -> float:
    return distance(case.run(Route.TRITON), case.wide().run(Route.REFERENCE))


def gradient_errors(case: DisentangledCase, names: Sequence[str] = NAMES) -> dict[str, float]:
    found, exact = case.gradients(Route.TRITON, names), case.wide().gradients(Route.REFERENCE, names)
    return {name: distance(found[name], exact[name]) for name in found}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", TERMS, ids="+".join)
def test_edge_lengths_equal_the_definition(dtype: torch.dtype, terms: Sequence[str]) -> None:
    case = make_disentangled(*EDGES, dtype=dtype, terms=terms, tiling=Tiling(16))
    assert error(case) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("block_m", "lengths"), [(32, [31, 33, 70]), (64, [63, 65, 130]), (128, [129, 30])])
def test_larger_tiles_equal_the_definition(block_m: int, lengths: list[int]) -> None:
    case = make_disentangled(lengths, [4, 0, 5][: len(lengths)], heads=1, dtype=torch.bfloat16, tiling=Tiling(block_m))
    assert error(case) <= TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(("dim", "dtype"), [(8, torch.float32), (48, torch.float32), (80, torch.bfloat16)])
def test_heads_of_any_width_equal_the_definition(dim: int, dtype: torch.dtype) -> None:
    case = make_disentangled(*FEW, dim=dim, dtype=dtype, tiling=Tiling(16))
    assert error(case) <= TOLERANCE[dtype]


def test_wide_heads_in_fp32_are_refused() -> None:
    case = make_disentangled([3], [1], dim=72)
    with pytest.raises(ValueError, match="fp32 heads of 72, wanted at most 64 on triton"):
        case.run(Route.TRITON)


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_a_pool_of_one_byte_per_number_is_read_by_its_scales(stored: torch.dtype) -> None:
    case = with_stored_pool(make_disentangled([5, 17], [1, 2], [0, 16, 5], tiling=Tiling(16)), stored)
    exact = case.run(Route.REFERENCE)
    assert distance(case.run(Route.TRITON), exact) <= TOLERANCE[torch.float32]
    own = ("q", "k", "v")
    found, wanted = case.gradients(Route.TRITON, own), case.gradients(Route.REFERENCE, own)
    assert all(distance(found[name], wanted[name]) <= GRADIENT_TOLERANCE[torch.float32] for name in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_gives_the_bits_it_gives_in_company(dtype: torch.dtype) -> None:
    case = make_disentangled([17, 5, 33, 5], [4, 1, 0, 3], dtype=dtype, tiling=Tiling(16))
    together = case.run(Route.TRITON)
    for row in range(4):
        alone, tokens = case.rows([row])
        assert torch.equal(alone.run(Route.TRITON), together[tokens]), f"row {row}"


def test_permuting_the_rows_permutes_the_answers() -> None:
    case = make_disentangled([5, 17, 5, 20, 1], [1, 2, 3, 4, 0], tiling=Tiling(16))
    moved, tokens = case.rows([3, 0, 4, 2, 1])
    assert torch.equal(moved.run(Route.TRITON), case.run(Route.TRITON)[tokens])


def test_what_lies_beyond_the_batch_is_not_read_and_gives_zero() -> None:
    case = make_disentangled([17, 5, 9], [1, 2, 3])
    plan = BatchPlan.build([17, 5], [1, 2], tiling=Tiling(16), capacity=Capacity(rows=6, tiles=9))
    plan.tile_Y2[3:] = 1_000_000
    shorter = case.with_plan(plan)
    out = shorter.run(Route.TRITON)
    assert distance(out, shorter.run(Route.REFERENCE)) <= TOLERANCE[torch.float32]
    assert not out[22:].any()
    grads = shorter.gradients(Route.TRITON, ["q", "k", "v"])
    assert not any(grad[22:].any() for grad in grads.values())
    assert all(grad[:22].any() for grad in grads.values())


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_a_batch_without_tokens_gives_an_empty_answer(lengths: list[int]) -> None:
    case = make_disentangled(lengths, [1] * len(lengths))
    assert case.run(Route.TRITON).shape == (0, 2, 16)
    assert not case.gradients(Route.TRITON)["pos_key"].any()


def test_memory_layout_of_the_inputs_changes_no_bit() -> None:
    case = make_disentangled(*FEW)
    dense = case.with_leaves({name: x.contiguous() for name, x in case.leaves.items()})
    assert torch.equal(case.run(Route.TRITON), dense.run(Route.TRITON))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_distance_may_outweigh_all_others_by_far(dtype: torch.dtype) -> None:
    """Scores of +10,000 for the token before, by position alone: in fp16 units they fit."""
    case = make_disentangled([8], [1], [0, 16], terms=["c2p"], dtype=dtype)
    key = torch.zeros(16, 2, 16)
    key[9] = 10_000 / (case.scale * 16)
    case = case.with_leaves(case.leaves | {"q": torch.ones(8, 2, 16, dtype=dtype), "pos_key": key.to(dtype)})
    assert torch.equal(case.run(Route.TRITON)[1:], case.case.v_THD[:-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_those_of_the_definition(dtype: torch.dtype) -> None:
    case = make_disentangled(*FEW, heads=1, dtype=dtype, tiling=Tiling(16))
    errors = gradient_errors(case)
    assert list(errors) == list(NAMES)
    assert all(each <= GRADIENT_TOLERANCE[dtype] for each in errors.values()), errors


@pytest.mark.parametrize("terms", TERMS[1:], ids="+".join)
def test_gradients_of_one_term_equal_those_of_the_definition(terms: Sequence[str]) -> None:
    case = make_disentangled([17, 3], [1, 0], heads=1, terms=terms)
    errors = gradient_errors(case)
    assert all(each <= GRADIENT_TOLERANCE[torch.float32] for each in errors.values()), errors


def test_gradients_of_rows_of_several_larger_tiles_equal_those_of_the_definition() -> None:
    case = make_disentangled([70, 33], [4, 4], heads=1, dtype=torch.bfloat16, tiling=Tiling(64))
    errors = gradient_errors(case)
    assert all(each <= GRADIENT_TOLERANCE[torch.bfloat16] for each in errors.values()), errors


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_asked_for_alone_has_the_bits_computed_with_all(name: str) -> None:
    case = make_disentangled([5, 3], [2, 1], heads=1)
    assert torch.equal(case.gradients(Route.TRITON, [name])[name], case.gradients(Route.TRITON)[name])


def test_the_same_batch_gives_the_same_bits_again() -> None:
    case = make_disentangled(*FEW, heads=1)
    first, again = case.gradients(Route.TRITON), case.gradients(Route.TRITON)
    assert all(torch.equal(first[name], again[name]) for name in NAMES)


def test_splits_of_a_plan_are_not_taken() -> None:
    case = make_disentangled(*FEW)
    split = replace(case, case=replace(case.case, plan=BatchPlan.build(*FEW, tiling=Tiling(16, 4))))
    assert torch.equal(split.run(Route.TRITON), case.run(Route.TRITON))


def test_torch_accepts_the_operator() -> None:
    case = make_disentangled([3], [1], [0, 5], heads=1, dtype=torch.float32, tiling=Tiling(16))
    case = case.with_leaves({name: torch.nan_to_num(x).requires_grad_() for name, x in case.leaves.items()})
    tensors = (*case.case.packed, *case.positions, *case.case.prefix, *case.plan.indices)
    scalars = (case.scale, *case.plan.tiling, True, Route.TRITON.value)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.prefixbank.disentangled_attention.default, (*tensors, *scalars), test_utils=tests)
