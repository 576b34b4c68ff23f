"""Prefixes in one byte per number: what is lost, and that every route reads what was stored."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefixbank.kernels.attention import Route
from prefixbank.kernels.operands import QUANTISED
from prefixbank.kernels.plan import Mode, Tiling
from prefixbank.kernels.quantise import LEAST_SCALE, TOP, can_read, dequantise, quantise
from tests.kernel_cases import TOLERANCE, Case, distance, every_edge, make_case

if TYPE_CHECKING:
    from collections.abc import Sequence

STORED = list(TOP)
stored_in = partial(pytest.mark.parametrize, "stored", STORED)


def test_what_can_be_quantised_to_is_what_attention_takes() -> None:
    assert set(TOP) == set(QUANTISED)


@given(
    stored=st.sampled_from(STORED),
    tokens=st.integers(1, 20),
    magnitude=st.floats(-30, 30),
    spread=st.floats(0, 4),
    seed=st.integers(0, 1000),
)
def test_a_value_is_off_by_no_more_than_is_documented(
    stored: torch.dtype, tokens: int, magnitude: float, spread: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    log_size = magnitude + spread * torch.randn(3, 2, tokens, 8, generator=random)
    x_32PD = torch.randn(3, 2, tokens, 8, generator=random) * 10 ** log_size.clamp(-37, 37)
    found, scale_32 = quantise(x_32PD, stored)
    off, scale = (dequantise(found, scale_32) - x_32PD).abs().double(), scale_32[..., None, None].double()
    limit = scale / 2 if stored == torch.int8 else torch.maximum(x_32PD.abs().double() / 16, scale / 1024)
    assert (off <= limit * (1 + 1e-5)).all()


@stored_in()
def test_the_scale_is_the_largest_value_of_the_head_over_the_largest_stored_one(stored: torch.dtype) -> None:
    x_223PD = torch.randn(2, 2, 3, 5, 8)
    found, scale_223 = quantise(x_223PD, stored)
    assert torch.equal(scale_223, x_223PD.abs().amax((-2, -1)) / TOP[stored])
    assert torch.equal(found.float().abs().amax((-2, -1)), torch.full((2, 2, 3), TOP[stored]))


@stored_in()
@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 3, 0, 8), (0, 3, 4, 8)])
def test_zeros_and_nothing_are_times_one(stored: torch.dtype, shape: tuple[int, ...]) -> None:
    found, scale = quantise(torch.zeros(shape), stored)
    assert found.shape == shape
    assert found.dtype == stored
    assert torch.equal(scale, torch.ones(shape[:-2]))
    assert torch.equal(dequantise(found, scale), torch.zeros(shape))


@stored_in()
@pytest.mark.parametrize("largest", [1e-45, 1e-40, torch.finfo(torch.float32).tiny, 65504.0, 3e38])
def test_the_smallest_and_the_largest_numbers_stay_finite(stored: torch.dtype, largest: float) -> None:
    found, scale = quantise(torch.tensor([[largest, -largest / 2]]), stored)
    values = dequantise(found, scale)
    assert scale >= LEAST_SCALE
    assert values.isfinite().all()
    assert (values - torch.tensor([largest, -largest / 2])).abs().max() <= max(largest / 16, LEAST_SCALE)


@stored_in()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_prefix_of_16_bits_is_quantised_in_fp32(stored: torch.dtype, dtype: torch.dtype) -> None:
    x_2PD = torch.randn(2, 40, 8).to(dtype)
    for found, wanted in zip(quantise(x_2PD, stored), quantise(x_2PD.float(), stored), strict=True):
        assert torch.equal(found.float(), wanted.float())


@stored_in()
def test_a_head_does_not_feel_its_neighbours(stored: torch.dtype) -> None:
    x_3PD = torch.randn(3, 5, 8)
    together, _ = quantise(torch.cat([x_3PD, 1000 * x_3PD]), stored)
    alone, _ = quantise(x_3PD, stored)
    assert torch.equal(together[:3].float(), alone.float())


@stored_in()
def test_what_was_quantised_once_is_not_changed_by_a_second_time(stored: torch.dtype) -> None:
    once = quantise(torch.randn(4, 30, 8), stored)
    again = quantise(dequantise(*once), stored)
    assert torch.equal(once[0].float(), again[0].float())
    torch.testing.assert_close(once[1], again[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float8_e5m2])
def test_another_dtype_is_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=str(dtype)):
        quantise(torch.zeros(1, 1), dtype)
    assert not can_read(dtype, torch.device("cpu"))


@pytest.mark.parametrize(
    ("capability", "reads_fp8"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)]
)
def test_fp8_needs_a_gpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reads_fp8: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert can_read(torch.float8_e4m3fn, gpu) == reads_fp8
    assert can_read(torch.int8, gpu)
    assert can_read(torch.float8_e4m3fn, cpu)


def quantised(case: Case, stored: torch.dtype) -> Case:
    """The case with its pool quantised, each slot quieter than the one before; what no row may read is NaN.

    In an int8 pool that is the largest number; the scale of a slot that no row reads is NaN.
    """
    prefix = case.prefix
    pools = [torch.full(pool.shape, 0x7F, dtype=torch.uint8).view(stored) for pool in prefix[:2]]
    heads, read = prefix.pool_k_HND.shape[0], set(case.plan.slot_R.tolist())
    scale_S2H = torch.full((len(prefix.slot_start_S), 2, heads), torch.nan)
    for slot, (start, length) in enumerate(zip(prefix.slot_start_S, prefix.slot_length_S, strict=True)):
        for part, (pool, plain) in enumerate(zip(pools, prefix[:2], strict=True)):
            lent = slice(int(start), int(start + length))
            found_HPD, scale_H = quantise(plain[:, lent] * 0.85**slot, stored)
            pool[:, lent] = found_HPD
            scale_S2H[slot, part] = scale_H if slot in read else torch.nan
    return replace(case, prefix=prefix._replace(pool_k_HND=pools[0], pool_v_HND=pools[1], slot_scale_S2H=scale_S2H))


def written_out(case: Case) -> Case:
    """The case with its quantised pool replaced by the fp64 values that it stands for."""
    assert case.prefix.slot_scale_S2H is not None
    pools = [torch.full(pool.shape, torch.nan, dtype=torch.float64) for pool in case.prefix[:2]]
    for slot, (start, length) in enumerate(zip(*case.prefix[2:4], strict=True)):
        lent = slice(int(start), int(start + length))
        for part, (pool, stored) in enumerate(zip(pools, case.prefix[:2], strict=True)):
            pool[:, lent] = stored[:, lent].double() * case.prefix.slot_scale_S2H[slot, part, :, None, None].double()
    plain = replace(case, prefix=case.prefix._replace(slot_scale_S2H=None))
    return plain.with_tensors([*(x.double() for x in case.packed), *pools])


def assert_reads_what_is_stored(case: Case, route: Route) -> None:
    wanted = written_out(case).exact()
    assert distance(case.exact(), wanted) <= 1e-14
    assert distance(case.run(route), wanted) <= TOLERANCE[case.q_THD.dtype]


FEW: dict[str, Sequence[int]] = {
    "lengths": (5, 17, 1, 0, 33, 16),
    "slots": (1, 2, 0, 1, 3, 2),
    "prefix_lengths": (0, 17, 5, 33),
}
"""Rows few enough for Triton's interpreter, which takes a hundredth of a second per tile and head."""
EVERY_EDGE: dict[str, Sequence[int]] = dict(zip(("lengths", "slots"), every_edge(), strict=True))
ROUTES = [(Route.REFERENCE, FEW), (Route.CPU, EVERY_EDGE), (Route.TRITON, FEW)]


