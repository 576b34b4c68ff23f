"""The backward of disentangled attention: which launches give which gradients, each only when needed.

Prefix keys have no positions: their gradients are plain attention's. Nothing is summed by atomics: the same batch
gives the same bits. It refuses to know validation.

Shape letters: T packed tokens, H heads, D head dim, Q entries of the position table, N pool tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.kernels.gpu.disentangled_own_gradient import differentiate_own
from prefixbank.kernels.gpu.disentangled_position_gradient import differentiate_positions
from prefixbank.kernels.gpu.disentangled_sides import sides_of
from prefixbank.kernels.gpu.disentangled_tiling import check_disentangled
from prefixbank.kernels.gpu.prefix_gradient import differentiate_prefixes
from prefixbank.kernels.gpu.softmax_gradient import save
from prefixbank.kernels.operands import View
from prefixbank.kernels.plan import Mode

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.disentangled_positions import DisentangledNeeds, Positions
    from prefixbank.kernels.operands import Operands
    from prefixbank.kernels.plan import Tiling


def backward(
    d_out_THD: Tensor,
    d_lse_TH: Tensor,
    out_THD: Tensor,
    lse_TH: Tensor,
    operands: Operands,
    positions: Positions,
    scale: float,
    tiling: Tiling,
    needs: DisentangledNeeds,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, the two position tables and the two pools; [0] where not needed.

    Slots that rows of the batch read must not overlap in the pool when its gradient is needed.
    """
    check_disentangled(operands.q_THD)
    view = View(scale, Mode.FULL, 0)
    saved, own = save(d_out_THD, d_lse_TH, out_THD, lse_TH, operands, view, tiling, needs.plain)
    by_query, by_key = sides_of(saved, positions)
    if needs.q:
        differentiate_own(saved, by_query, positions.distance_W, own.q_THD, own.q_THD.new_empty(0))
    if needs.k or needs.v:
        differentiate_own(saved, by_key, positions.distance_W, own.k_THD, own.v_THD)
    d_pos_key, d_pos_query = (
        differentiate_positions(saved, sides, positions.distance_W) if need else own.q_THD.new_empty(0)
        for sides, need in ((by_query, needs.pos_key), (by_key, needs.pos_query))
    )
    return *own, d_pos_key, d_pos_query, *differentiate_prefixes(saved, needs.plain)
