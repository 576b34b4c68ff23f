"""The parts that `kernel_parts` measures of prefix attention's gradients, and of the heads of many tasks.

Shape letters: T packed tokens, R rows, H heads, D head dim, N vectors, M model width, C classes, Q arena rows.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch

from benchmarks.kernel_clock import sets_to_rotate
from benchmarks.kernel_parts import Part
from benchmarks.kernel_workloads import Shape, make_batches
from prefixbank.kernels.attention import Route
from prefixbank.kernels.head_plan import HeadRow
from tests.head_cases import HeadCase, make_heads
from tests.kernel_cases import GRADIENT_TOLERANCE, TOLERANCE, distance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from benchmarks.kernel_workloads import Batch, Mix

BACKWARD_OVER_FORWARD = 2.5
"""Operations of the backward, which takes five products where the forward takes two."""
NEEDS = {
    "all gradients": [True] * 5,
    "gradients without the prefix's": [True, True, True, False, False],
    "the prefix's gradients alone": [False, False, False, True, True],
}


class Saved(NamedTuple):
    """What the backward of one batch is given beside the forward's arguments."""

    d_out_THD: Tensor
    d_lse_TH: Tensor
    out_THD: Tensor
    lse_TH: Tensor


def gradient_parts(device: torch.device) -> Iterator[Part]:
    """Forward with log-sum-exp, and the backward as a whole and in part, of one task and of as many as rows."""
    large = device.type == "cuda"
    mixes: tuple[Mix, ...] = ("identical", "distinct")
    for mix in mixes:
        shape = Shape(16384, 128, 128, mix) if large else Shape(32, 16, 5, mix, 2, 16, torch.float32)
        batches = make_batches(shape, device, 4 if large else 1)
        saved = [_saved(batch) for batch in batches]
        forward = [functools.partial(_forward, batch) for batch in batches]
        first = functools.cache(lambda batch=batches[0], kept=saved[0]: _gradient_distance(batch, kept))
        name = f"T={shape.tokens} L={shape.length} P={shape.prefix} {mix}"
        near = functools.partial(_forward_distance, batches[0])
        yield Part(f"forward for training, {name}", forward, near, TOLERANCE[shape.dtype], batches[0].flop)
        for what, needs in NEEDS.items():
            calls = [functools.partial(_backward, *pair, needs) for pair in zip(batches, saved, strict=True)]
            flop = BACKWARD_OVER_FORWARD * batches[0].flop if all(needs) else 0.0
            yield Part(f"{what}, {name}", calls, first, GRADIENT_TOLERANCE[shape.dtype], flop)


def _forward(batch: Batch) -> tuple[Tensor, Tensor]:
    arguments = batch.case.arguments(with_lse=True, route=Route.TRITON)
    out, lse = torch.ops.prefixbank.prefix_attention(*arguments)
    return out, lse


def _forward_distance(batch: Batch) -> float:
    return distance(_forward(batch)[0], batch.case.exact())


def _saved(batch: Batch) -> Saved:
    out, lse = _forward(batch)
    return Saved(torch.randn_like(out), torch.zeros_like(lse), out, lse)


def _backward(batch: Batch, saved: Saved, needs: list[bool]) -> tuple[Tensor, ...]:
    *tensors_and_scalars, _, route = batch.case.arguments(with_lse=True, route=Route.TRITON)
    grads: tuple[Tensor, ...] = torch.ops.prefixbank.prefix_attention_backward(
        *saved, *tensors_and_scalars, route, needs
    )
    return grads


def _gradient_distance(batch: Batch, saved: Saved) -> float:
    """The largest of the five, with all needed and with either half."""
    leaves = [x.detach().double().requires_grad_() for x in batch.case.differentiated]
    exact = torch.autograd.grad(batch.case.with_tensors(leaves).exact(), leaves, saved.d_out_THD.double())
    return max(
        distance(mine, theirs)
        for needs in NEEDS.values()
        for mine, theirs, need in zip(_backward(batch, saved, needs), exact, needs, strict=True)
        if need
    )


def head_parts(device: torch.device) -> Iterator[Part]:
    """Pooled rows and token rows, all with one head and each with its own; and what torch does with as many."""
    large = device.type == "cuda"
    num_rows, width, dtype = (128, 1024, torch.bfloat16) if large else (4, 32, torch.float32)
    for what, vectors, classes in (("pooled rows", 1, 3), ("token rows", 128 if large else 9, 9)):
        for mix in ("identical", "distinct"):
            starts = [0 if mix == "identical" else classes * row for row in range(num_rows)]
            rows = [HeadRow(0, vectors, start, classes) for start in starts]
            moved = num_rows * (vectors + classes) * width * 2
            count = min(16, sets_to_rotate(moved, device))
            cases = [make_heads(rows, width, dtype=dtype, device=device.type, seed=seed) for seed in range(count)]
            name = f"{num_rows} {what}, {classes} classes, {mix}"
            yield _head_part(f"heads, {name}", cases, _ours)
            yield _head_part(
                f"heads, {name}, {'bmm over gathered' if vectors == 1 else 'a product per row'}", cases, _torch
            )


def _head_part(name: str, cases: list[HeadCase], prepare: Callable[[HeadCase], Callable[[], Tensor]]) -> Part:
    calls = [prepare(case) for case in cases]
    dtype = cases[0].weight_QM.dtype

    def near() -> float:
        return distance(calls[0]().cpu(), cases[0].exact())

    return Part(name, list(calls), near, TOLERANCE[dtype])


def _ours(case: HeadCase) -> Callable[[], Tensor]:
    plan = case.plan
    return lambda: case.run(Route.TRITON, plan)


def _torch(case: HeadCase) -> Callable[[], Tensor]:
    """Rows of one vector as one bmm over the heads gathered; longer rows one by one. All have as many classes."""
    first = case.rows[0]
    heads_RC = torch.tensor([[row.head_start + c for c in range(first.num_classes)] for row in case.rows])
    heads_RC = heads_RC.to(case.x_NM.device)
    if first.num_vectors > 1:
        x_RLM = case.x_NM.view(len(case.rows), first.num_vectors, -1)
        starts = [row.head_start for row in case.rows]
        heads = [(case.weight_QM[s : s + first.num_classes], case.bias_Q[s : s + first.num_classes]) for s in starts]
        linear = torch.nn.functional.linear
        return lambda: torch.cat([linear(x, *head) for x, head in zip(x_RLM, heads, strict=True)])
    x_RM1 = case.x_NM[:, :, None]
    return lambda: torch.baddbmm(case.bias_Q[heads_RC][:, :, None], case.weight_QM[heads_RC], x_RM1)[:, :, 0]
