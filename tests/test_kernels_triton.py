"""The Triton forward equals the definition: on a GPU where there is one, else in Triton's interpreter.

One head, or two, and tiles as small as the launch table has: the interpreter takes 20 ms for a program.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixbank.kernels.attention import Route
from prefixbank.kernels.operands import QUANTISED
from prefixbank.kernels.plan import BatchPlan, Capacity, LayerPrefix, Mode, Tiling
from prefixbank.kernels.reference import reference_attention
from tests.kernel_cases import (
    OWN_LENGTHS,
    PREFIX_LENGTHS,
    TOLERANCE,
    VIEWS,
    Case,
    distance,
    int32,
    make_case,
    make_prefix,
)
from tests.kernel_cases import poisoned_memory as poisoned_memory

pytest.importorskip("triton", reason="the kernels are compiled by Triton, which is not installed")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GARBAGE = -1_000_000_007
few_heads = partial(make_case, heads=1)


def every_pair(seed: int = 0) -> tuple[list[int], list[int]]:
    """Every own length beside every prefix length once, in random order."""
    rows = [(length, slot) for length in OWN_LENGTHS for slot in range(len(PREFIX_LENGTHS))]
    random.Random(seed).shuffle(rows)
    return [length for length, _ in rows], [slot for _, slot in rows]


def replanned(case: Case, lengths: list[int], slots: list[int], **options: object) -> Case:
    """The case with another plan for the same rows."""
    context = [length // 2 for length in lengths]
    plan = BatchPlan.build(lengths, slots, mode=case.plan.mode, context=context, **options)  # type: ignore[arg-type]
    return replace(case, plan=plan)


def run(case: Case) -> torch.Tensor:
    return case.run(Route.TRITON)


EVERY_PAIR = [(torch.float32, *view) for view in VIEWS] + [(dtype, Mode.FULL, 0) for dtype in DTYPES[1:]]


@pytest.mark.parametrize(("dtype", "mode", "window"), EVERY_PAIR)
def test_every_pair_of_edge_lengths_equals_the_definition(dtype: torch.dtype, mode: Mode, window: int) -> None:
    case = few_heads(*every_pair(), dtype=dtype, mode=mode, window=window)
    assert distance(run(case), case.exact()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(("mode", "window"), VIEWS[1:])
def test_every_view_in_16_bits_equals_the_definition(dtype: torch.dtype, mode: Mode, window: int) -> None:
    case = few_heads([65, 0, 17, 1, 16], [5, 1, 4, 0, 3], dtype=dtype, mode=mode, window=window)
    assert distance(run(case), case.exact()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("block_m", [16, 32, 128])
@pytest.mark.parametrize(("mode", "window"), [(Mode.FULL, 0), (Mode.PREFIX_LM, 5)])
def test_every_tile_of_queries_equals_the_definition(block_m: int, mode: Mode, window: int) -> None:
    rows = [65, 0, 17, 1, 33, 129], [5, 1, 4, 0, 4, 5]
    case = few_heads(*rows, mode=mode, window=window)
    assert distance(run(replanned(case, *rows, tiling=Tiling(block_m))), case.exact()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dim", [8, 24, 32, 48, 64, 80, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_head_dim_equals_the_definition(dim: int, dtype: torch.dtype) -> None:
    case = make_case([17, 3], [2, 4], heads=2, dim=dim, dtype=dtype)
    assert distance(run(case), case.exact()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("heads", [1, 3, 16])
def test_any_number_of_heads_equals_the_definition(heads: int) -> None:
    case = make_case([5, 2], [2, 1], heads=heads)
    assert distance(run(case), case.exact()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("num_splits", [2, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", Mode)
def test_keys_shared_among_programs_equal_the_definition(num_splits: int, dtype: torch.dtype, mode: Mode) -> None:
    rows = [3, 0, 17, 1], [1, 1, 2, 0]
    case = few_heads(*rows, [0, 1024, 65], dtype=dtype, mode=mode)
    case = replanned(case, *rows, tiling=Tiling(16, num_splits))
    assert distance(run(case), case.exact()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_the_log_sum_exp_equals_the_definition(splits: int, mode: Mode, window: int) -> None:
    rows = [3, 17, 0, 1], [1, 5, 2, 0]
    case = replanned(few_heads(*rows, mode=mode, window=window), *rows, tiling=Tiling(16, splits))
    _, found = torch.ops.prefixbank.prefix_attention(*case.arguments(with_lse=True, route=Route.TRITON))
    _, wanted = reference_attention(*case.packed, case.prefix, case.plan, scale=case.scale, window=window)
    assert distance(found, wanted) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_a_batch_without_tokens_gives_an_empty_answer(lengths: list[int]) -> None:
    assert run(make_case(lengths, [1] * len(lengths))).shape == (0, 3, 16)


def test_a_layer_that_no_row_has_a_prompt_in_needs_no_pool() -> None:
    case = make_case([3, 5], [0, 1], [0, 0])
    empty = LayerPrefix(torch.zeros(3, 0, 16), torch.zeros(3, 0, 16), int32([0, 0]), int32([0, 0]))
    case = replace(case, prefix=empty)
    assert distance(run(case), case.exact()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("splits", [1, 2])
def test_tokens_of_no_row_give_zero_and_have_no_keys(splits: int) -> None:
    case = make_case([3, 5, 90], [1, 2, 3])
    shorter = replace(case, plan=BatchPlan.build([3, 5], [1, 2], tiling=Tiling(16, splits)))
    out, lse = torch.ops.prefixbank.prefix_attention(*shorter.arguments(with_lse=True, route=Route.TRITON))
    assert distance(out, shorter.exact()) <= TOLERANCE[torch.float32]
    assert not out[8:].any()
    assert (lse[8:] == -torch.inf).all()


def test_layers_of_one_plan_may_differ_in_prefix_length() -> None:
    case = make_case([4, 9, 4], [1, 2, 1], [0, 5, 16])
    for lengths in ([0, 0, 0], [0, 17, 1], [0, 64, 0]):
        layer = replace(case, prefix=make_prefix(lengths, 3, 16))
        assert distance(run(layer), layer.exact()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key", [0, 15, 16, 20])
def test_one_key_may_outweigh_all_others_by_far(dtype: torch.dtype, key: int) -> None:
    """Scores of +10,000 for one key, prefix or own, and -10,000 for the rest."""
    case = few_heads([8], [1], [0, 16], dtype=dtype)
    keys = torch.full((24, 1, 16), -200.0)
    keys[key] = 200.0
    case.prefix.pool_k_HND[:, 16:32] = keys[:16].transpose(0, 1).to(dtype)
    case = case.with_tensors([torch.full((8, 1, 16), 12.5).to(dtype), keys[16:].to(dtype), *case.differentiated[2:]])
    values = torch.cat([case.prefix.pool_v_HND[:, 16:32].transpose(0, 1), case.v_THD])
    assert torch.equal(run(case), values[key].expand(8, 1, 16))


def test_a_prefix_cut_in_two_neighbouring_slots_is_the_prefix() -> None:
    """What lies in one slot of 32 tokens lies in two of 16 beside each other, too."""
    case = few_heads([7], [1], [0, 32])
    halves = LayerPrefix(*case.prefix[:2], int32([0, 16, 32]), int32([0, 16, 16]))
    arguments = {"scale": case.scale}
    whole_out, whole_lse = reference_attention(*case.packed, case.prefix, case.plan, **arguments)
    assert distance(run(case), whole_out) <= TOLERANCE[torch.float32]
    assert whole_lse.isfinite().all()
    for slot in (1, 2):
        half = replace(case, prefix=halves, plan=BatchPlan.build([7], [slot]))
        assert distance(run(half), half.exact()) <= TOLERANCE[torch.float32]


def test_what_lies_beyond_the_capacity_in_use_is_never_read() -> None:
    """A captured graph launches for its whole capacity: the tails of the index tensors may hold anything."""
    rows = [17, 3, 0, 40], [5, 2, 1, 5]
    case = few_heads(*rows)
    roomy = replanned(case, *rows, tiling=Tiling(16), capacity=Capacity.of(256, 9, 16))
    roomy.plan.tile_Y2[int(roomy.plan.num_tiles_1) :] = GARBAGE
    exact = replanned(case, *rows, tiling=Tiling(16))
    assert torch.equal(run(roomy), run(exact))


def test_index_tensors_can_be_overwritten_for_the_next_batch() -> None:
    first, second = ([17, 3], [5, 2]), ([4, 9, 7], [1, 2, 3])
    capacity = Capacity.of(20, 4, 16)
    case = few_heads(*second)
    static = replanned(case, *first, tiling=Tiling(16), capacity=capacity)
    static.plan.overwrite(replanned(case, *second, tiling=Tiling(16), capacity=capacity).plan)
    assert torch.equal(run(static), run(replanned(case, *second, tiling=Tiling(16))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [1, 2])
def test_a_row_has_the_same_bits_alone_and_in_company_and_in_any_order(dtype: torch.dtype, splits: int) -> None:
    lengths, slots = [17, 3, 40, 1, 16, 33], [5, 2, 5, 0, 4, 1]
    tiling = Tiling(16, splits)
    case = make_case(lengths, slots, dtype=dtype, heads=2)
    together = run(replanned(case, lengths, slots, tiling=tiling))
    bounds = case.plan.row_start_R1.tolist()
    order = [3, 0, 5, 2, 4, 1]
    for rows in ([0], [2], [5], order):
        tokens = torch.cat([torch.arange(bounds[row], bounds[row + 1]) for row in rows])
        chosen = case.with_tensors([*(x[tokens] for x in case.packed), *case.prefix[:2]])
        chosen = replanned(chosen, [lengths[row] for row in rows], [slots[row] for row in rows], tiling=tiling)
        assert torch.equal(run(chosen), together[tokens]), rows


def test_memory_layout_of_the_inputs_changes_no_bit() -> None:
    case = make_case([17, 3], [5, 2], heads=2)
    assert not case.q_THD.is_contiguous()
    dense = case.with_tensors([x.contiguous() for x in case.differentiated])
    heads_first = case.with_tensors([x.transpose(0, 1).contiguous().transpose(0, 1) for x in case.differentiated])
    dim_first = case.with_tensors([x.mT.contiguous().mT for x in case.differentiated])
    assert all(torch.equal(run(case), run(other)) for other in (dense, heads_first, dim_first))


@pytest.mark.parametrize("stored", QUANTISED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "window"), [(Mode.FULL, 0), (Mode.CAUSAL, 3)])
def test_a_quantised_prefix_is_what_its_scale_makes_of_it(
    stored: torch.dtype, dtype: torch.dtype, mode: Mode, window: int
) -> None:
    case = make_case([17, 3, 5], [5, 1, 0], heads=2, dtype=dtype, mode=mode, window=window)
    pools = [torch.nan_to_num(pool).float().mul(20).to(stored) for pool in case.prefix[:2]]
    scale_S2H = torch.rand(len(PREFIX_LENGTHS), 2, 2) / 20
    case = replace(case, prefix=LayerPrefix(*pools, *case.prefix[2:4], scale_S2H))
    assert distance(run(case), case.exact()) <= TOLERANCE[dtype]


def test_rows_may_lie_more_than_two_to_the_31_numbers_apart() -> None:
    spacing = 1 << 28
    case = make_case([1] * 9, [1, 0, 2] * 3, heads=1, dtype=torch.float16)
    untouched = torch.from_numpy(np.zeros(9 * spacing, np.float16))  # the system lends the pages that are written
    q = untouched.as_strided((9, 1, 16), (spacing, 16, 1))
    q.copy_(case.q_THD)
    assert torch.equal(run(case.with_tensors([q, *case.differentiated[1:]])), run(case))


def test_dtypes_and_heads_that_the_kernels_do_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match=r"given torch\.float64, wanted one of"):
        run(make_case([3], [1], dtype=torch.float64))
    with pytest.raises(ValueError, match="given heads of 256, wanted at most 128"):
        run(make_case([3], [1], dim=256))


@settings(deadline=None, max_examples=10)
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), min_size=1, max_size=6),
    mode=st.sampled_from(Mode),
    window=st.integers(0, 4),
    tiling=st.sampled_from([Tiling(16), Tiling(32), Tiling(16, 2)]),
)
def test_any_batch_equals_the_definition(rows: list[tuple[int, int]], mode: Mode, window: int, tiling: Tiling) -> None:
    lengths, slots = [length for length, _ in rows], [slot for _, slot in rows]
    case = few_heads(lengths, slots, [0, 3, 16, 1], mode=mode, window=window)
    case = replanned(case, lengths, slots, tiling=tiling)
    assert torch.allclose(run(case).double(), case.exact(), rtol=1e-4, atol=1e-5)
