"""Heads on the device: real widths, many tasks, graphs. Their corner cases are in `test_kernels_heads_triton.py`."""

from __future__ import annotations

import pytest
import torch

from prefixbank.kernels.attention import Route
from prefixbank.kernels.head_plan import TILE_VECTORS, HeadRow
from prefixbank.kernels.heads import apply_heads
from prefixbank.kernels.plan import Capacity
from tests.gpu.device import DEVICE, DTYPES, ON_GPU, Recorded, on_gpu, waiting_is_an_error
from tests.head_cases import assert_gradients, assert_logits, make_heads, plan_of

WIDTHS = on_gpu([384, 768, 1024], rehearsed=[48])
ROWS = 128 if ON_GPU else 6
POOLED = [HeadRow(0, 1, 3 * row, 3) for row in range(ROWS)]
"""One vector and one head of three classes per row."""
TOKENS = [HeadRow(0, 17 + row % 40, 9 * (row % 7), 9) for row in range(ROWS // 2)]
"""Every token of a row meets its head of nine classes."""
ROOM = Capacity.of(sum(row.num_vectors for row in TOKENS), ROWS, TILE_VECTORS)


@pytest.mark.parametrize("dtype", on_gpu(DTYPES, rehearsed=[torch.float32]))
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [POOLED, TOKENS])
def test_logits_at_real_widths(dtype: torch.dtype, width: int, rows: list[HeadRow]) -> None:
    case = make_heads(rows, width, dtype=dtype, device=DEVICE.type)
    assert_logits(case.run(Route.TRITON), case)


@pytest.mark.parametrize("rows", [POOLED, TOKENS])
def test_gradients_at_real_widths(rows: list[HeadRow]) -> None:
    assert_gradients(make_heads(rows, WIDTHS[-1], device=DEVICE.type), Route.TRITON)


def test_a_replay_equals_the_eager_call_for_any_heads() -> None:
    case = make_heads(TOKENS, WIDTHS[-1], dtype=torch.bfloat16, device=DEVICE.type)
    plan = plan_of(TOKENS, DEVICE, num_classes=9, capacity=ROOM)
    recorded = Recorded(lambda: apply_heads(*case.differentiated, plan, route=Route.TRITON))
    for rows in (TOKENS[::-1], TOKENS[: len(TOKENS) // 2]):
        other = plan_of(rows, DEVICE, num_classes=9, capacity=ROOM)
        plan.overwrite(other)
        assert torch.equal(recorded.replay(), apply_heads(*case.differentiated, other, route=Route.TRITON))


def test_nothing_waits_for_the_device() -> None:
    case = make_heads(POOLED, WIDTHS[-1], dtype=torch.bfloat16, device=DEVICE.type)
    for _ in range(2):
        with waiting_is_an_error():
            apply_heads(*case.differentiated, plan_of(POOLED, DEVICE), route=Route.TRITON)
