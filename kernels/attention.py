"""The one public attention: own queries over [prefix keys read from a pool ; own keys], one softmax.

Picks the implementation for a device explicitly, once, and logs which. It refuses to know models, tasks and
how a batch was chosen; shapes are validated here and trusted below.

Shape letters: T packed tokens, R rows, S slots, H heads, N pool tokens, D head dim, Y tiles, G groups, B buckets.
"""

from __future__ import annotations

import enum
import functools
import importlib.util
import logging
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefixbank.kernels import cpu, cpu_backward
from prefixbank.kernels.operands import Needs, Operands, View, check_operands, softmax_dtype
from prefixbank.kernels.plan import Mode, Tiling
from prefixbank.kernels.reference import reference_attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefixbank.kernels.plan import BatchPlan, LayerPrefix

logger = logging.getLogger(__name__)

ROUTE_VARIABLE = "PREFIXBANK_ATTENTION"
"""Environment variable that asks for a route by name; read once per device."""


class Route(enum.Enum):
    """An implementation of prefix attention."""

    CPU = "grouped-bmm"
    TRITON = "triton"
    REFERENCE = "reference"


@functools.cache
def route_of(device: torch.device) -> Route:
    """Return the implementation that serves `device`: the one asked for by name, else the fastest there is.

    Raises:
        ValueError: when `PREFIXBANK_ATTENTION` names no route.
        RuntimeError: when the device is a GPU and Triton is not installed.
    """
    asked = os.environ.get(ROUTE_VARIABLE, (Route.TRITON if device.type == "cuda" else Route.CPU).value)
    names = [route.value for route in Route]
    if asked not in names:
        raise ValueError(f"{ROUTE_VARIABLE} is {asked!r}, wanted one of {names}")
    if asked == Route.TRITON.value and importlib.util.find_spec("triton") is None:
        raise RuntimeError(
            f"prefix attention on {device} needs Triton: install prefixbank[triton], "
            f"or ask for a slower route with {ROUTE_VARIABLE}={Route.CPU.value}"
        )
    logger.info("prefix attention on %s runs the %s route", device, asked)
    return Route(asked)


def prefix_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    prefix: LayerPrefix,
    plan: BatchPlan,
    *,
    scale: float,
    window: int = 0,
    route: Route | None = None,
) -> Tensor:
    """Return softmax(scale * q [prefix_k ; k]^T + mask) [prefix_v ; v] for every row: [T, H, D].

    Differentiable in q, k, v and the two pools, unless those are quantised. Tokens that belong to no row give 0.

    Args:
        window: when positive, a query sees own keys at most this far away; prefix keys are always seen.
        route: ask for an implementation by name; by default `route_of` the device.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit each other.
    """
    check_operands(q_THD, k_THD, v_THD, prefix, plan, scale=scale, window=window)
    route = route or route_of(q_THD.device)
    if route is Route.REFERENCE:
        return reference_attention(q_THD, k_THD, v_THD, prefix, plan, scale=scale, window=window)[0]
    tensors = (q_THD, k_THD, v_THD, *prefix)
    # Only Triton's backward reads the log-sum-exp: the CPU's takes its softmax anew.
    with_lse = route is Route.TRITON and torch.is_grad_enabled() and any(x.requires_grad for x in tensors[:5])
    scalars = (scale, int(plan.mode), window, *plan.tiling, with_lse, route.value)
    out, _ = torch.ops.prefixbank.prefix_attention(*tensors, *plan.indices, *scalars)
    return out  # type: ignore[no-any-return]


@functools.cache
def _triton_forward() -> Callable[..., tuple[Tensor, Tensor]]:
    """Triton is an optional dependency, and slow to import: only its route does."""
    from prefixbank.kernels.gpu.forward import forward

    return forward


@functools.cache
def _triton_backward() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    from prefixbank.kernels.gpu.backward import backward

    return backward


