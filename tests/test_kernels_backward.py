"""The gradients of prefix attention are those of its definition, the same bits each time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixbank.kernels.plan import BatchPlan, Mode
from prefixbank.kernels.reference import reference_attention
from tests.kernel_cases import DTYPES, GRADIENT_TOLERANCE, VIEWS, Case, distance, every_edge, make_case
from tests.kernel_cases import poisoned_memory as poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")

NAMES = ("q", "k", "v", "pool_k", "pool_v")


def _gradients(case: Case, wanted: tuple[str, ...] = NAMES) -> dict[str, torch.Tensor]:
    """Differentiate a random projection of the output; the projection depends on the shape alone."""
    leaves = [x.detach().requires_grad_(name in wanted) for name, x in zip(NAMES, case.differentiated, strict=True)]
    out = case.with_tensors(leaves).run()
    grads = torch.autograd.grad(out, [leaf for leaf in leaves if leaf.requires_grad], _projection(out))
    return dict(zip(wanted, grads, strict=True))


def _exact_gradients(case: Case) -> dict[str, torch.Tensor]:
    leaves = [x.detach().double().requires_grad_() for x in case.differentiated]
    out = case.with_tensors(leaves).exact()
    return dict(zip(NAMES, torch.autograd.grad(out, leaves, _projection(out)), strict=True))


def _projection(out: torch.Tensor) -> torch.Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_every_gradient_equals_that_of_the_definition(dtype: torch.dtype, mode: Mode, window: int) -> None:
    case = make_case(*every_edge(), dtype=dtype, mode=mode, window=window)
    found, exact = _gradients(case), _exact_gradients(case)
    distances = {name: distance(found[name], exact[name]) for name in NAMES}
    assert all(distances[name] <= GRADIENT_TOLERANCE[dtype] for name in NAMES), distances


@pytest.mark.parametrize("mode", Mode)
def test_long_rows_of_one_slot_are_summed_over_blocks_and_rows(mode: Mode) -> None:
    case = make_case([300, 129, 300, 40, 40, 40], [5] * 6, heads=16, mode=mode)
    found, exact = _gradients(case), _exact_gradients(case)
    distances = {name: distance(found[name], exact[name]) for name in NAMES}
    assert all(distances[name] <= GRADIENT_TOLERANCE[torch.float32] for name in NAMES), distances


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_batch_gives_the_same_bits_again(dtype: torch.dtype) -> None:
    case = make_case(*every_edge(), dtype=dtype)
    first, again = _gradients(case), _gradients(case)
    assert all(torch.equal(first[name], again[name]) for name in NAMES)


@pytest.mark.parametrize("wanted", [("q",), ("k",), ("v",), ("pool_k",), ("pool_v",), ("pool_k", "pool_v")])
def test_a_gradient_asked_for_alone_is_the_one_computed_with_all(wanted: tuple[str, ...]) -> None:
    case = make_case(*every_edge())
    alone, all_of_them = _gradients(case, wanted), _gradients(case)
    assert all(distance(alone[name], all_of_them[name]) <= 1e-6 for name in wanted)


def test_pool_tokens_of_no_row_get_no_gradient() -> None:
    case = make_case([5, 9], [2, 2])
    start, length = int(case.prefix.slot_start_S[2]), int(case.prefix.slot_length_S[2])
    for name in ("pool_k", "pool_v"):
        grad = _gradients(case)[name]
        assert grad[:, start : start + length].all()
        assert not grad[:, :start].any()
        assert not grad[:, start + length :].any()


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_a_batch_without_tokens_has_zero_gradients(lengths: list[int]) -> None:
    grads = _gradients(make_case(lengths, [1] * len(lengths)))
    assert not any(grad.any() for grad in grads.values())


@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_the_log_sum_exp_and_its_gradient_equal_the_definition(mode: Mode, window: int) -> None:
    case = make_case([3, 17, 1], [1, 5, 0], dtype=torch.float64, mode=mode, window=window)
    leaves = [x.detach().requires_grad_() for x in case.differentiated]
    leafy = case.with_tensors(leaves)
    _, lse = torch.ops.prefixbank.prefix_attention(*leafy.arguments(with_lse=True))
    _, wanted = reference_attention(*leafy.packed, leafy.prefix, case.plan, scale=case.scale, window=window)
    assert distance(lse.detach(), wanted.detach()) <= 1e-14
    found = torch.autograd.grad(lse.sin().sum(), leaves, allow_unused=True)
    exact = torch.autograd.grad(wanted.sin().sum(), leaves, allow_unused=True)
    for name, mine, theirs in zip(NAMES, found, exact, strict=True):
        if name in ("v", "pool_v"):
            assert not mine.any()
        else:
            assert distance(mine, theirs) <= GRADIENT_TOLERANCE[torch.float64], name


def test_tokens_of_no_row_have_no_keys() -> None:
    case = make_case([3], [1])
    none = BatchPlan.build([], [])
    out, lse = torch.ops.prefixbank.prefix_attention(*replace(case, plan=none).arguments(with_lse=True))
    assert not out.any()
    assert (lse == -math.inf).all()


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=12),
    mode=st.sampled_from(Mode),
    window=st.integers(0, 4),
)
def test_any_batch_has_the_gradients_of_the_definition(rows: list[tuple[int, int]], mode: Mode, window: int) -> None:
    case = make_case(
        [length for length, _ in rows], [slot for _, slot in rows], [0, 3, 16, 1], mode=mode, window=window
    )
    found, exact = _gradients(case), _exact_gradients(case)
    for name in NAMES:
        assert torch.allclose(found[name].double(), exact[name], rtol=1e-4, atol=1e-5), name
