"""The backward: gradients of own queries, keys and values, and of the prefixes, each computed only when needed.

One small launch for the statistics of each softmax, then one launch per kind of gradient. Nothing is summed by
atomics: the same batch gives the same bits. It refuses to know validation, and the forward's splits of a tile's keys.

Shape letters: T packed tokens, H heads, D head dim, N pool tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.kernels.gpu.key_gradient import differentiate_keys
from prefixbank.kernels.gpu.prefix_gradient import differentiate_prefixes
from prefixbank.kernels.gpu.query_gradient import differentiate_queries
from prefixbank.kernels.gpu.softmax_gradient import save

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.operands import Needs, Operands, View
    from prefixbank.kernels.plan import Tiling


def backward(
    d_out_THD: Tensor,
    d_lse_TH: Tensor,
    out_THD: Tensor,
    lse_TH: Tensor,
    operands: Operands,
    view: View,
    tiling: Tiling,
    needs: Needs,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and the two pools; one that is not needed is an empty tensor.

    Slots that rows of the batch read must not overlap in the pool when its gradient is needed.
    """
    saved, own = save(d_out_THD, d_lse_TH, out_THD, lse_TH, operands, view, tiling, needs)
    if needs.q:
        differentiate_queries(saved, own.q_THD)
    if needs.k or needs.v:
        differentiate_keys(saved, own)
    d_pool_k_HND, d_pool_v_HND = differentiate_prefixes(saved, needs)
    return *own, d_pool_k_HND, d_pool_v_HND
