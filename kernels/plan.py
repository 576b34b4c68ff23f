"""BatchPlan: the int32 index tensors of one batch, built on the host.

It knows lengths and slot numbers. It refuses to know tasks, tenants, token ids and models.

Shape letters: T packed tokens of all rows, R rows, S slots, H heads, N pool tokens, D head dim, B buckets.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

NO_PROMPT_SLOT = 0
"""Slot 0 of every pool has length 0 in every layer: the slot of a row without a prompt."""


class Mode(enum.IntEnum):
    """Which of a row's own tokens a query may see. Prefix tokens are visible in every mode."""

    FULL = 0
    CAUSAL = 1
    PREFIX_LM = 2


class LayerPrefix(NamedTuple):
    """One layer's view of the prefix memory: slot `s` is `pool[:, start[s] : start[s] + length[s]]`.

    `length[s] == 0` says that slot `s` has no prompt in this layer. The pool may be shared by all layers.
    """

    pool_k_HND: Tensor
    pool_v_HND: Tensor
    slot_start_S: Tensor
    """int32, pool token index."""
    slot_length_S: Tensor
    """int32, prefix tokens P of this layer."""


class Bucket(NamedTuple):
    """Rows that read one slot, are equally long and lie equally spaced: what one bmm takes.

    Any two rows are equally spaced, so the rows of a slot and length fall into few buckets in any order, and
    into one when they are adjacent.
    """

    slot: int
    length: int
    """own tokens of each row, at least 1."""
    context: int
    begin: int
    """first token of the first row."""
    spacing: int
    """tokens from one row's first token to the next row's, at least `length`."""
    num_rows: int


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Where each row of a packed batch begins, which slot it reads, and what it may see."""

    row_start_R1: Tensor
    """int32 [R + 1]: row r is tokens `row_start[r] : row_start[r + 1]`; the last entry is T."""
    slot_R: Tensor
    """int32 [R]: index into the slot tables of `LayerPrefix`; `NO_PROMPT_SLOT` for none."""
    context_R: Tensor
    """int32 [R]: in `PREFIX_LM`, how many leading own tokens every query of the row sees; else 0, whatever is given."""
    mode: Mode
    bucket_B6: Tensor
    """int32 [B, 6], always in host memory: the rows as `Bucket`s, for routes that launch from the host."""
    num_tokens: int
    """T: tokens of all rows. Packed tensors may be longer; what lies beyond belongs to no row."""

    @property
    def num_rows(self) -> int:
        return self.slot_R.numel()

    @classmethod
    def build(
        cls,
        lengths: Sequence[int],
        slots: Sequence[int],
        *,
        mode: Mode = Mode.FULL,
        context: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> BatchPlan:
        """Build the plan of rows with `lengths` tokens that read `slots`, in that order.

        Raises:
            ValueError: when the sequences differ in length, or an entry is negative.
        """
        rows = len(lengths)
        context = context if context is not None and mode == Mode.PREFIX_LM else [0] * rows
        if not (len(slots) == len(context) == rows):
            raise ValueError(f"lengths, slots and context differ in length: {rows}, {len(slots)}, {len(context)}")
        if rows and min(*lengths, *slots, *context, 0) < 0:
            raise ValueError("lengths, slots and context must not be negative")
        blob = np.zeros(3 * rows + 1, dtype=np.int32)
        np.cumsum(lengths, out=blob[1 : rows + 1])
        blob[rows + 1 : 2 * rows + 1] = slots
        blob[2 * rows + 1 :] = context
        begins = blob[:rows].tolist()
        buckets = list(_buckets(zip(slots, lengths, context, begins, strict=True)))
        indices = torch.from_numpy(blob).to(device)
        return cls(
            row_start_R1=indices[: rows + 1],
            slot_R=indices[rows + 1 : 2 * rows + 1],
            context_R=indices[2 * rows + 1 :],
            mode=mode,
            bucket_B6=torch.tensor(buckets, dtype=torch.int32).view(-1, len(Bucket._fields)),
            num_tokens=int(blob[rows]),
        )


def _buckets(rows: Iterable[tuple[int, int, int, int]]) -> Iterator[Bucket]:
    """Group rows given as (slot, length, context, begin); a row without tokens is in no bucket."""
    present = sorted(row for row in rows if row[1])
    for (slot, length, context), members in groupby(present, key=lambda row: row[:3]):
        for begin, spacing, count in _evenly_spaced([member[3] for member in members]):
            yield Bucket(slot, length, context, begin, spacing or length, count)


def _evenly_spaced(begins: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Cut ascending numbers into runs of one spacing: (first, spacing, count); the spacing of one alone is 0."""
    first, spacing, count = begins[0], 0, 1
    for last, begin in pairwise(begins):
        if count == 1 or begin - last == spacing:
            spacing, count = begin - last, count + 1
        else:
            yield first, spacing, count
            first, spacing, count = begin, 0, 1
    yield first, spacing, count
