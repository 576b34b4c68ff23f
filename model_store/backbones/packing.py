"""PackedTokens: the rows of one batch laid end to end, with every token's id, type and position.

It knows how an architecture numbers positions. It refuses to know models, prompts' contents, tasks and text.

Shape letters: T packed tokens of all rows, virtual ones included; R rows; V virtual tokens of all rows.
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

_VIRTUAL = -1
"""Stands for the id of a virtual token until positions are numbered: no padding token, whatever the architecture's."""


class PackRow(NamedTuple):
    """One row before packing: special tokens included, prefix and virtual tokens excluded."""

    token_ids: Ids
    type_ids: Ids
    slot: int = NO_PROMPT_SLOT
    """Index into the slot tables of the prefixes that the forward gets."""
    position_offset: int = 0
    """The task prompt's `position_offset`."""
    prefix_length: int = 0
    """Prefix tokens that the row reads in any layer: what a GPU shares among programs when the batch is small."""
    num_virtual: int = 0
    """Vectors of a shallow prompt that stand before the text, at the architecture's first positions."""


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
    """int64; that of a virtual token means nothing."""
    type_ids_T: Tensor
    """int64; backbones without token types ignore it. Virtual tokens are of type 0."""
    position_ids_T: Tensor
    """int64, in the backbone's own numbering, offsets included."""
    virtual_V: Tensor
    """int64, ascending: the packed tokens in whose place the vectors of shallow prompts stand. Rows begin with them."""
    plan: BatchPlan


class _Segment(NamedTuple):
    """Tokens that are numbered without a break."""

    token_ids: Ids
    type_ids: Ids
    position_offset: int


def pack(rows: Sequence[PackRow], positions: PositionRule, *, device: torch.device | str = "cpu") -> PackedTokens:
    """Lay `rows` end to end, in the order given, each with its virtual tokens before its text.

    Raises:
        ValueError: when there is no row, a row is empty, or its types and tokens differ in number.
        InputTooLong: when a row needs more positions than the backbone has.
    """
    lengths_R = np.array([len(row.token_ids) for row in rows], dtype=np.int64)
    virtual_R = np.array([row.num_virtual for row in rows], dtype=np.int64)
    _check_rows(rows, lengths_R, virtual_R, positions)
    num_virtual = int(virtual_R.sum())
    parts = [segment for row in rows for segment in _segments(row)] if num_virtual else rows
    part_lengths = [len(part.token_ids) for part in parts] if num_virtual else lengths_R
    num_tokens = int(lengths_R.sum()) + num_virtual
    packed_I = np.empty(3 * num_tokens + num_virtual, dtype=np.int64)  # one copy to the device for all
    packed_3T, virtual_V = packed_I[: 3 * num_tokens].reshape(3, num_tokens), packed_I[3 * num_tokens :]
    np.concatenate([part.token_ids for part in parts], out=packed_3T[0])
    np.concatenate([part.type_ids for part in parts], out=packed_3T[1])
    packed_3T[2] = positions.number(packed_3T[0], part_lengths, [part.position_offset for part in parts])
    if num_virtual:
        virtual_V[:] = np.flatnonzero(packed_3T[0] == _VIRTUAL)
        packed_3T[0, virtual_V] = 0
    plan = BatchPlan.build(
        (lengths_R + virtual_R).astype(np.int32),
        [row.slot for row in rows],
        mode=Mode.FULL,
        device=device,
        longest_prefix=max(row.prefix_length for row in rows),
    )
    tokens_I = torch.from_numpy(packed_I).to(device)
    token_ids_T, type_ids_T, position_ids_T, on_device_V = torch.split(tokens_I, [num_tokens] * 3 + [num_virtual])
    return PackedTokens(token_ids_T, type_ids_T, position_ids_T, on_device_V, plan)


def _segments(row: PackRow) -> tuple[_Segment, ...]:
    """A row's virtual tokens, counted from 0, and its text, counted from its offset."""
    text = _Segment(row.token_ids, row.type_ids, row.position_offset)
    if not row.num_virtual:
        return (text,)
    return _Segment([_VIRTUAL] * row.num_virtual, [0] * row.num_virtual, 0), text


def _check_rows(
    rows: Sequence[PackRow], lengths_R: NDArray[np.int64], virtual_R: NDArray[np.int64], positions: PositionRule
) -> None:
    if not rows or lengths_R.min() == 0:
        raise ValueError("a batch needs at least one row, and a row at least one token")
    if [len(row.type_ids) for row in rows] != lengths_R.tolist():
        raise ValueError("a row's type ids and token ids differ in number")
    needed_R = lengths_R + [row.position_offset for row in rows]
    if needed_R.max() > positions.count:
        row = int(needed_R.argmax())
        raise InputTooLong(
            f"row {row} has {lengths_R[row]} tokens at position offset {rows[row].position_offset}; "
            f"the backbone has {positions.count} positions"
        )
    if virtual_R.max() > positions.count:
        row = int(virtual_R.argmax())
        raise InputTooLong(
            f"row {row} has {virtual_R[row]} virtual tokens; the backbone has {positions.count} positions"
        )
