"""The Triton gradients are those of the definition, the same bits each time: on a GPU, else in Triton's interpreter.

One head, or two, and tiles as small as the launch table has: the interpreter takes 10 ms for a program.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixbank.kernels.attention import Route
from prefixbank.kernels.operands import QUANTISED
from prefixbank.kernels.plan import BatchPlan, Capacity, LayerPrefix, Mode, Tiling
from prefixbank.kernels.reference import reference_attention
from tests.kernel_cases import GRADIENT_TOLERANCE, PREFIX_LENGTHS, VIEWS, Case, distance, int32, make_case, make_prefix
from tests.kernel_cases import poisoned_memory as poisoned_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

pytest.importorskip("triton", reason="the kernels are compiled by Triton, which is not installed")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = ("q", "k", "v", "pool_k", "pool_v")
GARBAGE = -1_000_000_007
few_heads = partial(make_case, heads=1)


def replanned(case: Case, lengths: list[int], slots: list[int], **options: object) -> Case:
    """The case with another plan for the same rows; tiles of 16 unless asked for."""
    context = [length // 2 for length in lengths]
    options = {"tiling": Tiling(16), **options}
    plan = BatchPlan.build(lengths, slots, mode=case.plan.mode, context=context, **options)  # type: ignore[arg-type]
    return replace(case, plan=plan)


def tiled(lengths: list[int], slots: list[int], *prefix_lengths: list[int], tiling: Tiling, **options: object) -> Case:
    case = few_heads(lengths, slots, *prefix_lengths, **options)  # type: ignore[arg-type]
    return replanned(case, lengths, slots, tiling=tiling)


def projection_of(case: Case) -> Tensor:
    """What the gradient of the output is; it depends on the shape alone."""
    return torch.randn(case.q_THD.shape, generator=torch.Generator().manual_seed(1)).to(case.q_THD.dtype)


def gradients(case: Case, wanted: Sequence[str] = NAMES, projection: Tensor | None = None) -> dict[str, Tensor]:
    leaves = [x.detach().requires_grad_(name in wanted) for name, x in zip(NAMES, case.differentiated, strict=True)]
    out = case.with_tensors(leaves).run(Route.TRITON)
    projection = projection_of(case) if projection is None else projection
    grads = torch.autograd.grad(out, [leaf for leaf in leaves if leaf.requires_grad], projection)
    return dict(zip(wanted, grads, strict=True))


def exact_gradients(case: Case) -> dict[str, Tensor]:
    leaves = [x.detach().double().requires_grad_() for x in case.differentiated]
    grads = torch.autograd.grad(case.with_tensors(leaves).exact(), leaves, projection_of(case).double())
    return dict(zip(NAMES, grads, strict=True))


def assert_exact(case: Case) -> None:
    found, exact = gradients(case), exact_gradients(case)
    distances = {name: distance(found[name], exact[name]) for name in NAMES}
    assert all(distances[name] <= GRADIENT_TOLERANCE[case.q_THD.dtype] for name in NAMES), distances


EDGES = [(17, 5), (1, 3), (0, 2), (33, 1), (16, 4), (15, 0), (1, 2)]
"""Own lengths, and slots of 65, 16, 15, 1, 17, 0 and 15 prefix tokens."""
EDGE_PREFIXES = [0, 1, 15, 16, 17, 65]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_every_gradient_equals_that_of_the_definition(dtype: torch.dtype, mode: Mode, window: int) -> None:
    edges = EDGES if dtype == torch.float32 else EDGES[:3]
    lengths, slots = [length for length, _ in edges], [slot for _, slot in edges]
    assert_exact(tiled(lengths, slots, EDGE_PREFIXES, tiling=Tiling(16), dtype=dtype, mode=mode, window=window))


@pytest.mark.parametrize(("block_m", "dtype"), [(32, torch.float32), (64, torch.float16), (128, torch.float16)])
@pytest.mark.parametrize(("mode", "window"), [(Mode.FULL, 0), (Mode.CAUSAL, 40), (Mode.PREFIX_LM, 0)])
def test_every_tile_gives_the_gradients_of_the_definition(
    block_m: int, dtype: torch.dtype, mode: Mode, window: int
) -> None:
    lengths, options = [block_m - 1, block_m + 1], {"dtype": dtype, "mode": mode, "window": window}
    assert_exact(tiled(lengths, [1, 2], [0, 17, 33], tiling=Tiling(block_m), **options))


@pytest.mark.parametrize("dim", [8, 24, 32, 48, 64, 80, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_head_dim_gives_the_gradients_of_the_definition(dim: int, dtype: torch.dtype) -> None:
    assert_exact(few_heads([17, 3], [2, 4], dim=dim, dtype=dtype))


def test_a_forward_whose_keys_were_shared_gives_the_gradients_of_the_definition() -> None:
    assert_exact(tiled([3, 17], [1, 2], [0, 100, 17], tiling=Tiling(16, 2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prefix_is_summed_over_rows_that_lie_apart(dtype: torch.dtype) -> None:
    lengths, slots = [17, 3, 5, 33, 9, 16], [1, 2, 1, 0, 2, 1]
    assert_exact(tiled(lengths, slots, [0, 20, 7], tiling=Tiling(16), dtype=dtype))


@pytest.mark.parametrize("splits", [2, 3, 8])
def test_however_many_programs_share_the_rows_of_a_prefix_the_sum_is_the_same(
    splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = tiled([17, 3, 16, 40], [1, 2, 1, 1], [0, 17, 5], tiling=Tiling(16))
    monkeypatch.setattr("prefixbank.kernels.gpu.prefix_gradient.prefix_splits", lambda *_: 1)
    whole = gradients(case, NAMES[3:])
    monkeypatch.setattr("prefixbank.kernels.gpu.prefix_gradient.prefix_splits", lambda *_: splits)
    shared = gradients(case, NAMES[3:])
    assert all(distance(shared[name], whole[name]) <= GRADIENT_TOLERANCE[torch.float32] for name in NAMES[3:])


def test_one_prompt_alone_is_shared_among_programs_enough_to_fill_a_gpu() -> None:
    from prefixbank.kernels.gpu.gradient_tiling import PROGRAMS_TO_FILL, prefix_splits

    assert 16 * prefix_splits(heads=16, key_blocks=1, groups=1, parts=512) >= PROGRAMS_TO_FILL
    assert prefix_splits(heads=16, key_blocks=64, groups=32, parts=512) == 1
    assert prefix_splits(heads=1, key_blocks=1, groups=1, parts=1) == 1


def test_more_slots_than_are_looked_up_at_once_find_their_prefixes() -> None:
    """The job of a block of keys is found in steps of 64 groups."""
    prefix_lengths = [17 if slot in (1, 63, 64, 66) else 0 for slot in range(67)]
    case = few_heads([1] * 66, list(range(1, 67)), prefix_lengths)
    found, exact = gradients(case, NAMES[3:]), exact_gradients(case)
    assert all(distance(found[name], exact[name]) <= GRADIENT_TOLERANCE[torch.float32] for name in NAMES[3:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_batch_gives_the_same_bits_again(dtype: torch.dtype) -> None:
    case = tiled([17, 3, 16], [1, 2, 1], [0, 16, 7], tiling=Tiling(16), dtype=dtype)
    first, again = gradients(case), gradients(case)
    assert all(torch.equal(first[name], again[name]) for name in NAMES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_own_gradients_of_a_row_have_the_same_bits_alone_and_in_company(dtype: torch.dtype) -> None:
    lengths, slots = [17, 3, 33, 1], [4, 2, 4, 0]
    case = replanned(few_heads(lengths, slots, dtype=dtype), lengths, slots)
    together, projection = gradients(case, NAMES[:3]), projection_of(case)
    bounds = case.plan.row_start_R1.tolist()
    for row in (0, 3):
        own = slice(bounds[row], bounds[row + 1])
        alone = case.with_tensors([*(x[own] for x in case.packed), *case.prefix[:2]])
        found = gradients(replanned(alone, [lengths[row]], [slots[row]]), NAMES[:3], projection[own])
        assert all(torch.equal(found[name], together[name][own]) for name in NAMES[:3])


@pytest.mark.parametrize("wanted", [*[(name,) for name in NAMES], ("pool_k", "pool_v"), ("q", "k", "v")])
def test_a_gradient_asked_for_alone_has_the_bits_that_it_has_among_all(wanted: tuple[str, ...]) -> None:
    case = tiled([17, 3, 5], [1, 2, 1], [0, 20, 7], tiling=Tiling(16))
    alone, all_of_them = gradients(case, wanted), gradients(case)
    assert all(torch.equal(alone[name], all_of_them[name]) for name in wanted)


@pytest.mark.parametrize(
    ("wanted", "kernels"),
    [
        (("pool_k", "pool_v"), {"prepare", "prefix_gradient"}),
        (("q",), {"prepare", "query_gradient"}),
        (("v",), {"prepare", "key_gradient"}),
        (("pool_v", "q"), {"prepare", "query_gradient", "prefix_gradient"}),
    ],
)
def test_a_gradient_that_is_not_needed_costs_no_launch(
    wanted: tuple[str, ...], kernels: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefixbank.kernels.gpu import key_gradient, prefix_gradient, query_gradient, softmax_gradient

    modules = {
        "prepare": softmax_gradient,
        "query_gradient": query_gradient,
        "key_gradient": key_gradient,
        "prefix_gradient": prefix_gradient,
    }
    launched: set[str] = set()
    for name, module in modules.items():
        monkeypatch.setattr(module, name, _Noted(name, getattr(module, name), launched))
    gradients(few_heads([3], [1]), [name for name in NAMES if name in wanted])
    assert launched == kernels


class _Noted:
    """A kernel whose launches are noted by name."""

    def __init__(self, name: str, kernel: object, launched: set[str]) -> None:
        self._name, self._kernel, self._launched = name, kernel, launched

    def __getitem__(self, grid: object) -> object:
        self._launched.add(self._name)
        return self._kernel[grid]  # type: ignore[index]


def test_pool_tokens_of_no_row_get_no_gradient() -> None:
    case = few_heads([5, 9], [2, 2])
    start, length = int(case.prefix.slot_start_S[2]), int(case.prefix.slot_length_S[2])
    for grad in gradients(case, NAMES[3:]).values():
        assert grad[:, start : start + length].all()
        assert not grad[:, :start].any()
        assert not grad[:, start + length :].any()


@pytest.mark.parametrize("wanted", [NAMES, NAMES[1:2]])
def test_tokens_of_no_row_get_no_gradient_and_give_none(wanted: Sequence[str]) -> None:
    case = few_heads([3, 5, 40], [1, 2, 3])
    shorter = replanned(case, [3, 5], [1, 2])
    nothing = [torch.cat([x[:8], torch.full_like(x[8:], torch.nan)]) for x in (*case.packed, projection_of(case))]
    found = gradients(shorter.with_tensors([*nothing[:3], *case.prefix[:2]]), wanted, nothing[3])
    exact = exact_gradients(shorter)
    assert all(distance(found[name], exact[name]) <= GRADIENT_TOLERANCE[torch.float32] for name in wanted)
    assert not any(found[name][8:].any() for name in wanted if name in NAMES[:3])


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_a_batch_without_tokens_has_zero_gradients(lengths: list[int]) -> None:
    assert not any(grad.any() for grad in gradients(make_case(lengths, [1] * len(lengths))).values())


def test_a_layer_that_no_row_has_a_prompt_in_needs_no_pool() -> None:
    empty = LayerPrefix(torch.zeros(1, 0, 16), torch.zeros(1, 0, 16), int32([0, 0]), int32([0, 0]))
    case = replace(few_heads([3, 5], [0, 1], [0, 0]), prefix=empty)
    assert_exact(case)
    assert gradients(case)["pool_k"].shape == (1, 0, 16)


def test_layers_of_one_plan_may_differ_in_prefix_length() -> None:
    case = few_heads([4, 9, 4], [1, 2, 1], [0, 5, 16])
    for lengths in ([0, 0, 0], [0, 33, 1]):
        assert_exact(replace(case, prefix=make_prefix(lengths, 1, 16)))


def test_what_lies_beyond_the_capacity_in_use_is_never_read() -> None:
    rows = [17, 3, 0, 20], [4, 2, 1, 4]
    case = few_heads(*rows)
    roomy = replanned(case, *rows, capacity=Capacity.of(96, 6, 16))
    roomy.plan.tile_Y2[int(roomy.plan.num_tiles_1) :] = GARBAGE
    found, exact = gradients(roomy), exact_gradients(case)
    assert all(distance(found[name], exact[name]) <= GRADIENT_TOLERANCE[torch.float32] for name in NAMES)


@pytest.mark.parametrize("stored", QUANTISED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "window"), [(Mode.FULL, 0), (Mode.CAUSAL, 3)])
def test_own_gradients_beside_a_quantised_prefix_are_those_of_the_definition(
    stored: torch.dtype, dtype: torch.dtype, mode: Mode, window: int
) -> None:
    case = make_case([17, 3, 5], [5, 1, 0], heads=2, dtype=dtype, mode=mode, window=window)
    pools = [torch.nan_to_num(pool).float().mul(20).to(stored) for pool in case.prefix[:2]]
    scale_S2H = torch.rand(len(PREFIX_LENGTHS), 2, 2) / 20
    case = replace(case, prefix=LayerPrefix(*pools, *case.prefix[2:4], scale_S2H))
    found, exact = gradients(case, NAMES[:3]), exact_gradients(case)
    assert all(distance(found[name], exact[name]) <= GRADIENT_TOLERANCE[dtype] for name in NAMES[:3])


@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_the_gradient_of_the_log_sum_exp_is_that_of_the_definition(mode: Mode, window: int) -> None:
    rows = [3, 17, 1], [1, 5, 0]
    case = replanned(few_heads(*rows, mode=mode, window=window), *rows)
    found, exact = (
        _of_both_outputs(case.with_tensors([x.detach().to(dtype).requires_grad_() for x in case.differentiated]), route)
        for dtype, route in ((torch.float32, Route.TRITON), (torch.float64, Route.REFERENCE))
    )
    distances = [distance(mine, theirs) for mine, theirs in zip(found, exact, strict=True)]
    assert all(far <= GRADIENT_TOLERANCE[torch.float32] for far in distances), distances


def _of_both_outputs(case: Case, route: Route) -> tuple[Tensor, ...]:
    if route is Route.TRITON:
        out, lse = torch.ops.prefixbank.prefix_attention(*case.arguments(with_lse=True, route=route))
    else:
        options = {"scale": case.scale, "window": case.window}
        out, lse = reference_attention(*case.packed, case.prefix, case.plan, **options)  # type: ignore[arg-type]
    loss = (out * projection_of(case).to(out.dtype)).sum() + lse.sin().sum()
    return torch.autograd.grad(loss, case.differentiated)


@pytest.mark.parametrize("needed", ["q k v pool_k pool_v", "pool_k pool_v"])
def test_the_operator_keeps_the_promises_of_a_torch_operator(needed: str) -> None:
    case = few_heads([3, 0, 5], [1, 2, 0], [0, 2, 3], mode=Mode.CAUSAL)
    leaves = [
        x.detach().requires_grad_(name in needed.split()) for name, x in zip(NAMES, case.differentiated, strict=True)
    ]
    arguments = case.with_tensors(leaves).arguments(with_lse=True, route=Route.TRITON)
    torch.library.opcheck(torch.ops.prefixbank.prefix_attention.default, arguments)


def test_memory_layout_changes_no_bit() -> None:
    case = make_case([17, 3], [4, 2], heads=2)
    projection = projection_of(case)
    wanted = gradients(case)
    heads_first = case.with_tensors([x.transpose(0, 1).contiguous().transpose(0, 1) for x in case.differentiated])
    dim_first = case.with_tensors([x.mT.contiguous().mT for x in case.differentiated])
    for other, layout in (
        (heads_first, projection.transpose(0, 1).contiguous().transpose(0, 1)),
        (dim_first, projection),
    ):
        found = gradients(other, projection=layout)
        assert all(torch.equal(found[name], wanted[name]) for name in NAMES)


def test_the_gradient_of_the_output_may_be_one_number_in_many_places() -> None:
    case = few_heads([17, 3], [5, 2])
    one = torch.ones(()).expand(case.q_THD.shape)
    found, wanted = gradients(case, projection=one), gradients(case, projection=one.contiguous())
    assert all(torch.equal(found[name], wanted[name]) for name in NAMES)


def test_rows_may_lie_more_than_two_to_the_31_numbers_apart() -> None:
    spacing = 1 << 28
    case = few_heads([1] * 9, [1, 0, 2] * 3, dtype=torch.float16)
    untouched = torch.from_numpy(np.zeros(9 * spacing, np.float16))  # the system lends the pages that are written
    q = untouched.as_strided((9, 1, 16), (spacing, 16, 1))
    q.copy_(case.q_THD)
    found, wanted = gradients(case.with_tensors([q, *case.differentiated[1:]])), gradients(case)
    assert all(torch.equal(found[name], wanted[name]) for name in NAMES)


@settings(deadline=None, max_examples=5)
@given(
    rows=st.lists(st.tuples(st.integers(0, 18), st.integers(0, 3)), min_size=1, max_size=4),
    mode=st.sampled_from(Mode),
    window=st.integers(0, 4),
    block_m=st.sampled_from([16, 32]),
)
def test_any_batch_has_the_gradients_of_the_definition(
    rows: list[tuple[int, int]], mode: Mode, window: int, block_m: int
) -> None:
    lengths, slots = [length for length, _ in rows], [slot for _, slot in rows]
    case = tiled(lengths, slots, [0, 3, 16, 1], tiling=Tiling(block_m), mode=mode, window=window)
    found, exact = gradients(case), exact_gradients(case)
    for name in NAMES:
        assert torch.allclose(found[name].double(), exact[name], rtol=1e-4, atol=1e-5), name
