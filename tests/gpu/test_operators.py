"""torch accepts the operators on the device: their schemas, shapes, and gradients."""

from __future__ import annotations

import pytest
import torch

from prefixbank.kernels.attention import Route
from prefixbank.kernels.plan import Mode
from tests.gpu.device import DEVICE, make_case, on_gpu
from tests.head_cases import make_heads

MODES = on_gpu([(Mode.FULL, 0), (Mode.CAUSAL, 0), (Mode.PREFIX_LM, 2)], rehearsed=[(Mode.FULL, 0)])


@pytest.mark.parametrize(("mode", "window"), MODES)
@pytest.mark.parametrize("differentiable", [False, True])
def test_torch_accepts_prefix_attention(mode: Mode, window: int, differentiable: bool) -> None:
    case = make_case([3, 0, 5], [1, 2, 1], [0, 3, 2], dim=16, mode=mode, window=window)
    tensors = [torch.nan_to_num(x).requires_grad_(differentiable) for x in case.differentiated]
    arguments = case.with_tensors(tensors).arguments(with_lse=differentiable, route=Route.TRITON)
    torch.library.opcheck(torch.ops.prefixbank.prefix_attention.default, arguments)


def test_torch_accepts_the_heads() -> None:
    case = make_heads(device=DEVICE.type)
    tensors = [torch.nan_to_num(x).requires_grad_() for x in case.differentiated]
    plan = case.plan
    arguments = (*tensors, *plan.indices, plan.num_classes, Route.TRITON.value)
    torch.library.opcheck(torch.ops.prefixbank.apply_heads.default, arguments)
