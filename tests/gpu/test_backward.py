"""The gradients of prefix attention on the device are those of its definition in fp64, the same bits each time."""

from __future__ import annotations

import random

import pytest
import torch

from prefixbank.kernels.plan import Mode, Tiling
from tests.gpu.device import DTYPES, GRADIENT_LIMIT, ON_GPU, exact_gradients, gradients, make_case, on_gpu
from tests.kernel_cases import PREFIX_LENGTHS, VIEWS, Case, distance, every_edge

NAMES = ("q", "k", "v", "pool_k", "pool_v")
SOME_DTYPES = on_gpu(DTYPES, rehearsed=[torch.float32])
SOME_VIEWS = on_gpu(VIEWS, rehearsed=VIEWS[4:5])


def projection_of(case: Case) -> torch.Tensor:
    chance = torch.Generator().manual_seed(1)
    return torch.randn(case.q_THD.shape, generator=chance).to(case.q_THD)


def assert_near(case: Case) -> None:
    projection, limit = projection_of(case), GRADIENT_LIMIT[case.q_THD.dtype]
    found, exact = gradients(case, projection), exact_gradients(case, projection)
    distances = {name: distance(mine, theirs) for name, mine, theirs in zip(NAMES, found, exact, strict=True)}
    assert all(far <= limit for far in distances.values()), distances


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize(("mode", "window"), SOME_VIEWS)
def test_every_pair_of_edge_lengths(dtype: torch.dtype, mode: Mode, window: int) -> None:
    lengths, slots = every_edge()
    if not ON_GPU:
        lengths, slots = lengths[::20], slots[::20]
    tiling = Tiling(128 if ON_GPU else 16)
    assert_near(make_case(lengths, slots, dtype=dtype, mode=mode, window=window, tiling=tiling))


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("block_m", on_gpu([16, 32, 64], rehearsed=[32]))
def test_every_tile_and_an_odd_number_of_heads(dtype: torch.dtype, block_m: int) -> None:
    assert_near(make_case([33, 0, 70], [5, 1, 5], heads=3, dtype=dtype, tiling=Tiling(block_m)))


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("dim", on_gpu([8, 16, 32, 40, 48, 64, 80, 96, 128], rehearsed=[24]))
def test_every_head_dim(dtype: torch.dtype, dim: int) -> None:
    assert_near(make_case([33, 1, 17], [5, 0, 5], dim=dim, dtype=dtype))


@pytest.mark.parametrize("dtype", on_gpu(DTYPES, rehearsed=[]))
@pytest.mark.parametrize("mode", Mode)
def test_many_long_rows_of_one_slot(dtype: torch.dtype, mode: Mode) -> None:
    lengths = [512, 300, 129, 111, 1, *[128] * 20]
    slots = [1, 1, 2, 1, 1, *[1] * 20]
    assert_near(make_case(lengths, slots, [0, 512, 20], heads=4, dtype=dtype, mode=mode))


@pytest.mark.parametrize("num_splits", [2, 4])
def test_a_forward_whose_keys_were_shared_among_programs(num_splits: int) -> None:
    assert_near(make_case([18, 3], [2, 1], [0, 16, 90], tiling=Tiling(16, num_splits)))


@pytest.mark.parametrize("dtype", SOME_DTYPES)
def test_the_same_batch_gives_the_same_bits_again(dtype: torch.dtype) -> None:
    size = 20 if ON_GPU else 4
    case = make_case([40] * size, [row % 3 for row in range(size)], [0, 20, 128], dtype=dtype)
    first, *others = (gradients(case, projection_of(case)) for _ in range(3 if ON_GPU else 2))
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_tokens_of_no_row_get_no_gradient() -> None:
    case = make_case([3, 17], [1, 5], tail=40)
    projection = projection_of(case)
    for grad in gradients(case, projection)[:3]:
        assert not grad[20:].any()


@pytest.mark.parametrize("seed", range(12 if ON_GPU else 1))
def test_random_batches(seed: int) -> None:
    chance = random.Random(seed)
    longest, most_rows = (300, 30) if ON_GPU else (20, 5)
    lengths = [chance.choice([0, 1, chance.randrange(longest)]) for _ in range(chance.randrange(1, most_rows))]
    slots = [chance.randrange(len(PREFIX_LENGTHS)) for _ in [*lengths, 0]]
    mode, window = chance.choice(VIEWS)
    dtype = chance.choice(DTYPES)
    assert_near(make_case([*lengths, 9], slots, dtype=dtype, mode=mode, window=window, seed=seed))
