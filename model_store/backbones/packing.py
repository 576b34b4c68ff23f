"""PackedTokens: the rows of one batch laid end to end, with every token's id, type and position.

It knows how an architecture numbers positions. It refuses to know models, prompts' contents, tasks and text.

Shape letters: T packed tokens of all rows, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch

from prefixbank.kernels.plan import NO_PROMPT_SLOT, BatchPlan, Mode
from prefixbank.model_store.errors import InputTooLong

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Ids: TypeAlias = Sequence[int] | NDArray[np.integer]


class PackRow(NamedTuple):
    """One row before packing: special tokens included, prefix excluded."""

    token_ids: Ids
    type_ids: Ids
    slot: int = NO_PROMPT_SLOT
    """Index into the slot tables of the prefixes that the forward gets."""
    position_offset: int = 0
    """The task prompt's `position_offset`."""
    prefix_length: int = 0
    """Prefix tokens that the row reads in any layer: what a GPU shares among programs when the batch is small."""


@dataclass(frozen=True, slots=True)
class PositionRule:
    """How an architecture numbers the tokens of a row: `first + offset + i`, i counted from 0."""

    first: int
    """Position of the first token without an offset: 0, or the padding index + 1 for the RoBERTa family."""
    count: int
    """How many positions the backbone has."""
    padding_id: int | None = None
    """RoBERTa family: a token with this id is not counted and stands at `first - 1`, wherever it came from."""

    def number(self, token_ids_T: NDArray[np.int64], lengths: Ids, offsets: Ids) -> NDArray[np.int64]:
        """Number the tokens of packed rows as the architecture itself would number each row."""
        position_ids_T = self.number_plain(lengths, offsets)
        if self.padding_id is None:
            return position_ids_T
        is_padding_T = token_ids_T == self.padding_id
        if not is_padding_T.any():
            return position_ids_T
        skipped_T = np.cumsum(is_padding_T)
        row_start_R = np.cumsum(lengths) - lengths
        skipped_before_R = skipped_T[row_start_R] - is_padding_T[row_start_R]
        position_ids_T -= skipped_T - np.repeat(skipped_before_R, lengths)
        position_ids_T[is_padding_T] = self.first - 1
        return position_ids_T

    def number_plain(self, lengths: Ids, offsets: Ids) -> NDArray[np.int64]:
        """Number packed rows that hold no padding token."""
        lengths_R = np.asarray(lengths, dtype=np.int64)
        row_start_R = np.cumsum(lengths_R) - lengths_R
        shift_R = np.asarray(offsets, dtype=np.int64) - row_start_R + self.first
        position_ids_T = np.repeat(shift_R, lengths_R)
        position_ids_T += np.arange(position_ids_T.size)
        return position_ids_T


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """One batch as a backbone takes it, on the backbone's device."""

    token_ids_T: Tensor
    """int64."""
    type_ids_T: Tensor
    """int64; backbones without token types ignore it."""
    position_ids_T: Tensor
    """int64, in the backbone's own numbering, offsets included."""
    plan: BatchPlan


def pack(rows: Sequence[PackRow], positions: PositionRule, *, device: torch.device | str = "cpu") -> PackedTokens:
    """Lay `rows` end to end, in the order given.

    Raises:
        ValueError: when there is no row, a row is empty, or its types and tokens differ in number.
        InputTooLong: when a row and its offset need more positions than the backbone has.
    """
    lengths_R = np.array([len(row.token_ids) for row in rows], dtype=np.int64)
    offsets_R = np.array([row.position_offset for row in rows], dtype=np.int64)
    _check_rows(rows, lengths_R, offsets_R, positions)
    packed_3T = np.empty((3, int(lengths_R.sum())), dtype=np.int64)
    np.concatenate([row.token_ids for row in rows], out=packed_3T[0])
    np.concatenate([row.type_ids for row in rows], out=packed_3T[1])
    packed_3T[2] = positions.number(packed_3T[0], lengths_R, offsets_R)
    token_ids_T, type_ids_T, position_ids_T = torch.from_numpy(packed_3T).to(device)
    plan = BatchPlan.build(
        lengths_R.astype(np.int32),
        [row.slot for row in rows],
        mode=Mode.FULL,
        device=device,
        longest_prefix=max(row.prefix_length for row in rows),
    )
    return PackedTokens(token_ids_T, type_ids_T, position_ids_T, plan)


def _check_rows(
    rows: Sequence[PackRow], lengths_R: NDArray[np.int64], offsets_R: NDArray[np.int64], positions: PositionRule
) -> None:
    if not rows or lengths_R.min() == 0:
        raise ValueError("a batch needs at least one row, and a row at least one token")
    if [len(row.type_ids) for row in rows] != lengths_R.tolist():
        raise ValueError("a row's type ids and token ids differ in number")
    needed_R = lengths_R + offsets_R
    if needed_R.max() > positions.count:
        row = int(needed_R.argmax())
        raise InputTooLong(
            f"row {row} has {lengths_R[row]} tokens at position offset {offsets_R[row]}; "
            f"the backbone has {positions.count} positions"
        )
