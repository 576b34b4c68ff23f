"""Batch: the packed tensors of one step.

Equally long rows lie side by side, and among them those of one slot; `split` undoes the order on the output. A batch
carries no future, no tenant and no clock, and refuses to know where its rows came from.

Shape letters: T packed tokens, R rows, N hidden states that heads read, C classes of the widest head.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prefixbank.model_store.backbones.packing import PackedTokens, PackRow
from prefixbank.model_store.task_prompt import Pooler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import HeadSpec
    from prefixbank.serving.prompt_pool import Slot


class BatchRow(NamedTuple):
    """One row before packing."""

    token_ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]
    position_offset: int
    slot: Slot
    head: HeadSpec
    is_token_level: bool
    """The head reads every token; otherwise the first."""


class OwnPoolers(NamedTuple):
    """Rows with a pooler of their own, of one activation."""

    index_K: Tensor
    """int64 on the device: which of the N hidden states."""
    start_K: Tensor
    """int32 on the host: first pooler row in the head arena."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward reads. The head tables are on the host, where the heads' launcher reads them."""

    tokens: PackedTokens
    order_R: list[int]
    """Packed row r is row `order[r]` of what was packed."""
    read_N: Tensor
    """int64 on the device: the packed tokens whose hidden states heads read."""
    read_start_R1: Tensor
    """int32 on the host: row r's part of the N."""
    class_start_R: Tensor
    """int32 on the host: first class row in the head arena."""
    class_count_R: Tensor
    """int32 on the host."""
    backbone_pooled_K: Tensor
    """int64 on the device: which of the N go through the backbone's pooler."""
    own_poolers: dict[str, OwnPoolers]
    """By activation."""
    is_token_level_R: list[bool]

    @property
    def num_rows(self) -> int:
        return len(self.order_R)

    @classmethod
    def pack(cls, rows: Sequence[BatchRow], backbone: Backbone) -> Batch:
        """Pack `rows` onto the backbone's device: equally long rows together and, among them, those of one slot.

        Rows of equal length and equal prefix length share a matrix product even where their prompts differ.
        """
        order = sorted(
            range(len(rows)),
            key=lambda r: (len(rows[r].token_ids), rows[r].slot.prefix_length, rows[r].slot.number),
        )
        packed = [rows[r] for r in order]
        tokens = backbone.pack(
            [PackRow(row.token_ids, row.type_ids, row.slot.number, row.position_offset) for row in packed]
        )
        read_N, read_start_R1 = _reads(packed)
        pooled, own = _poolers(packed, read_start_R1, backbone.device)
        return cls(
            tokens,
            order,
            torch.from_numpy(read_N).to(backbone.device),
            torch.from_numpy(read_start_R1),
            torch.tensor([row.slot.head.start for row in packed], dtype=torch.int32),
            torch.tensor([row.slot.num_classes for row in packed], dtype=torch.int32),
            torch.tensor(pooled, dtype=torch.int64, device=backbone.device),
            own,
            [row.is_token_level for row in packed],
        )

    def split(self, logits_NC: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Each row's own logits, [C] or [T, C], in the order in which the rows were given to `pack`."""
        bounds, counts = self.read_start_R1.tolist(), self.class_count_R.tolist()
        rows: dict[int, NDArray[np.float32]] = {}
        for packed, given in enumerate(self.order_R):
            own = logits_NC[bounds[packed] : bounds[packed + 1], : counts[packed]]
            rows[given] = own if self.is_token_level_R[packed] else own[0]
        return [rows[given] for given in range(self.num_rows)]


def _reads(rows: Sequence[BatchRow]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The packed tokens that heads read, and each row's part of them."""
    lengths_R = np.array([len(row.token_ids) for row in rows], dtype=np.int64)
    counts_R = np.array([len(row.token_ids) if row.is_token_level else 1 for row in rows], dtype=np.int64)
    read_start_R1 = np.concatenate([[0], np.cumsum(counts_R)])
    shift_R = np.cumsum(lengths_R) - lengths_R - read_start_R1[:-1]
    read_N = np.arange(read_start_R1[-1]) + np.repeat(shift_R, counts_R)
    return read_N, read_start_R1.astype(np.int32)


def _poolers(
    rows: Sequence[BatchRow], read_start_R1: NDArray[np.int32], device: torch.device
) -> tuple[list[int], dict[str, OwnPoolers]]:
    """Which hidden states go through the backbone's pooler, and which through one of their own."""
    pooled: list[int] = []
    own: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row, index in zip(rows, read_start_R1.tolist(), strict=False):
        if row.head.pooler is Pooler.BACKBONE:
            pooled.append(index)
        elif row.head.pooler is Pooler.OWN:
            assert row.head.activation is not None, "an own pooler without activation. This is a bug."
            own[row.head.activation].append((index, row.slot.pooler_start))
    return pooled, {activation: _own_poolers(pairs, device) for activation, pairs in own.items()}


def _own_poolers(pairs: Sequence[tuple[int, int]], device: torch.device) -> OwnPoolers:
    index_K, start_K = zip(*pairs, strict=True)
    return OwnPoolers(torch.tensor(index_K, dtype=torch.int64, device=device), torch.tensor(start_K, dtype=torch.int32))
