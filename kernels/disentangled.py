"""The one public disentangled attention (DeBERTa): prefix keys by content alone, own keys by content and distance.

    score(i, own j)    = scale * (q_i . k_j + q_i . pos_key[e] + k_j . pos_query[e])    e = entry of the distance i - j
    score(i, prefix p) = scale * q_i . k_p

One softmax over both. It takes routes, plan and prefix as `attention` does, in mode FULL. It refuses to know models:
what position embeddings are projected with, and how `scale` comes about, is theirs.

Shape letters: T packed tokens, H heads, D head dim, Q entries of the position table, W distances, N pool tokens,
S slots, R rows, Y tiles, G groups, B buckets.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefixbank.kernels import disentangled_cpu, disentangled_cpu_backward
from prefixbank.kernels.attention import Route, route_of
from prefixbank.kernels.disentangled_positions import DisentangledNeeds, Positions, check_positions
from prefixbank.kernels.disentangled_reference import reference_disentangled
from prefixbank.kernels.operands import Operands, check_operands, softmax_dtype
from prefixbank.kernels.plan import Mode, Tiling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prefixbank.kernels.plan import BatchPlan, LayerPrefix


def disentangled_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    pos_key_QHD: Tensor | None,
    pos_query_QHD: Tensor | None,
    distance_W: Tensor,
    prefix: LayerPrefix,
    plan: BatchPlan,
    *,
    scale: float,
    route: Route | None = None,
) -> Tensor:
    """Return the attention output of every row, [T, H, D]. Tokens that belong to no row give 0.

    Differentiable in q, k, v, the position tables and the two pools, unless those are quantised.

    Args:
        pos_key_QHD: projected position embeddings that queries meet (content to position), or None.
        pos_query_QHD: those that keys meet (position to content), or None. One of the two must be there.
        distance_W: which entry a distance takes, from `disentangled_positions`.
        route: ask for an implementation by name; by default `route_of` the device.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit each other, or the plan's mode is not FULL.
    """
    positions = Positions(pos_key_QHD, pos_query_QHD, distance_W)
    check_operands(q_THD, k_THD, v_THD, prefix, plan, scale=scale, window=0)
    check_positions(q_THD, positions)
    if plan.mode != Mode.FULL:
        raise ValueError(f"the plan's mode is {plan.mode.name}, wanted FULL")
    route = route or route_of(q_THD.device)
    if route is Route.REFERENCE:
        return reference_disentangled(q_THD, k_THD, v_THD, positions, prefix, plan, scale=scale)[0]
    tensors = (q_THD, k_THD, v_THD, *positions, *prefix)
    # Only Triton's backward reads the log-sum-exp: the CPU's takes its softmax anew.
    asked = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    scalars = (scale, *plan.tiling, asked and route is Route.TRITON, route.value)
    out, _ = torch.ops.prefixbank.disentangled_attention(*tensors, *plan.indices, *scalars)
    return out  # type: ignore[no-any-return]


@functools.cache
def _triton_forward() -> Callable[..., tuple[Tensor, Tensor]]:
    """Triton is an optional dependency, and slow to import: only its route does."""
    from prefixbank.kernels.gpu.disentangled import forward

    return forward


@functools.cache
def _triton_backward() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]]:
    from prefixbank.kernels.gpu.disentangled_backward import backward

    return backward


@torch.library.custom_op("prefixbank::disentangled_attention", mutates_args=())
def _forward(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    pos_key_QHD: Tensor | None,
    pos_query_QHD: Tensor | None,
    distance_W: Tensor,
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
    block_m: int,
    num_splits: int,
    with_lse: bool,
    route: str,
) -> tuple[Tensor, Tensor]:
    lent = (pool_k_HND, pool_v_HND, slot_start_S, slot_length_S, slot_scale_S2H)
    indices = (row_start_R1, slot_R, context_R, tile_Y2, num_tiles_1, group_G3, bucket_B5)
    operands = Operands(q_THD, k_THD, v_THD, *lent, *indices)
    positions = Positions(pos_key_QHD, pos_query_QHD, distance_W)
    if Route(route) is Route.TRITON:
        return _triton_forward()(operands, positions, scale, Tiling(block_m, num_splits), with_lse=with_lse)
    return disentangled_cpu.forward(operands, positions, scale, with_lse=with_lse)


@_forward.register_fake
def _forward_shapes(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = q_THD.shape
    *_, with_lse, _ = rest
    out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    return out, q_THD.new_empty((tokens if with_lse else 0, heads), dtype=softmax_dtype(q_THD))


@torch.library.custom_op("prefixbank::disentangled_attention_backward", mutates_args=())
def _backward(
    d_out_THD: Tensor,
    d_lse_TH: Tensor,
    out_THD: Tensor,
    lse_TH: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    pos_key_QHD: Tensor | None,
    pos_query_QHD: Tensor | None,
    distance_W: Tensor,
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
    block_m: int,
    num_splits: int,
    route: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    lent = (pool_k_HND, pool_v_HND, slot_start_S, slot_length_S, slot_scale_S2H)
    indices = (row_start_R1, slot_R, context_R, tile_Y2, num_tiles_1, group_G3, bucket_B5)
    operands = Operands(q_THD, k_THD, v_THD, *lent, *indices)
    positions, wanted = Positions(pos_key_QHD, pos_query_QHD, distance_W), DisentangledNeeds(*needs)
    if Route(route) is Route.TRITON:
        saved = (d_out_THD, d_lse_TH, out_THD, lse_TH)
        return _triton_backward()(*saved, operands, positions, scale, Tiling(block_m, num_splits), wanted)
    return disentangled_cpu_backward.backward(d_out_THD, d_lse_TH, out_THD, operands, positions, scale, wanted)


@_backward.register_fake
def _backward_shapes(
    d_out_THD: Tensor, d_lse_TH: Tensor, out_THD: Tensor, lse_TH: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *_, needs = rest
    return tuple(
        torch.empty(x.shape if need else [0], dtype=(rest[0] if x is None else x).dtype, device=rest[0].device)
        for x, need in zip(_differentiable(rest), needs, strict=True)
    )


def _differentiable(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Of the operator's inputs (or what belongs to them), q, k, v, position tables and pools."""
    return *inputs[:5], *inputs[6:8]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, block_m, num_splits, _, route = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.scalars = (scale, block_m, num_splits, route)


def _differentiate(ctx: Any, d_out_THD: Tensor, d_lse_TH: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(_differentiable(ctx.needs_input_grad))
    grads = torch.ops.prefixbank.disentangled_attention_backward(
        d_out_THD, d_lse_TH, *ctx.saved_tensors, *ctx.scalars, needs
    )
    *own, d_pool_k, d_pool_v = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return *own, None, d_pool_k, d_pool_v, *[None] * 15


_forward.register_autograd(_differentiate, setup_context=_save)
