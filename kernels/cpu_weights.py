"""The softmax weights of one block of rows on a CPU, and the memory that keys, values and scores take on the way.

Weights are powers of two of the scores, and what these sum up to: one pass each, where a softmax takes four. The shift
of the scores by their largest is left out while the sums stay far from what a float can hold, and made up for if not.
It refuses to know which rows were put together and what the weights are for.

Shape letters: see `cpu_runs`; N pool tokens, S slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.kernels.operands import softmax_dtype
from prefixbank.kernels.plan import Mode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from prefixbank.kernels.cpu_runs import Block, Loan, Run, Runs, Slot
    from prefixbank.kernels.operands import Operands, View

VECTOR_BYTES = 128
"""torch computes elementwise functions in steps of this or a divisor, and what is left over by other means."""
SHARE = 32768
"""torch hands elements out to threads in shares of at least so many."""


class Side(NamedTuple):
    """Keys, or values: where prefixes come from, and memory for one run."""

    pool_HND: Tensor
    times_SH: Tensor | None
    """What the stored numbers of a slot are times; None for a pool that is not quantised."""
    flat: Tensor
    dtype: torch.dtype

    def lent(self, number: int, slot: Slot) -> Tensor:
        """The prefix [H, 1, P, D] of a slot."""
        lent_H1PD = self.pool_HND[:, None, slot.start : slot.start + slot.length]
        if self.times_SH is None:
            return lent_H1PD
        return lent_H1PD.to(self.dtype) * self.times_SH[number, :, None, None, None]


@dataclass(slots=True)
class Scratch:
    """The keys and values of a run, contiguous: bf16 products lose a third of their speed to gaps."""

    slots: Mapping[int, Slot]
    sides: tuple[Side, Side]
    held: tuple[int, tuple[Loan, ...]] = (0, ())
    """J and the loans of the run that was last filled in."""

    @classmethod
    def over(
        cls, operands: Operands, slots: Mapping[int, Slot], runs: Runs, dtype: torch.dtype | None = None
    ) -> Scratch:
        """Take memory in `dtype`, by default that of the products."""
        q_THD, _, _, *pools = operands.differentiable
        times = (None, None) if operands.slot_scale_S2H is None else operands.slot_scale_S2H.unbind(1)
        size, wide = runs.most_keys * q_THD.shape[2], softmax_dtype(q_THD)
        keys, values = (
            Side(pool_HND, times_SH, q_THD.new_empty(size, dtype=dtype or compute_dtype(q_THD)), wide)
            for pool_HND, times_SH in zip(pools, times, strict=True)
        )
        return cls(slots, (keys, values))

    def filled(self, run: Run, *own: Tensor) -> list[Tensor]:
        """Return keys and values [E, J, D]; prefixes that are still there are not written again.

        Args:
            own: keys and values [H, G * L, D] of the rows' own tokens.
        """
        row = run.keys * run.dim
        strides, is_held = (run.num_rows * row, row, run.dim, 1), self.held == (run.keys, run.loans)
        own_shape = (run.heads, run.num_rows, run.length, run.dim)
        self.held = (run.keys, run.loans)
        for side, own_HXD in zip(self.sides, own, strict=True):
            first = 0
            for number, num_rows in () if is_held else run.loans:
                lent_HGPD = side.flat.as_strided((run.heads, num_rows, run.prefix, run.dim), strides, first)
                lent_HGPD.copy_(side.lent(number, self.slots[number]))
                first += num_rows * row
            side.flat.as_strided(own_shape, strides, run.prefix * run.dim).copy_(own_HXD.view(own_shape))
        return [contiguous(side.flat, run.entries, run.keys, run.dim) for side in self.sides]


class Room(NamedTuple):
    """Memory for one block's scores, taken once: fresh memory for each would cost a sixth of the products."""

    scores: Tensor
    wide: Tensor | None
    """The same in the softmax's dtype, where that is another: a narrow sum would round the weights."""
    limit: float
    """Of sums that need no shift of the scores."""

    @classmethod
    def over(cls, q_THD: Tensor, runs: Runs, dtype: torch.dtype, limit: float) -> Room:
        most, wide = runs.most_scores, softmax_dtype(q_THD)
        scores = q_THD.new_empty(_whole_shares(most, dtype.itemsize), dtype=dtype)
        return cls(scores, None if wide == dtype else q_THD.new_empty(most, dtype=wide), limit)

    def weigh(self, scores_EIJ: Tensor, sums_EI1: Tensor) -> None:
        """Replace scores, which lie at the beginning of this room, by 2 to the power of them; and sum those up."""
        size = _whole_shares(scores_EIJ.numel(), scores_EIJ.itemsize)
        self.scores.as_strided((size,), (1,)).exp2_()
        if self.wide is not None:
            scores_EIJ = contiguous(self.wide, *scores_EIJ.shape).copy_(scores_EIJ)
        torch.sum(scores_EIJ, -1, keepdim=True, out=sums_EI1)

    def can_keep(self, sums: Tensor) -> bool:
        """Whether no power overflowed, and those that underflowed are too small to count."""
        if not sums.numel():
            return True
        least, largest = torch.aminmax(sums)
        return least.item() >= 1 / self.limit and largest.item() <= self.limit


