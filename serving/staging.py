"""StagedPrompt: a task prompt's tensors in the form the pool copies, made once on the loading thread.

Keys and values in the pool's dtype and layout, quantised if it asks for that, padded to its alignment with zeros; all
rows of the head and the vectors of a shallow prompt in one piece. It refuses to know where in the pool they will lie.

Shape letters: N prompted layers, H heads, P prefix tokens, W tokens of a run, D head dim, M model width, C classes,
Q head rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.quantise import quantise
from prefixbank.model_store.errors import OverflowsHalf

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.model_store.task_prompt import TaskPrompt

ALIGNMENT = 16
"""Tokens: each layer's part of a run starts at a multiple of this, which is one tile of the attention kernel."""


@dataclass(frozen=True, eq=False, slots=True)
class StagedPrompt:
    """Tensors of one prompt on the host, ready to copy."""

    layers: tuple[int, ...]
    prefix_length: int
    kv_2HWD: Tensor
    """Keys and values; W = N * aligned(P): the layers back to back, each padded with zeros."""
    rows_QM: Tensor
    """fp32: the C rows of the classifier, then the M rows of an own pooler, then the P vectors of a shallow prompt."""
    bias_Q: Tensor
    """fp32; zero for the vectors of a shallow prompt."""
    num_classes: int
    scale_N2H: Tensor | None = None
    """fp32: what quantised keys (0) and values (1) are times; None where they are stored as they are."""
    num_virtual: int = 0
    """Vectors of a shallow prompt, the last rows of the head."""

    @property
    def num_tokens(self) -> int:
        """Length W of the run it needs."""
        return self.kv_2HWD.shape[2]

    @property
    def num_rows(self) -> int:
        """Head rows Q it needs."""
        return self.bias_Q.numel()

    @property
    def num_bytes(self) -> int:
        tensors = (self.kv_2HWD, self.rows_QM, self.bias_Q, self.scale_N2H)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def aligned(num_tokens: int) -> int:
    """The next multiple of the alignment."""
    return -(-num_tokens // ALIGNMENT) * ALIGNMENT


def prefix_dtype_of(setting: str) -> torch.dtype | None:
    """The dtype that the setting `prefix_dtype` names; None for "auto", the backbone's own."""
    return None if setting == "auto" else getattr(torch, setting)


def stage(
    prompt: TaskPrompt, dtype: torch.dtype, device: torch.device, prefix_dtype: torch.dtype | None = None
) -> StagedPrompt:
    """Bring a prompt into the form that the pool of a backbone of `dtype` copies.

    Args:
        prefix_dtype: what the pool stores prefixes in, where that is not `dtype`.

    Raises:
        OverflowsHalf: when a value of the prompt overflows in `dtype`, in which it is computed with.
    """
    kv_N2HPD = _in_dtype(prompt.kv_N2HPD, dtype, "prefix")
    if prompt.shallow_PM is not None:
        _in_dtype(prompt.shallow_PM, dtype, "shallow prompt")
    scale_N2H = None
    if prefix_dtype is not None:
        kv_N2HPD, scale_N2H = quantise(prompt.kv_N2HPD, prefix_dtype)
    kv_2HWD, (rows_QM, bias_Q) = _run(kv_N2HPD), _head_rows(prompt)
    if device.type == "cuda":  # from pinned memory the copy does not wait
        kv_2HWD, rows_QM, bias_Q = (tensor.pin_memory() for tensor in (kv_2HWD, rows_QM, bias_Q))
    length = prompt.prefix_length if prompt.layers else 0
    classes = prompt.head.bias_C.numel()
    return StagedPrompt(
        prompt.layers, length, kv_2HWD, rows_QM, bias_Q, classes, scale_N2H, num_virtual=prompt.shallow_length
    )


def as_views(prompt: TaskPrompt, staged: StagedPrompt) -> TaskPrompt:
    """The prompt with its tensors replaced by views of what was staged from it, so that they exist once.

    A quantised prefix has no such view: only its shape is left, in a tensor on the meta device, which cannot be read.
    """
    classes, has_own = staged.num_classes, prompt.head.pooler_weight_MM is not None
    end = staged.num_rows - staged.num_virtual
    head = replace(
        prompt.head,
        weight_CM=staged.rows_QM[:classes],
        bias_C=staged.bias_Q[:classes],
        pooler_weight_MM=staged.rows_QM[classes:end] if has_own else None,
        pooler_bias_M=staged.bias_Q[classes:end] if has_own else None,
    )
    prompt = replace(prompt, head=head, shallow_PM=None if prompt.shallow_PM is None else staged.rows_QM[end:])
    if staged.scale_N2H is not None:
        return replace(prompt, kv_N2HPD=prompt.kv_N2HPD.to("meta"))
    layers, _, heads, length, dim = prompt.kv_N2HPD.shape
    kv_2HNPD = staged.kv_2HWD.view(2, heads, layers, aligned(length), dim)[:, :, :, :length]
    return replace(prompt, kv_N2HPD=kv_2HNPD.permute(2, 0, 1, 3, 4))


def _in_dtype(prompt: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    cast = prompt.to(dtype)
    if not torch.isfinite(cast).all():
        raise OverflowsHalf(f"the {what} reaches {prompt.abs().max():.4g}, which is not finite in {dtype}")
    return cast


def _run(kv_N2HPD: Tensor) -> Tensor:
    layers, _, heads, length, dim = kv_N2HPD.shape
    kv_2HNPD = torch.zeros(2, heads, layers, aligned(length), dim, dtype=kv_N2HPD.dtype)
    kv_2HNPD[:, :, :, :length] = kv_N2HPD.permute(1, 2, 0, 3, 4)
    return kv_2HNPD.view(2, heads, layers * aligned(length), dim)


def _head_rows(prompt: TaskPrompt) -> tuple[Tensor, Tensor]:
    head = prompt.head
    weights, biases = [head.weight_CM], [head.bias_C]
    if head.pooler_weight_MM is not None and head.pooler_bias_M is not None:
        weights.append(head.pooler_weight_MM)
        biases.append(head.pooler_bias_M)
    if prompt.shallow_PM is not None:
        weights.append(prompt.shallow_PM.float())
        biases.append(torch.zeros(prompt.shallow_length))
    return torch.cat(weights).float(), torch.cat(biases).float()
