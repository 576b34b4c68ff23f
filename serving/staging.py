"""StagedPrompt: a task prompt's tensors in the form the pool copies, made once on the loading thread.

Keys and values in the pool's dtype and layout, padded to the pool's alignment with zeros; all class rows of the head
in one piece. It refuses to know where in the pool they will lie.

Shape letters: N prompted layers, H heads, P prefix tokens, W tokens of a run, D head dim, M model width, C classes,
Q head rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prefixbank.model_store.errors import NotFinite

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.model_store.task_prompt import Head, TaskPrompt

ALIGNMENT = 16
"""Tokens: each layer's part of a run starts at a multiple of this, which is one tile of the attention kernel."""


@dataclass(frozen=True, eq=False, slots=True)
class StagedPrompt:
    """Tensors of one prompt on the host, ready to copy."""

    layers: tuple[int, ...]
    prefix_length: int
    k_HWD: Tensor
    """W = N * aligned(P): the layers back to back, each padded with zeros."""
    v_HWD: Tensor
    rows_QM: Tensor
    """fp32: the C rows of the classifier, then the M rows of an own pooler, if there is one."""
    bias_Q: Tensor
    num_classes: int

    @property
    def num_tokens(self) -> int:
        """Length W of the run it needs."""
        return self.k_HWD.shape[1]

    @property
    def num_rows(self) -> int:
        """Head rows Q it needs."""
        return self.bias_Q.numel()

    @property
    def num_bytes(self) -> int:
        return self.k_HWD.nbytes + self.v_HWD.nbytes + self.rows_QM.nbytes + self.bias_Q.nbytes


def aligned(num_tokens: int) -> int:
    """The next multiple of the alignment."""
    return -(-num_tokens // ALIGNMENT) * ALIGNMENT


def stage(prompt: TaskPrompt, dtype: torch.dtype, device: torch.device) -> StagedPrompt:
    """Bring a prompt into the form a pool of this dtype on this device copies.

    Raises:
        NotFinite: when a value of the prefix overflows in `dtype`.
    """
    rows_QM, bias_Q = _head_rows(prompt.head)
    k_HWD, v_HWD = _run(prompt.kv_N2HPD[:, 0], dtype), _run(prompt.kv_N2HPD[:, 1], dtype)
    if device.type == "cuda":  # from pinned memory the copy does not wait
        k_HWD, v_HWD, rows_QM, bias_Q = (tensor.pin_memory() for tensor in (k_HWD, v_HWD, rows_QM, bias_Q))
    length = prompt.prefix_length if prompt.layers else 0
    return StagedPrompt(prompt.layers, length, k_HWD, v_HWD, rows_QM, bias_Q, prompt.head.bias_C.numel())


def _run(x_NHPD: Tensor, dtype: torch.dtype) -> Tensor:
    converted_NHPD = x_NHPD.to(dtype)
    if not torch.isfinite(converted_NHPD).all():
        raise NotFinite(f"the prefix reaches {x_NHPD.abs().max().item():.4g}, which is not finite in {dtype}")
    layers, heads, length, dim = x_NHPD.shape
    run_HNPD = torch.zeros(heads, layers, aligned(length), dim, dtype=dtype)
    run_HNPD[:, :, :length] = converted_NHPD.transpose(0, 1)
    return run_HNPD.reshape(heads, -1, dim) if layers and length else run_HNPD.new_zeros(heads, 0, dim)


def _head_rows(head: Head) -> tuple[Tensor, Tensor]:
    weights, biases = [head.weight_CM], [head.bias_C]
    if head.pooler_weight_MM is not None and head.pooler_bias_M is not None:
        weights.append(head.pooler_weight_MM)
        biases.append(head.pooler_bias_M)
    return torch.cat(weights).float(), torch.cat(biases).float()
