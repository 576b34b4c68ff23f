"""Prefixes in one byte per number: symmetric, with one float32 scale per head, apart for keys and values.

    amax   = max |x| over all tokens and channels of a head
    scale  = amax / top        top: 127 for int8; 448, the largest finite number, for float8_e4m3fn
    stored = round(x / scale)  to the nearest number of the stored dtype, ties to even
    value  = stored * scale

Symmetric int8 with the range cut to +-127: Wu et al., "Integer Quantization for Deep Learning Inference", 2020, 3.1.2.
E4M3 with a scale per tensor: Micikevicius et al., "FP8 Formats for Deep Learning", 2022. All arithmetic is fp32.
A value is off by at most scale / 2 in int8, and in e4m3 by 1/16 of itself or, near 0, by scale / 1024.
It refuses to know pools, layers and attention.

Shape letters: X any leading dims that end with the head, P prefix tokens, D head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

TOP = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The stored number that the largest of a head becomes."""
LEAST_SCALE = torch.finfo(torch.float32).tiny
"""No scale is subnormal: GPUs flush those to 0."""
LEAST_CAPABILITY = {torch.int8: (0, 0), torch.float8_e4m3fn: (8, 9)}
"""Compute capability of the first GPUs that convert from the dtype."""


def quantise(x_XPD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return finite `x` as stored numbers of `dtype` [*X, P, D] and their scales [*X], float32.

    Where a head is all zeros, or has no tokens, the scale is 1.

    Raises:
        ValueError: when `dtype` is none of `TOP`.
    """
    if dtype not in TOP:
        raise ValueError(f"cannot quantise to {dtype}, wanted one of {[*TOP]}")
    x_XPD = x_XPD.float()
    if not x_XPD.numel():
        return x_XPD.to(dtype), x_XPD.new_ones(x_XPD.shape[:-2])
    amax_X, top = x_XPD.abs().amax((-2, -1)), TOP[dtype]
    scale_X = torch.where(amax_X > 0, (amax_X / top).clamp_min(LEAST_SCALE), 1)
    scaled_XPD = (x_XPD / scale_X[..., None, None]).clamp(-top, top)
    return (scaled_XPD if dtype.is_floating_point else scaled_XPD.round()).to(dtype), scale_X


def dequantise(stored_XPD: Tensor, scale_X: Tensor) -> Tensor:
    """Return the values [*X, P, D] that stored numbers stand for, float32."""
    return stored_XPD.float() * scale_X[..., None, None]


def can_read(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether attention on `device` can read a pool that is quantised to `dtype`."""
    if device.type != "cuda":
        return dtype in TOP
    return dtype in TOP and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY[dtype]
