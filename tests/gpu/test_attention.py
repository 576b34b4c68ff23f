"""Prefix attention on the device equals its definition in fp64, whatever the batch looks like."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from prefixbank.kernels.attention import Route
from prefixbank.kernels.plan import BatchPlan, Capacity, LayerPrefix, Mode, Tiling
from prefixbank.kernels.quantise import TOP, can_read, quantise
from prefixbank.kernels.reference import reference_attention
from tests.gpu.device import DEVICE, DTYPES, HEADS, LIMIT, ON_GPU, make_case, on_gpu, poisoned, run
from tests.kernel_cases import PREFIX_LENGTHS, VIEWS, Case, distance, every_edge, int32

HEAD_DIMS = on_gpu([8, 16, 32, 40, 48, 64, 80, 96, 128], rehearsed=[40])
BLOCKS = on_gpu([16, 32, 64, 128], rehearsed=[16, 64])
SOME_DTYPES = on_gpu(DTYPES, rehearsed=[torch.float32, torch.bfloat16])
SOME_VIEWS = on_gpu(VIEWS, rehearsed=VIEWS[2:4])


def edges() -> tuple[list[int], list[int]]:
    """Every pair of edge lengths; a tenth of them in a rehearsal."""
    lengths, slots = every_edge()
    return (lengths, slots) if ON_GPU else (lengths[::10], slots[::10])


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize(("mode", "window"), SOME_VIEWS)
@pytest.mark.parametrize("block_m", on_gpu([16, 128], rehearsed=[16]))
def test_every_pair_of_edge_lengths(dtype: torch.dtype, mode: Mode, window: int, block_m: int) -> None:
    case = make_case(*edges(), dtype=dtype, mode=mode, window=window, tiling=Tiling(block_m))
    assert distance(run(case), case.exact()) <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("block_m", BLOCKS)
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_every_tile_and_odd_numbers_of_heads(dtype: torch.dtype, block_m: int, heads: int) -> None:
    case = make_case([70, 0, 129, 16], [5, 1, 4, 3], heads=heads, dtype=dtype, tiling=Tiling(block_m))
    assert distance(run(case), case.exact()) <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("block_m", on_gpu([16, 64, 128], rehearsed=[16]))
def test_every_head_dim(dtype: torch.dtype, dim: int, block_m: int) -> None:
    case = make_case([70, 1, 129, 16], [5, 0, 4, 3], dim=dim, dtype=dtype, tiling=Tiling(block_m))
    assert distance(run(case), case.exact()) <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize(("mode", "window"), SOME_VIEWS)
@pytest.mark.parametrize("num_splits", [2, 4])
def test_keys_shared_among_programs(dtype: torch.dtype, mode: Mode, window: int, num_splits: int) -> None:
    tiling = Tiling(16, num_splits)
    case = make_case([33, 1, 0, 16], [2, 1, 1, 0], [0, 16, 300], dtype=dtype, mode=mode, window=window, tiling=tiling)
    assert distance(run(case), case.exact()) <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", on_gpu(DTYPES, rehearsed=[]))
@pytest.mark.parametrize("mode", Mode)
def test_long_rows_and_long_prefixes(dtype: torch.dtype, mode: Mode) -> None:
    lengths, slots = [1000, 513, 512, 111, 7, 1], [1, 2, 3, 1, 0, 3]
    case = make_case(lengths, slots, [0, 512, 1024, 300], heads=16, dtype=dtype, mode=mode)
    assert distance(run(case), case.exact()) <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", SOME_DTYPES)
def test_the_log_sum_exp(dtype: torch.dtype) -> None:
    case = make_case([40, 0, 3], [5, 2, 1], dtype=dtype, tail=5)
    with poisoned():
        _, lse = torch.ops.prefixbank.prefix_attention(*case.arguments(with_lse=True, route=Route.TRITON))
    exact = case.with_tensors([x.double() for x in case.differentiated])
    _, wanted = reference_attention(*exact.packed, exact.prefix, exact.plan, scale=exact.scale)
    assert distance(lse[:43], wanted[:43]) <= LIMIT[dtype]
    assert (lse[43:] == -math.inf).all()


@pytest.mark.parametrize("num_splits", [1, 4])
def test_tokens_of_no_row_give_zero(num_splits: int) -> None:
    case = make_case([3, 17], [1, 5], tail=150, tiling=Tiling(16, num_splits))
    out = run(case)
    assert distance(out[:20], case.with_tensors(_cut(case, 20)).exact()) <= LIMIT[torch.float32]
    assert not out[20:].any()


def test_garbage_beyond_the_number_of_tiles_means_nothing() -> None:
    case = make_case([33, 2], [5, 1], tiling=Tiling(16), capacity=Capacity(9, 20))
    tiles = int(case.plan.num_tiles_1)
    case.plan.tile_Y2[tiles:] = 10**9
    assert distance(run(case), case.exact()) <= LIMIT[torch.float32]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
@pytest.mark.parametrize("tail", [0, 3])
def test_a_batch_without_tokens(lengths: list[int], tail: int) -> None:
    out = run(make_case(lengths, [1] * len(lengths), tail=tail))
    assert out.shape == (tail, HEADS, 64)
    assert not out.any()


def test_no_row_has_a_prompt_and_there_is_no_pool() -> None:
    case = make_case([3, 50], [0, 1], [0, 0])
    pool = case.prefix.pool_k_HND.new_zeros(HEADS, 0, 64)
    nothing = int32([0, 0]).to(DEVICE)
    case = replace(case, prefix=LayerPrefix(pool, pool, nothing, nothing))
    assert distance(run(case), case.exact()) <= LIMIT[torch.float32]


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("key", [0, 15, 16, 20])
def test_one_key_outweighs_all_others(dtype: torch.dtype, key: int) -> None:
    """Scores of +10,000 for one key, prefix or own, and -10,000 for the rest."""
    case = make_case([8], [1], [0, 16], dim=16, dtype=dtype)
    keys = torch.full((24, HEADS, 16), -200.0, device=DEVICE)
    keys[key] = 200.0
    case.prefix.pool_k_HND[:, 16:32] = keys[:16].transpose(0, 1).to(dtype)
    q = torch.full((8, HEADS, 16), 12.5, device=DEVICE, dtype=dtype)
    case = case.with_tensors([q, keys[16:].to(dtype), *case.differentiated[2:]])
    values = torch.cat([case.prefix.pool_v_HND[:, 16:32].transpose(0, 1), case.v_THD])
    assert torch.equal(run(case), values[key].expand(8, HEADS, 16))


@pytest.mark.parametrize("dtype", on_gpu([torch.float16, torch.bfloat16, torch.float32], rehearsed=[torch.bfloat16]))
@pytest.mark.parametrize("stored", list(TOP))
@pytest.mark.parametrize("block_m", BLOCKS)
def test_quantised_prefixes(dtype: torch.dtype, stored: torch.dtype, block_m: int) -> None:
    if not can_read(stored, DEVICE):
        pytest.skip(f"this device cannot convert from {stored}")
    case = quantised(make_case([70, 33, 5], [5, 4, 1], dtype=dtype, tiling=Tiling(block_m)), stored)
    assert distance(run(case), case.exact()) <= LIMIT[dtype]


def quantised(case: Case, stored: torch.dtype) -> Case:
    """The same batch, its prefixes in one byte per number; what no slot holds is as large as can be."""
    starts, lengths = case.prefix.slot_start_S.tolist(), case.prefix.slot_length_S.tolist()
    pools = [torch.full(pool.shape, TOP[stored], device=DEVICE).to(stored) for pool in case.prefix[:2]]
    heads = case.q_THD.shape[1]
    scale_S2H = torch.full((len(starts), 2, heads), torch.nan, device=DEVICE)
    for slot, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for which, pool in enumerate(case.prefix[:2]):
            numbers, scale_H = quantise(pool[:, start : start + length].float(), stored)
            pools[which][:, start : start + length], scale_S2H[slot, which] = numbers, scale_H
    return replace(case, prefix=LayerPrefix(*pools, *case.prefix[2:4], scale_S2H))


def test_layouts_change_no_bit() -> None:
    case = make_case(*edges())
    assert not case.q_THD.is_contiguous()
    dense = case.with_tensors([x.contiguous() for x in case.differentiated])
    assert torch.equal(run(case), run(dense))


@pytest.mark.parametrize("seed", range(20 if ON_GPU else 2))
def test_random_batches(seed: int) -> None:
    """Whatever tiling the batch itself chooses."""
    chance = random.Random(seed)
    longest = 400 if ON_GPU else 30
    lengths = [
        chance.choice([0, 1, chance.randrange(longest)]) for _ in range(chance.randrange(1, 40 if ON_GPU else 6))
    ]
    slots = [chance.randrange(len(PREFIX_LENGTHS)) for _ in lengths]
    mode, window = chance.choice(VIEWS)
    dtype = chance.choice(DTYPES)
    case = make_case(lengths, slots, dtype=dtype, mode=mode, window=window, dim=chance.choice([32, 64]), seed=seed)
    assert distance(run(case), case.exact()) <= LIMIT[dtype]


@pytest.mark.skipif(not ON_GPU, reason="takes gigabytes")
def test_rows_of_the_projection_lie_further_than_31_bits_reach() -> None:
    """Of all rows together; a row's own keys, counted after its prefix, are within reach of one another."""
    case = make_case([17, 40], [4, 2], dtype=torch.float16)
    stride = 2**31 // 56 + 8
    spread = [torch.empty_strided(x.shape, (stride, x.shape[2], 1), dtype=x.dtype, device=DEVICE) for x in case.packed]
    for far, near in zip(spread, case.packed, strict=True):
        far.copy_(near)
    assert stride * (40 + PREFIX_LENGTHS[2]) < 2**31 < stride * 56
    far_case = case.with_tensors([*spread, *case.prefix[:2]])
    assert distance(run(far_case), case.exact()) <= LIMIT[torch.float16]


