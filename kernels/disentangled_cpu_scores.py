"""The scores of one block of rows under disentangled attention on a CPU, and how their gradients go back to distances.

Queries of a block meet one window of position entries, a row per distance; so do its keys. In the product, the score of
query i and key j stands in column `j - i + I - 1` when the distances descend, and in column `i - j + L - 1` of key
j's row when they ascend. So the scores of a block are a view of the product, with rows one number shorter, and
gradients of scores are products' gradients when written through that view. Nothing but the window is gathered.
It refuses to know prefixes, softmax and which rows were put together.

Shape letters: see `cpu_runs`; W = I + L - 1 distances of a block, Q entries of the position table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.cpu_weights import compute_dtype, contiguous
from prefixbank.kernels.disentangled_positions import distances_between
from prefixbank.kernels.operands import softmax_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.cpu_runs import Block, Runs
    from prefixbank.kernels.disentangled_positions import Positions


def query_diagonals(products_EIW: Tensor, length: int) -> Tensor:
    """View [E, I, L] of the products of queries with descending distances."""
    entries, queries, width = products_EIW.shape
    return products_EIW.as_strided((entries, queries, length), (queries * width, width - 1, 1), queries - 1)


def key_diagonals(products_ELW: Tensor, queries: int) -> Tensor:
    """View [E, I, L] of the products of keys with ascending distances."""
    entries, length, width = products_ELW.shape
    return products_ELW.as_strided((entries, queries, length), (length * width, 1, width - 1), length - 1)


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores blocks; what it hands out is overwritten by the next."""

    positions: Positions
    scale: float
    scores: Tensor
    """Memory for a block's scores."""
    wide: Tensor | None
    """The same in the softmax's dtype, where that is another: three narrow scores would be rounded when added up."""
    products: Tensor
    """Memory for its products with a window."""
    entries: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    """Entries [W] of the ascending distances of each kind of block met so far."""

    @classmethod
    def over(cls, q_THD: Tensor, positions: Positions, scale: float, runs: Runs) -> Scorer:
        most = max((_products_of(block) for run in runs.each for block in run.blocks), default=0)
        narrow, wide = compute_dtype(q_THD), softmax_dtype(q_THD)
        scores, products = (q_THD.new_empty(size, dtype=narrow) for size in (runs.most_scores, most))
        return cls(
            positions, scale, scores, None if wide == narrow else scores.new_empty(scores.shape, dtype=wide), products
        )

    def score(self, block: Block, q_ELD: Tensor, k_EJD: Tensor, own_ELD: Tensor) -> Tensor:
        """Return the scores [E, I, J] of a block in the softmax's dtype; `own_ELD` are the last of the keys `k_EJD`."""
        q_EID, own_ELD, length = block.queries_of(q_ELD), block.keys_of(own_ELD), block.run.length
        scores = contiguous(self.scores, q_EID.shape[0], block.num_queries, block.run.keys)
        torch.baddbmm(scores, q_EID, block.keys_of(k_EJD).mT, beta=0, alpha=self.scale, out=scores)
        if self.wide is not None:
            scores = contiguous(self.wide, scores.shape[0], scores.shape[1], scores.shape[2]).copy_(scores)
        own_scores = scores.narrow(2, block.run.prefix, length)
        if self.positions.pos_key_QHD is not None:
            products = self._products(q_EID, self.key_window(block, q_EID.dtype))
            own_scores += query_diagonals(products, length)
        if self.positions.pos_query_QHD is not None:
            products = self._products(own_ELD, self.query_window(block, q_EID.dtype))
            own_scores += key_diagonals(products, block.num_queries)
        return scores

    def _products(self, x_EXD: Tensor, window_EWD: Tensor) -> Tensor:
        products = contiguous(self.products, x_EXD.shape[0], x_EXD.shape[1], window_EWD.shape[1])
        return torch.baddbmm(products, x_EXD, window_EWD.mT, beta=0, alpha=self.scale, out=products)

    def key_window(self, block: Block, dtype: torch.dtype) -> Tensor:
        """Entries [E, W, D] of pos_key, distances descending."""
        assert self.positions.pos_key_QHD is not None
        return _window(self.positions.pos_key_QHD, self.entries_of(block).flip(0), block, dtype)

    def query_window(self, block: Block, dtype: torch.dtype) -> Tensor:
        """Entries [E, W, D] of pos_query, distances ascending."""
        assert self.positions.pos_query_QHD is not None
        return _window(self.positions.pos_query_QHD, self.entries_of(block), block, dtype)

    def entries_of(self, block: Block) -> Tensor:
        """Entries [W] of the distances that occur in a block, ascending."""
        kind = (block.run.length, block.query, block.num_queries)
        if kind not in self.entries:
            nearest, farthest = block.query - (block.run.length - 1), block.query + block.num_queries - 1
            self.entries[kind] = distances_between(self.positions.distance_W, nearest, farthest)
        return self.entries[kind]


def _window(table_QHD: Tensor, entries_W: Tensor, block: Block, dtype: torch.dtype) -> Tensor:
    """Entries of a position table for every head and row of a block: [E, W, D]."""
    window_hWD = table_QHD.narrow(1, block.head, block.num_heads).index_select(0, entries_W).transpose(0, 1).to(dtype)
    heads, width, dim = window_hWD.shape
    return window_hWD[:, None].expand(heads, block.run.num_rows, width, dim).reshape(-1, width, dim)


def _products_of(block: Block) -> int:
    """Numbers of the larger of the two products of a block."""
    width = block.num_queries + block.run.length - 1
    return block.num_heads * block.run.num_rows * block.run.length * width