@stored_in()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("route", "rows"), ROUTES, ids=[route.value for route, _ in ROUTES])
def test_attention_reads_the_values_that_are_stored(
    route: Route, rows: dict[str, Sequence[int]], dtype: torch.dtype, stored: torch.dtype
) -> None:
    assert_reads_what_is_stored(quantised(make_case(**rows, dtype=dtype), stored), route)


@stored_in()
@pytest.mark.parametrize(("mode", "window"), [(Mode.CAUSAL, 0), (Mode.PREFIX_LM, 0), (Mode.FULL, 5)])
@pytest.mark.parametrize(("route", "rows"), ROUTES, ids=[route.value for route, _ in ROUTES])
def test_every_view_reads_the_values_that_are_stored(
    route: Route, rows: dict[str, Sequence[int]], mode: Mode, window: int, stored: torch.dtype
) -> None:
    assert_reads_what_is_stored(quantised(make_case(**rows, mode=mode, window=window), stored), route)


@stored_in()
@pytest.mark.parametrize("route", [Route.CPU, Route.TRITON])
def test_rows_of_many_slots_each_take_their_own_scale(route: Route, stored: torch.dtype) -> None:
    """Equal rows with equally long prefixes are joined into one product on the CPU."""
    case = quantised(make_case([9] * 6, [3, 1, 2, 1, 3, 2], [0, 16, 16, 16], dtype=torch.float32), stored)
    assert_reads_what_is_stored(case, route)


@stored_in()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_gives_the_bits_it_gives_in_company(stored: torch.dtype, dtype: torch.dtype) -> None:
    lengths, slots = EVERY_EDGE["lengths"], EVERY_EDGE["slots"]
    case = quantised(make_case(lengths, slots, dtype=dtype), stored)
    together = case.run(Route.CPU)
    bounds = case.plan.row_start_R1.tolist()
    for row in range(0, len(lengths), 7):
        own = slice(bounds[row], bounds[row + 1])
        plan = case.plan.build([lengths[row]], [slots[row]])
        alone = replace(case, plan=plan).with_tensors([*(x[own] for x in case.packed), *case.prefix[:2]])
        assert torch.equal(alone.run(Route.CPU), together[own])


@stored_in()
@pytest.mark.parametrize(("block_m", "num_splits", "dim"), [(16, 4, 16), (64, 2, 40), (128, 1, 80)])
def test_every_tiling_reads_the_values_that_are_stored(
    block_m: int, num_splits: int, dim: int, stored: torch.dtype
) -> None:
    case = make_case([5, 33], [1, 2], [0, 33, 17], heads=2, dim=dim)
    plan = case.plan.build([5, 33], [1, 2], tiling=Tiling(block_m, num_splits))
    assert_reads_what_is_stored(quantised(replace(case, plan=plan), stored), Route.TRITON)


def test_int8_is_nearer_than_fp8_to_numbers_of_one_size() -> None:
    x_4PD = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))
    in_int8, in_fp8 = (distance(dequantise(*quantise(x_4PD, stored)), x_4PD) for stored in STORED)
    assert in_int8 < 0.01 < 0.02 < in_fp8 < 0.03
