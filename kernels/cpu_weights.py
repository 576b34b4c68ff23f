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

from prefixbank.kernels.cpu_runs import Packed
from prefixbank.kernels.operands import softmax_dtype
from prefixbank.kernels.plan import Mode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from prefixbank.kernels.cpu_runs import Block, Loan, Run, Slot
    from prefixbank.kernels.operands import Operands, View

VECTOR_BYTES = 128
"""torch computes elementwise functions in steps of this or a divisor, and what is left over by other means."""
SHARE = 32768
"""torch hands elements out to threads in shares of at least so many."""


class Side(NamedTuple):
    """Keys, or values: where they come from, and memory for those of one run."""

    pool_HND: Tensor
    times_SH: Tensor | None
    """What the stored numbers of a slot are times; None for a pool that is not quantised."""
    own: Packed
    flat: Tensor

    def lent(self, number: int, slot: Slot) -> Tensor:
        """The prefix [H, 1, P, D] of a slot."""
        (heads, _, dim), (head, token, one) = self.pool_HND.shape, self.pool_HND.stride()
        first = self.pool_HND.storage_offset() + slot.start * token
        lent_H1PD = self.pool_HND.as_strided((heads, 1, slot.length, dim), (head, head, token, one), first)
        if self.times_SH is None:
            return lent_H1PD
        return lent_H1PD.to(softmax_dtype(self.own.x_THX)) * self.times_SH[number, :, None, None, None]


@dataclass(slots=True)
class Scratch:
    """The keys and values of a run, contiguous: bf16 products lose a third of their speed to gaps."""

    slots: Mapping[int, Slot]
    sides: tuple[Side, Side]
    held: tuple[int, tuple[Loan, ...]] = (0, ())
    """J and the loans of the run that was last filled in."""

    @classmethod
    def over(cls, operands: Operands, slots: Mapping[int, Slot], runs: Sequence[Run]) -> Scratch:
        q_THD, k_THD, v_THD, pool_k, pool_v = operands.differentiable
        size = max((run.entries * run.keys for run in runs), default=0) * q_THD.shape[2]
        keys, values = (q_THD.new_empty(size, dtype=compute_dtype(q_THD)) for _ in range(2))
        times = (None, None) if operands.slot_scale_S2H is None else operands.slot_scale_S2H.unbind(1)
        sides = Side(pool_k, times[0], Packed.over(k_THD), keys), Side(pool_v, times[1], Packed.over(v_THD), values)
        return cls(slots, sides)

    def filled(self, run: Run) -> list[Tensor]:
        """Return keys and values [E, J, D]; prefixes that are still there are not written again."""
        dim, row = run.dim, run.keys * run.dim
        strides, is_held = (run.num_rows * row, row, dim, 1), self.held == (run.keys, run.loans)
        self.held = (run.keys, run.loans)
        for side in self.sides:
            first = 0
            for number, num_rows in () if is_held else run.loans:
                lent_HGPD = side.flat.as_strided((run.heads, num_rows, run.prefix, dim), strides, first)
                lent_HGPD.copy_(side.lent(number, self.slots[number]))
                first += num_rows * row
            own_HGLD = side.own.of(run)
            side.flat.as_strided(own_HGLD.shape, strides, run.prefix * dim).copy_(own_HGLD)
        return [contiguous(side.flat, run.entries, run.keys, dim) for side in self.sides]


class Weights(NamedTuple):
    """`powers / sums` is the softmax of a block."""

    powers_EIJ: Tensor
    """exp2(scores - shift), in the dtype of the products."""
    sums_EI1: Tensor
    """Of the powers, in the dtype of the softmax."""
    shift_EI1: Tensor | None
    """None for no shift."""

    def log_sum_exp(self) -> Tensor:
        """Natural log of the softmax's denominator [E, I, 1]."""
        logs = self.sums_EI1.log()
        return logs if self.shift_EI1 is None else logs.add_(self.shift_EI1, alpha=math.log(2))


class Room(NamedTuple):
    """Memory for one block's scores, taken once: fresh memory for each would cost a sixth of the products."""

    scores: Tensor
    wide: Tensor | None
    """The same in the softmax's dtype, where that is another: a narrow sum would round the weights."""
    limit: float
    """Sums from 1 / limit to limit need no shift: no power overflows, and one that underflows is too small to count."""

    @classmethod
    def over(cls, q_THD: Tensor, runs: Sequence[Run], limit: float) -> Room:
        most, narrow, wide = (
            max((run.most_scores for run in runs), default=0),
            compute_dtype(q_THD),
            softmax_dtype(q_THD),
        )
        scores = q_THD.new_empty(_whole_shares(most, narrow.itemsize), dtype=narrow)
        return cls(scores, None if wide == narrow else q_THD.new_empty(most, dtype=wide), limit)

    def powers(self, scores_EIJ: Tensor) -> Tensor:
        """Replace the scores, which lie at the beginning of this room, by 2 to the power of them."""
        size = _whole_shares(scores_EIJ.numel(), scores_EIJ.itemsize)
        self.scores.as_strided((size,), (1,)).exp2_()
        return scores_EIJ

    def sum_up(self, powers_EIJ: Tensor, sums_EI1: Tensor) -> None:
        if self.wide is not None:
            powers_EIJ = contiguous(self.wide, *powers_EIJ.shape).copy_(powers_EIJ)
        torch.sum(powers_EIJ, -1, keepdim=True, out=sums_EI1)


def weigh(q_EID: Tensor, k_EJD: Tensor, block: Block, view: View, room: Room, sums_EI1: Tensor) -> Weights:
    """Return the weights of a block; the sums lie where told, and the powers in the room until the next ones do."""
    powers = room.powers(_scores(q_EID, k_EJD, block, view, room))
    room.sum_up(powers, sums_EI1)
    least, largest = torch.aminmax(sums_EI1)
    if least.item() >= 1 / room.limit and largest.item() <= room.limit:
        return Weights(powers, sums_EI1, None)
    scores = _scores(q_EID, k_EJD, block, view, room)
    shift = _shift(scores, sums_EI1, block, room.limit)
    powers = room.powers(scores.sub_(shift))
    room.sum_up(powers, sums_EI1)
    return Weights(powers, sums_EI1, shift)


def _shift(scores_EIJ: Tensor, sums_EI1: Tensor, block: Block, limit: float) -> Tensor:
    """The largest scores [E, I, 1] of the rows that need a shift, else 0: a row's bits are its own matter."""
    sums_HGI1 = sums_EI1.view(block.num_heads, block.run.num_rows, -1, 1)
    can_stay_G = ((sums_HGI1 >= 1 / limit) & (sums_HGI1 <= limit)).all(0).flatten(1).all(1)
    return scores_EIJ.amax(-1, keepdim=True).masked_fill_(can_stay_G.repeat(block.num_heads)[:, None, None], 0)


def _scores(q_EID: Tensor, k_EJD: Tensor, block: Block, view: View, room: Room) -> Tensor:
    """Write the masked scores [E, I, J], in units that exp2 takes, into the room, and return them."""
    scores = contiguous(room.scores, q_EID.shape[0], q_EID.shape[1], k_EJD.shape[1])
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
