"""On the device too, a row's bits do not depend on the rows it shares a batch with, nor on where it lies."""

from __future__ import annotations

import random

import pytest
import torch

from prefixbank.kernels.plan import Mode, Tiling
from prefixbank.model_store.backbones.filling import filled
from tests.gpu.device import DEVICE, DTYPES, ON_GPU, chosen, make_case, on_gpu, run
from tests.kernel_cases import VIEWS, every_edge

SOME_DTYPES = on_gpu(DTYPES, rehearsed=[torch.float32])
TILINGS = on_gpu(
    [Tiling(16), Tiling(32), Tiling(64), Tiling(128), Tiling(16, 4)], rehearsed=[Tiling(16), Tiling(32, 2)]
)
PRODUCTS = [(384, 384), (384, 1536), (1536, 384), (768, 3072), (3072, 768), (1024, 1024), (1024, 4096), (4096, 1024)]
"""Inputs and outputs of the weights of MiniLM, BERT-base and RoBERTa-large."""


def edges() -> tuple[list[int], list[int]]:
    lengths, slots = every_edge()
    return (lengths, slots) if ON_GPU else (lengths[::16], slots[::16])


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("tiling", TILINGS)
def test_a_row_alone_gives_the_bits_it_gives_in_company(dtype: torch.dtype, tiling: Tiling) -> None:
    case = make_case(*edges(), dtype=dtype, tiling=tiling)
    together = run(case)
    for row in range(case.plan.num_rows):
        alone, tokens = chosen(case, [row])
        assert torch.equal(run(alone), together[tokens]), f"row {row}"


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize(("mode", "window"), on_gpu(VIEWS, rehearsed=VIEWS[1:2]))
def test_permuting_the_rows_permutes_the_answers(dtype: torch.dtype, mode: Mode, window: int) -> None:
    case = make_case(*edges(), dtype=dtype, mode=mode, window=window, tiling=Tiling(64))
    order = random.Random(1).sample(range(case.plan.num_rows), case.plan.num_rows)
    permuted, tokens = chosen(case, order)
    assert torch.equal(run(permuted), run(case)[tokens])


@pytest.mark.parametrize("dtype", on_gpu(DTYPES, rehearsed=[]))
def test_long_rows_among_many(dtype: torch.dtype) -> None:
    case = make_case([300, 20, 512, 129, 300, *[64] * 100], [5, 5, 1, 0, 5, *[2] * 100], heads=16, dtype=dtype)
    together = run(case)
    for row in (0, 2, 3, 4, 50):
        alone, tokens = chosen(case, [row])
        assert torch.equal(run(alone), together[tokens]), f"row {row}"


def test_overwriting_a_slot_changes_the_answers_of_its_rows_alone() -> None:
    case = make_case([5, 5, 5], [1, 2, 1])
    before = run(case)
    start = int(case.prefix.slot_start_S[2])
    case.prefix.pool_v_HND[:, start : start + 15] += 1
    changed = (run(case) != before).flatten(1).any(1)
    assert changed.tolist() == [False] * 5 + [True] * 5 + [False] * 5


@pytest.mark.parametrize("dtype", on_gpu([torch.bfloat16, torch.float16], rehearsed=[torch.float32]))
@pytest.mark.parametrize(("inputs", "outputs"), on_gpu(PRODUCTS, rehearsed=PRODUCTS[:2]))
def test_a_row_of_a_product_with_weights_has_the_same_bits_among_any_others(
    dtype: torch.dtype, inputs: int, outputs: int
) -> None:
    """What libraries multiply: rows are filled up, see `docs/decisions/0017-rows-on-a-gpu.md`."""
    torch.manual_seed(0)
    x_TM = torch.randn(8192, inputs).to(DEVICE, dtype)
    linear = torch.nn.Linear(inputs, outputs).to(DEVICE, dtype)
    with torch.inference_mode():
        wanted = linear(filled(x_TM[:1]))[0]
        for rows in on_gpu([2, 31, 100, 255, 257, 300, 384, 500, 777, 1024, 2000, 4096, 8192], rehearsed=[2, 8192]):
            assert torch.equal(linear(filled(x_TM[:rows]))[0], wanted), f"{rows} rows"