@torch.library.custom_op("prefixbank::prefix_attention", mutates_args=())
def _forward(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    pool_k_HND: Tensor,
    pool_v_HND: Tensor,
    slot_start_S: Tensor,
    slot_length_S: Tensor,
    slot_scale_S2H: Tensor | None,
    row_start_R1: Tensor,
    slot_R: Tensor,
    context_R: Tensor,
    tile_Y2: Tensor,
    num_tiles_1: Tensor,
    group_G3: Tensor,
    bucket_B5: Tensor,
    scale: float,
    mode: int,
    window: int,
    block_m: int,
    num_splits: int,
    with_lse: bool,
    route: str,
) -> tuple[Tensor, Tensor]:
    lent = (pool_k_HND, pool_v_HND, slot_start_S, slot_length_S)
    indices = (row_start_R1, slot_R, context_R, tile_Y2, num_tiles_1, group_G3, bucket_B5)
    operands = Operands(q_THD, k_THD, v_THD, *lent, slot_scale_S2H, *indices)
    view = View(scale, Mode(mode), window)
    if Route(route) is Route.TRITON:
        with torch.cuda.device_of(q_THD):  # type: ignore[no-untyped-call]  # Triton launches on the current device
            return _triton_forward()(operands, view, Tiling(block_m, num_splits), with_lse=with_lse)
    return cpu.forward(operands, view, with_lse=with_lse)


@_forward.register_fake
def _forward_shapes(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = q_THD.shape
    *_, with_lse, _ = rest
    out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    return out, q_THD.new_empty((tokens if with_lse else 0, heads), dtype=softmax_dtype(q_THD))


@torch.library.custom_op("prefixbank::prefix_attention_backward", mutates_args=())
def _backward(
    d_out_THD: Tensor,
    d_lse_TH: Tensor,
    out_THD: Tensor,
    lse_TH: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    pool_k_HND: Tensor,
    pool_v_HND: Tensor,
    slot_start_S: Tensor,
    slot_length_S: Tensor,
    slot_scale_S2H: Tensor | None,
    row_start_R1: Tensor,
    slot_R: Tensor,
    context_R: Tensor,
    tile_Y2: Tensor,
    num_tiles_1: Tensor,
    group_G3: Tensor,
    bucket_B5: Tensor,
    scale: float,
    mode: int,
    window: int,
    block_m: int,
    num_splits: int,
    route: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    lent = (pool_k_HND, pool_v_HND, slot_start_S, slot_length_S)
    indices = (row_start_R1, slot_R, context_R, tile_Y2, num_tiles_1, group_G3, bucket_B5)
    operands = Operands(q_THD, k_THD, v_THD, *lent, slot_scale_S2H, *indices)
    view = View(scale, Mode(mode), window)
    if Route(route) is Route.TRITON:
        saved = (d_out_THD, d_lse_TH, out_THD, lse_TH)
        with torch.cuda.device_of(q_THD):  # type: ignore[no-untyped-call]
            return _triton_backward()(*saved, operands, view, Tiling(block_m, num_splits), Needs(*needs))
    return cpu_backward.backward(d_out_THD, d_lse_TH, out_THD, operands, view, Needs(*needs))


@_backward.register_fake
def _backward_shapes(
    d_out_THD: Tensor, d_lse_TH: Tensor, out_THD: Tensor, lse_TH: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *_, needs = rest
    return tuple(
        torch.empty(x.shape if need else [0], dtype=x.dtype, device=x.device)
        for x, need in zip(rest[:5], needs, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, mode, window, block_m, num_splits, _, route = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.scalars = (scale, mode, window, block_m, num_splits, route)


def _differentiate(ctx: Any, d_out_THD: Tensor, d_lse_TH: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:5])
    grads = torch.ops.prefixbank.prefix_attention_backward(d_out_THD, d_lse_TH, *ctx.saved_tensors, *ctx.scalars, needs)
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), *[None] * 17


_forward.register_autograd(_differentiate, setup_context=_save)
