"""Linear heads of many tasks applied to one batch, each read by index where it lies in an arena of class rows.

Every row costs one small matrix product, whether all rows share a head or none do, and a row's logits do not
depend on the other rows. It refuses to know what a class means, and which task owns which arena rows.

Shape letters: N rows of x (packed tokens, or one pooled vector per batch row), R batch rows, Q arena rows,
M model width, C classes of the widest head of the batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator


class Job(NamedTuple):
    """One batch row: which vectors meet which arena rows."""

    own: slice
    head: slice
    classes: slice


def apply_heads(
    x_NM: Tensor, weight_QM: Tensor, bias_Q: Tensor, start_R: Tensor, count_R: Tensor, row_start_R1: Tensor
) -> Tensor:
    """Return logits [N, C] in the arena's dtype; columns beyond a row's own classes are -inf.

    The vectors `row_start[r] : row_start[r + 1]` of x meet the arena rows `start[r] : start[r] + count[r]`.
    For pooled heads `row_start` counts 0, 1, 2, ... Differentiable in x, weight and bias.

    Raises:
        ValueError: when shapes or dtypes do not fit each other.
    """
    _validate(x_NM, weight_QM, bias_Q, start_R, count_R, row_start_R1)
    starts, counts = start_R.tolist(), count_R.tolist()
    for start, count in zip(starts, counts, strict=True):
        if start + count > len(weight_QM):
            raise ValueError(f"a head is arena rows {start} to {start + count} of {len(weight_QM)}")
    x_NM = x_NM.to(weight_QM.dtype)
    logits: Tensor = torch.ops.prefixbank.apply_heads(
        x_NM, weight_QM, bias_Q, start_R, count_R, row_start_R1, max(counts, default=0)
    )
    return logits


def _validate(x: Tensor, weight: Tensor, bias: Tensor, start: Tensor, count: Tensor, row_start: Tensor) -> None:
    if not (x.dim() == weight.dim() == 2 and x.shape[1] == weight.shape[1] and bias.shape == weight.shape[:1]):
        found = ([*x.shape], [*weight.shape], [*bias.shape])
        raise ValueError(f"x, weight and bias are {found}, wanted [N, M], [Q, M] and [Q]")
    if not (start.dim() == 1 and start.shape == count.shape and row_start.shape == (start.numel() + 1,)):
        found = ([*start.shape], [*count.shape], [*row_start.shape])
        raise ValueError(f"start, count and row_start are {found}, wanted [R], [R] and [R + 1]")
    if not start.dtype == count.dtype == row_start.dtype == torch.int32:
        raise ValueError(f"the index tensors are {(start.dtype, count.dtype, row_start.dtype)}, wanted int32")
    if weight.dtype != bias.dtype:
        raise ValueError(f"weight is {weight.dtype} and bias {bias.dtype}, wanted one dtype")


def _jobs(start_R: Tensor, count_R: Tensor, row_start_R1: Tensor) -> Iterator[Job]:
    bounds = row_start_R1.tolist()
    for row, (start, count) in enumerate(zip(start_R.tolist(), count_R.tolist(), strict=True)):
        if count and bounds[row] < bounds[row + 1]:
            yield Job(slice(bounds[row], bounds[row + 1]), slice(start, start + count), slice(0, count))


@torch.library.custom_op("prefixbank::apply_heads", mutates_args=())
def _forward(
    x_NM: Tensor,
    weight_QM: Tensor,
    bias_Q: Tensor,
    start_R: Tensor,
    count_R: Tensor,
    row_start_R1: Tensor,
    num_classes: int,
) -> Tensor:
    logits_NC = weight_QM.new_full((x_NM.shape[0], num_classes), -math.inf)
    for own, head, classes in _jobs(start_R, count_R, row_start_R1):
        logits_NC[own, classes] = torch.addmm(bias_Q[head], x_NM[own], weight_QM[head].mT)
    return logits_NC


@_forward.register_fake
def _forward_shapes(x_NM: Tensor, weight_QM: Tensor, *rest: Any) -> Tensor:
    return weight_QM.new_empty((x_NM.shape[0], rest[-1]))


@torch.library.custom_op("prefixbank::apply_heads_backward", mutates_args=())
def _backward(
    d_logits_NC: Tensor,
    x_NM: Tensor,
    weight_QM: Tensor,
    start_R: Tensor,
    count_R: Tensor,
    row_start_R1: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    d_x, d_weight, d_bias = torch.zeros_like(x_NM), torch.zeros_like(weight_QM), weight_QM.new_zeros(len(weight_QM))
    for own, head, classes in _jobs(start_R, count_R, row_start_R1):
        d_logits = d_logits_NC[own, classes]
        d_x[own] = d_logits @ weight_QM[head]
        d_weight[head].addmm_(d_logits.mT, x_NM[own])
        d_bias[head] += d_logits.sum(0)
    return d_x, d_weight, d_bias


@_backward.register_fake
def _backward_shapes(d_logits_NC: Tensor, x_NM: Tensor, weight_QM: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return torch.empty_like(x_NM), torch.empty_like(weight_QM), weight_QM.new_empty(weight_QM.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *indices, _ = inputs
    ctx.save_for_backward(x, weight, *indices)


def _differentiate(ctx: Any, d_logits_NC: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.prefixbank.apply_heads_backward(d_logits_NC, *ctx.saved_tensors)
    return *grads, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