def weigh(q_EID: Tensor, k_EJD: Tensor, block: Block, view: View, room: Room, sums_EI1: Tensor) -> Tensor:
    """Return powers [E, I, J], which lie in the room until the next ones do, and put their sums where told.

    `powers / sums` is the softmax, if the room `can_keep` the sums.
    """
    scores = _scores(q_EID, k_EJD, block, view, room)
    room.weigh(scores, sums_EI1)
    return scores


def weigh_shifted(
    q_EID: Tensor, k_EJD: Tensor, block: Block, view: View, room: Room, sums_EI1: Tensor, shifts_EI1: Tensor
) -> Tensor:
    """Weigh again what `weigh` gave sums that the room cannot all keep, with powers of the scores less a shift.

    A row whose own sums can be kept has shift 0 and the bits that it had: the rows beside it are none of its business.
    """
    sums_HGI1 = sums_EI1.view(block.num_heads, block.run.num_rows, -1, 1)
    can_keep_G = ((sums_HGI1 >= 1 / room.limit) & (sums_HGI1 <= room.limit)).all(0).flatten(1).all(1)
    can_keep_E11 = can_keep_G.repeat(block.num_heads)[:, None, None]
    scores = _scores(q_EID, k_EJD, block, view, room)
    shifts_EI1.copy_(scores.amax(-1, keepdim=True).masked_fill_(can_keep_E11, 0))
    room.weigh(scores.sub_(shifts_EI1.to(scores.dtype)), sums_EI1)
    return scores


def _scores(q_EID: Tensor, k_EJD: Tensor, block: Block, view: View, room: Room) -> Tensor:
    """Write the masked scores [E, I, J], in units that exp2 takes, into the room, and return them."""
    scores = contiguous(room.scores, k_EJD.shape[0], block.num_queries, block.run.keys)
    torch.baddbmm(scores, q_EID, k_EJD.mT, beta=0, alpha=view.scale * math.log2(math.e), out=scores)
    if view.mode != Mode.FULL or view.window:
        scores[:, :, block.run.prefix :].masked_fill_(_hidden_own(block, view, scores.device), -math.inf)
    return scores


def _hidden_own(block: Block, view: View, device: torch.device) -> Tensor:
    """Say which own key (column) is hidden from which query of the block (row): bool [I, L]."""
    key = torch.arange(block.run.length, dtype=torch.int32, device=device)
    ahead = key - key.narrow(0, block.query, block.num_queries)[:, None]
    hidden = ahead > (block.run.length if view.mode == Mode.FULL else 0)
    if view.mode == Mode.PREFIX_LM:
        hidden &= key >= block.run.context
    return hidden | (ahead.abs() > view.window) if view.window else hidden


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the products: CPUs have no fast fp16, so fp32 there is both faster and closer."""
    return torch.float32 if x.dtype == torch.float16 and x.device.type == "cpu" else x.dtype


def contiguous(memory: Tensor, entries: int, rows: int, columns: int) -> Tensor:
    """View the beginning of flat memory."""
    return memory.as_strided((entries, rows, columns), (rows * columns, columns, 1))


def _whole_shares(count: int, item_bytes: int) -> int:
    """The least count from here on that leaves nothing over in any thread's share: there, numbers round otherwise.

    So a number does not depend on where in a product it comes to lie.
    """
    threads = torch.get_num_threads()
    shared = VECTOR_BYTES // item_bytes * threads
    whole = -(-count // shared) * shared
    return -(-count // SHARE) * SHARE if SHARE < whole < threads * SHARE else whole
