"""Linear heads of many tasks applied to one batch, each read by index where it lies in an arena of class rows.

Whether all rows share a head or none do, the work is the same, and a row's logits do not depend on the other rows,
to the bit. It refuses to know what a class means, and which task owns which arena rows.

Shape letters: N rows of x (packed tokens, or one pooled vector per batch row), R batch rows, Q arena rows,
M model width, C classes of the widest head of the batch, K B Y G as in `head_plan`.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from prefixbank.kernels.attention import Route, route_of
from prefixbank.kernels.head_plan import HeadIndices

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from prefixbank.kernels.head_plan import HeadPlan


class Job(NamedTuple):
    """One batch row: which vectors meet which arena rows."""

    own: slice
    head: slice
    classes: slice


def apply_heads(
    x_NM: Tensor, weight_QM: Tensor, bias_Q: Tensor, plan: HeadPlan, *, route: Route | None = None
) -> Tensor:
    """Return logits [N, C] in the arena's dtype; columns beyond a row's own classes are -inf.

    Differentiable in x, weight and bias. Vectors that belong to no row give -inf.

    Args:
        route: ask for an implementation by name; by default the attention's. The loop over rows is the definition.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit each other.
    """
    _validate(x_NM, weight_QM, bias_Q, plan)
    route = route or route_of(x_NM.device)
    x_NM = x_NM.to(weight_QM.dtype)
    logits: Tensor = torch.ops.prefixbank.apply_heads(
        x_NM, weight_QM, bias_Q, *plan.indices, plan.num_classes, route.value
    )
    return logits


def _validate(x: Tensor, weight: Tensor, bias: Tensor, plan: HeadPlan) -> None:
    if not (x.dim() == weight.dim() == 2 and x.shape[1] == weight.shape[1] and bias.shape == weight.shape[:1]):
        shapes = ([*x.shape], [*weight.shape], [*bias.shape])
        raise ValueError(f"x, weight and bias are {shapes}, wanted [N, M], [Q, M] and [Q]")
    if not (x.is_floating_point() and weight.is_floating_point() and weight.dtype == bias.dtype):
        dtypes = (x.dtype, weight.dtype, bias.dtype)
        raise ValueError(f"x, weight and bias are {dtypes}, wanted floating dtypes, the last two one")
    if len(x) < plan.num_vectors:
        raise ValueError(f"x has {len(x)} vectors, wanted the {plan.num_vectors} of the plan's rows or more")
    if plan.arena_end > len(weight):
        raise ValueError(f"the heads of the plan end at arena row {plan.arena_end} of {len(weight)}")
    devices = tuple(str(tensor.device) for tensor in (x, weight, bias, plan.blob_I))
    if len({*devices}) > 1:
        raise ValueError(f"x, weight, bias and the plan are on {devices}, wanted one device")


def _jobs(row_R4: Tensor) -> Iterator[Job]:
    """In the order of heads, so that rows that share one find it in the cache."""
    for first, num_vectors, start, count in sorted(row_R4.tolist(), key=lambda row: row[2:]):
        if count and num_vectors:
            yield Job(slice(first, first + num_vectors), slice(start, start + count), slice(0, count))


@functools.cache
def _triton() -> ModuleType:
    """Triton is an optional dependency, and slow to import: only its route does."""
    from prefixbank.kernels.gpu import heads

    return heads


@functools.cache
def _triton_gradient() -> ModuleType:
    from prefixbank.kernels.gpu import head_gradient

    return head_gradient


@torch.library.custom_op("prefixbank::apply_heads", mutates_args=())
def _forward(
    x_NM: Tensor,
    weight_QM: Tensor,
    bias_Q: Tensor,
    single_K: Tensor,
    bunch_B4: Tensor,
    tile_Y4: Tensor,
    group_G6: Tensor,
    total_3: Tensor,
    row_R4: Tensor,
    num_classes: int,
    route: str,
) -> Tensor:
    if Route(route) is Route.TRITON:
        indices = HeadIndices(single_K, bunch_B4, tile_Y4, group_G6, total_3, row_R4)
        with torch.cuda.device_of(x_NM):  # type: ignore[no-untyped-call]  # Triton launches on the current device
            logits: Tensor = _triton().forward(x_NM, weight_QM, bias_Q, indices, num_classes)
        return logits
    logits_NC = weight_QM.new_full((x_NM.shape[0], num_classes), -math.inf)
    for own, head, classes in _jobs(row_R4):
        logits_NC[own, classes] = torch.addmm(bias_Q[head], x_NM[own], weight_QM[head].mT)
    return logits_NC


@_forward.register_fake
def _forward_shapes(x_NM: Tensor, weight_QM: Tensor, *rest: Any) -> Tensor:
    *_, num_classes, _ = rest
    return weight_QM.new_empty((x_NM.shape[0], num_classes))


@torch.library.custom_op("prefixbank::apply_heads_backward", mutates_args=())
def _backward(
    d_logits_NC: Tensor,
    x_NM: Tensor,
    weight_QM: Tensor,
    single_K: Tensor,
    bunch_B4: Tensor,
    tile_Y4: Tensor,
    group_G6: Tensor,
    total_3: Tensor,
    row_R4: Tensor,
    needs_x: bool,
    needs_head: bool,
    route: str,
) -> tuple[Tensor, Tensor, Tensor]:
    d_x, d_weight, d_bias = (weight_QM.new_zeros(shape) for shape in _gradients(x_NM, weight_QM, needs_x, needs_head))
    if Route(route) is Route.TRITON:
        indices = HeadIndices(single_K, bunch_B4, tile_Y4, group_G6, total_3, row_R4)
        with torch.cuda.device_of(x_NM):  # type: ignore[no-untyped-call]
            if needs_x:
                _triton_gradient().write_d_x(d_x, d_logits_NC, weight_QM, indices)
            if needs_head:
                _triton_gradient().write_d_head(d_weight, d_bias, d_logits_NC, x_NM, indices)
        return d_x, d_weight, d_bias
    for own, head, classes in _jobs(row_R4):
        d_logits = d_logits_NC[own, classes]
        if needs_x:
            d_x[own] = d_logits @ weight_QM[head]
        if needs_head:
            d_weight[head].addmm_(d_logits.mT, x_NM[own])
            d_bias[head] += d_logits.sum(0)
    return d_x, d_weight, d_bias


def _gradients(x_NM: Tensor, weight_QM: Tensor, needs_x: bool, needs_head: bool) -> list[tuple[int, ...]]:
    """Shapes of the gradients; [0] for what is not asked for."""
    nothing = (0,)
    head = (weight_QM.shape, weight_QM.shape[:1]) if needs_head else (nothing, nothing)
    return [x_NM.shape if needs_x else nothing, *head]


@_backward.register_fake
def _backward_shapes(d_logits_NC: Tensor, x_NM: Tensor, weight_QM: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, needs_x, needs_head, _ = rest
    return tuple(weight_QM.new_empty(shape) for shape in _gradients(x_NM, weight_QM, needs_x, needs_head))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *indices, _, route = inputs
    ctx.save_for_backward(x, weight, *indices)
    ctx.route = route


def _differentiate(ctx: Any, d_logits_NC: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, needs_weight, needs_bias, *rest = ctx.needs_input_grad
    asked = (needs_x, needs_weight or needs_bias, ctx.route)
    grads = torch.ops.prefixbank.apply_heads_backward(d_logits_NC, *ctx.saved_tensors, *asked)
    needs = (needs_x, needs_weight, needs_bias)
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), *[None] * len(rest)


_forward.register_autograd(_differentiate, setup_context=_save)
