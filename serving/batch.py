"""Batch: the packed tensors of one step.

Equally long rows lie side by side, and among them those of one slot; `split` undoes the order on the output. A batch
carries no future, no tenant and no clock, and refuses to know where its rows came from.

Shape letters: T packed tokens, R rows, V virtual tokens, N hidden states that heads read, K those of one row or of one
kind of pooler, C classes of the widest head.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prefixbank.kernels.head_plan import HeadPlan
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
    reads_K: NDArray[np.int64]
    """The text tokens whose states the head reads."""
    is_token_level: bool
    """Its logits are one set per token that is read; otherwise one."""

    @property
    def num_tokens(self) -> int:
        """Length of the packed row: the vectors of a shallow prompt, then the text."""
        return self.slot.num_virtual + len(self.token_ids)


class OwnPoolers(NamedTuple):
    """Rows with a pooler of their own, of one activation."""

    index_K: Tensor
    """int64 on the device: which of the N hidden states."""
    heads: HeadPlan
    """Each of the K meets the M arena rows of its pooler."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward reads."""

    tokens: PackedTokens
    order_R: list[int]
    """Packed row r is row `order[r]` of what was packed."""
    virtual_rows_V: Tensor
    """int64 on the device: the rows of the head arena that stand at `tokens.virtual_V`."""
    read_N: Tensor
    """int64 on the device: the packed tokens whose hidden states heads read."""
    heads: HeadPlan
    """Which of the N meet which class rows of the head arena; its rows are the packed rows."""
    backbone_pooled_K: Tensor
    """int64 on the device: which of the N go through the backbone's pooler."""
    lm_transformed_K: Tensor
    """int64 on the device: which of the N go through the transform of the backbone's masked-LM head."""
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
            key=lambda r: (rows[r].num_tokens, rows[r].slot.prefix_length, rows[r].slot.number),
        )
        packed, device = [rows[r] for r in order], backbone.device
        tokens = backbone.pack([_pack_row(row) for row in packed])
        read_N, count_R = _reads(packed)
        frozen, own = _poolers(packed, count_R)
        indices: list[Sequence[int] | NDArray[np.int64]]
        indices = [_virtual_rows(packed), read_N, frozen[Pooler.BACKBONE], frozen[Pooler.LM]]
        on_device = _on_device([*indices, *(rows.vectors for rows in own.values())], device)
        own_poolers = {
            activation: OwnPoolers(index_K, _pooler_heads(rows.starts, backbone.ref.width, device))
            for (activation, rows), index_K in zip(own.items(), on_device[len(indices) :], strict=True)
        }
        return cls(
            tokens=tokens,
            order_R=order,
            virtual_rows_V=on_device[0],
            read_N=on_device[1],
            heads=_heads(packed, count_R, device),
            backbone_pooled_K=on_device[2],
            lm_transformed_K=on_device[3],
            own_poolers=own_poolers,
            is_token_level_R=[row.is_token_level for row in packed],
        )

    def split(self, logits_NC: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Each row's own logits, [C] or [K, C], in the order in which the rows were given to `pack`."""
        rows: dict[int, NDArray[np.float32]] = {}
        for given, head, is_token_level in zip(self.order_R, self.heads.rows, self.is_token_level_R, strict=True):
            own = logits_NC[head.first : head.first + head.num_vectors, : head.num_classes]
            rows[given] = own if is_token_level else own[0]
        return [rows[given] for given in range(self.num_rows)]


class _Pooled(NamedTuple):
    """Hidden states that go through poolers of one activation, before they are on the device."""

    vectors: list[int]
    starts: list[int]
    """First pooler row in the head arena."""


def _pack_row(row: BatchRow) -> PackRow:
    return PackRow(
        row.token_ids,
        row.type_ids,
        row.slot.number,
        row.position_offset,
        row.slot.prefix_length,
        row.slot.num_virtual,
    )


def _virtual_rows(rows: Sequence[BatchRow]) -> list[int]:
    """The arena rows of all shallow prompts, in the order of the packed tokens that they stand for."""
    runs = (range(row.slot.virtual_start, row.slot.head.end) for row in rows)
    return [arena_row for run in runs for arena_row in run]


def _reads(rows: Sequence[BatchRow]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The packed tokens that heads read, and how many of them each row has."""
    lengths_R = np.array([row.num_tokens for row in rows], dtype=np.int64)
    counts_R = np.array([len(row.reads_K) for row in rows], dtype=np.int64)
    first_R = np.cumsum(lengths_R) - lengths_R
    first_R += [row.slot.num_virtual if row.head.pools == "text" else 0 for row in rows]
    read_N = np.repeat(first_R, counts_R)
    read_N += np.concatenate([row.reads_K for row in rows])
    return read_N, counts_R


def _poolers(
    rows: Sequence[BatchRow], counts_R: NDArray[np.int64]
) -> tuple[dict[Pooler, list[int]], dict[str, _Pooled]]:
    """Which hidden states go through each pooler of the backbone, and which through one of their own."""
    frozen: dict[Pooler, list[int]] = {Pooler.BACKBONE: [], Pooler.LM: []}
    own: dict[str, _Pooled] = defaultdict(lambda: _Pooled([], []))
    for row, first in zip(rows, (np.cumsum(counts_R) - counts_R).tolist(), strict=True):
        if row.head.pooler in frozen:
            frozen[row.head.pooler] += range(first, first + len(row.reads_K))
        elif row.head.pooler is Pooler.OWN:
            assert row.head.activation is not None, "an own pooler without activation. This is a bug."
            own[row.head.activation].vectors.append(first)
            own[row.head.activation].starts.append(row.slot.pooler_start)
    return frozen, dict(own)


def _heads(rows: Sequence[BatchRow], counts_R: NDArray[np.int64], device: torch.device) -> HeadPlan:
    starts, classes = [row.slot.head.start for row in rows], [row.slot.num_classes for row in rows]
    return HeadPlan.build(counts_R, starts, classes, device=device)


def _pooler_heads(starts: Sequence[int], width: int, device: torch.device) -> HeadPlan:
    return HeadPlan.build([1] * len(starts), starts, [width] * len(starts), device=device)


def _on_device(indices: Sequence[Sequence[int] | NDArray[np.int64]], device: torch.device) -> tuple[Tensor, ...]:
    """Index tensors, int64, in one copy."""
    host = torch.from_numpy(np.concatenate([np.asarray(index, dtype=np.int64) for index in indices]))
    host = host.pin_memory() if device.type == "cuda" else host
    return torch.split(host.to(device, non_blocking=True), [len(index) for index in indices])