@pytest.mark.skipif(not ON_GPU, reason="takes gigabytes")
def test_slots_of_the_pool_lie_further_than_31_bits_reach() -> None:
    case = make_case([17, 40], [5, 1], heads=2, dtype=torch.float16)
    tokens = 2**31 // 64
    pools = [torch.empty(2, tokens, 64, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    start, length = (table.clone() for table in case.prefix[2:4])
    begin, count, far = int(start[5]), int(length[5]), tokens - int(length[5])
    for pool, small in zip(pools, case.prefix[:2], strict=True):
        pool[:, : small.shape[1]] = small
        pool[:, far:] = small[:, begin : begin + count]
    start[5] = far
    assert pools[0].numel() > 2**31
    far_case = replace(case, prefix=LayerPrefix(*pools, start, length))
    assert distance(run(far_case), case.exact()) <= LIMIT[torch.float16]


def test_the_plan_of_a_batch_is_one_blob_on_the_device() -> None:
    plan = BatchPlan.build([3, 5], [1, 2], device=DEVICE)
    assert all(x.device.type == DEVICE.type for x in plan.indices[:-1])
    assert all(x.untyped_storage().data_ptr() == plan.blob_I.untyped_storage().data_ptr() for x in plan.indices[:-1])


def _cut(case: Case, tokens: int) -> list[torch.Tensor]:
    return [*(x[:tokens] for x in case.packed), *case.prefix[:2]]
