"""Queries and own keys as the backward sees them: two sides of a tile of scores, rows and columns, in either order.

It refuses to know kernels.

Shape letters: T packed tokens, H heads, D head dim, Q entries of the position table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefixbank.kernels.gpu.disentangled import strides_of
from prefixbank.kernels.gpu.disentangled_tiling import scratch_dtype
from prefixbank.kernels.gpu.forward import dense

if TYPE_CHECKING:
    import torch

    from prefixbank.kernels.disentangled_positions import Positions
    from prefixbank.kernels.gpu.softmax_gradient import Saved


class Side(NamedTuple):
    """One side of a tile of scores."""

    x_THD: torch.Tensor
    """q, or k: the score of a pair is a product of these."""
    other_THD: torch.Tensor
    """The gradient of the output, or v: the gradient of a pair's weight is a product of these."""
    table_QHD: torch.Tensor | None
    """The position table that x meets."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of token and head of both tensors, then of entry and head of the table."""
        return (*self.x_THD.stride()[:2], *self.other_THD.stride()[:2], *strides_of(self.table_QHD))


class Sides(NamedTuple):
    """Rows and columns."""

    rows: Side
    columns: Side
    are_keys: bool
    """Whether the rows are the own keys."""

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        return (*self.rows, *self.columns)

    @property
    def strides(self) -> tuple[int, ...]:
        return (*self.rows.strides, *self.columns.strides)

    @property
    def flags(self) -> dict[str, bool]:
        """The compile-time arguments that say what is there."""
        there = {"OF_X": self.rows.table_QHD is not None, "OF_Y": self.columns.table_QHD is not None}
        return there | {"KEYS": self.are_keys}


def sides_of(saved: Saved, positions: Positions) -> tuple[Sides, Sides]:
    """Queries as rows, then own keys as rows."""
    key, query = (None if x is None else dense(x) for x in positions[:2])
    queries = Side(saved.q_THD, saved.d_out_THD, key)
    keys = Side(saved.k_THD, saved.v_THD, query)
    return Sides(queries, keys, False), Sides(keys, queries, True)


def scratch_of(programs: int, block_m: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What programs skew positional scores in, and what they straighten gradients of scores in."""
    square = programs * block_m * block_m
    return like.new_empty(4 * square, dtype=scratch_dtype(like.dtype)), like.new_empty(2 * square)
