"""Disentangled attention on the device equals its definition in fp64, forward and backward, alone and in company."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank.kernels.attention import Route
from prefixbank.kernels.gpu.disentangled_tiling import LARGEST_FP32_HEAD_DIM
from prefixbank.kernels.plan import Tiling
from prefixbank.kernels.quantise import TOP, can_read
from tests.disentangled_cases import TERMS
from tests.gpu.device import (
    DEVICE,
    DTYPES,
    GRADIENT_LIMIT,
    LIMIT,
    Recorded,
    chosen,
    make_disentangled,
    on_gpu,
    poisoned,
    waiting_is_an_error,
)
from tests.gpu.test_attention import edges, quantised
from tests.kernel_cases import distance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tests.disentangled_cases import DisentangledCase

SOME_DTYPES = on_gpu(DTYPES, rehearsed=[torch.float32])
SOME_TERMS = on_gpu(TERMS, rehearsed=TERMS[:1])
BLOCKS = on_gpu([16, 32, 64, 128], rehearsed=[16])
WIDTHS = on_gpu(
    [
        (dim, dtype)
        for dim, dtype in product((32, 48, 64, 80, 96, 128), DTYPES)
        if dtype != torch.float32 or dim <= LARGEST_FP32_HEAD_DIM
    ],
    rehearsed=[(40, torch.float32)],
)


def run(case: DisentangledCase) -> Tensor:
    """Attend through the kernels under test, into memory that was NaN."""
    with poisoned():
        return case.run(Route.TRITON)


def exact(case: DisentangledCase) -> Tensor:
    return case.wide().run(Route.REFERENCE)


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("terms", SOME_TERMS, ids="+".join)
@pytest.mark.parametrize("buckets", [True, False])
@pytest.mark.parametrize("block_m", BLOCKS)
def test_every_pair_of_edge_lengths(dtype: torch.dtype, terms: Sequence[str], buckets: bool, block_m: int) -> None:
    case = make_disentangled(*edges(), dtype=dtype, terms=terms, buckets=buckets, tiling=Tiling(block_m))
    assert distance(run(case), exact(case)) <= LIMIT[dtype]


@pytest.mark.parametrize(("dim", "dtype"), WIDTHS)
def test_every_head_dim(dim: int, dtype: torch.dtype) -> None:
    case = make_disentangled([70, 1, 33], [5, 0, 4], dim=dim, dtype=dtype, tiling=Tiling(BLOCKS[-1]))
    assert distance(run(case), exact(case)) <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("terms", SOME_TERMS, ids="+".join)
@pytest.mark.parametrize("block_m", BLOCKS)
def test_every_gradient(dtype: torch.dtype, terms: Sequence[str], block_m: int) -> None:
    case = make_disentangled([40, 0, 17, 40], [5, 1, 5, 0], dtype=dtype, terms=terms, tiling=Tiling(block_m))
    with poisoned():
        found = case.gradients(Route.TRITON)
    wanted = case.wide().gradients(Route.REFERENCE)
    distances = {name: distance(found[name], wanted[name]) for name in found}
    assert all(each <= GRADIENT_LIMIT[dtype] for each in distances.values()), distances


@pytest.mark.parametrize("stored", list(TOP))
@pytest.mark.parametrize("block_m", BLOCKS)
def test_quantised_prefixes(stored: torch.dtype, block_m: int) -> None:
    if not can_read(stored, DEVICE):
        pytest.skip(f"this device cannot convert from {stored}")
    case = make_disentangled([70, 33, 5], [5, 4, 1], dtype=torch.bfloat16, tiling=Tiling(block_m))
    case = replace(case, case=quantised(case.case, stored))
    assert distance(run(case), exact(case)) <= LIMIT[torch.bfloat16]


def test_a_row_alone_gives_the_bits_it_gives_in_company() -> None:
    case = make_disentangled(*edges(), dtype=torch.bfloat16, tiling=Tiling(16))
    together = run(case)
    for row in range(0, case.plan.num_rows, 7):
        alone, tokens = chosen(case.case, [row])
        assert torch.equal(run(replace(case, case=alone)), together[tokens]), f"row {row}"


def test_a_replay_equals_the_eager_call_after_a_slot_was_loaded() -> None:
    case = make_disentangled([40, 3], [5, 1], dtype=torch.bfloat16, tiling=Tiling(16))
    recorded = Recorded(lambda: case.run(Route.TRITON))
    pool_v = case.case.prefix.pool_v_HND
    pool_v.copy_(torch.randn_like(pool_v))
    assert torch.equal(recorded.replay(), run(case))


def test_nothing_waits_for_the_device() -> None:
    case = make_disentangled([40, 3], [5, 1], dtype=torch.bfloat16, tiling=Tiling(16))
    run(case)
    with waiting_is_an_error():
        case.run(Route.TRITON)
