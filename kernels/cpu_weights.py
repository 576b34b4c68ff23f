"""The softmax weights of one block of rows on a CPU, and the memory that keys, values and scores take on the way.

Weights are powers of two of the scores, and what these sum up to: one pass each, where a softmax takes four. The shift
of the scores by their largest is left out while the sums stay far from what a float can hold, and made up for if not.
It refuses to know which rows were put together and what the weights are for.

Shape letters: see `cpu_groups`; N pool tokens, S slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.kernels.operands import softmax_dtype
from prefixbank.kernels.plan import Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from prefixbank.kernels.cpu_groups import Block, Loan, Run
    from prefixbank.kernels.operands import Operands, View

VECTOR_BYTES = 128
"""torch computes elementwise functions in steps of this or a divisor, and what is left over by other means."""
SHARE = 32768
"""torch hands elements out to threads in shares of at least so many."""
LEAST_SUM, LARGEST_SUM = 2.0**-64, 2.0**64
"""Sums of powers that need no shift: no power overflows, and one that underflows is too small to count."""


@dataclass(slots=True)
class Scratch:
    """The keys (or values) of a run, contiguous: bf16 products lose a third of their speed to gaps."""

    pool_HND: Tensor
    own_HTD: Tensor
    times_SH: Tensor | None
    """What the stored numbers of a slot are times; None for a pool that is not quantised."""
    flat: Tensor
    held: tuple[int, tuple[Loan, ...]] = (0, ())
    """J and the prefixes of what was last filled in."""

    @classmethod
    def pair(cls, operands: Operands, runs: Sequence[Run]) -> tuple[Scratch, Scratch]:
        """One for keys and one for values."""
        q_THD, k_THD, v_THD, pool_k, pool_v = operands.differentiable
        most, dtype = max((run.keys * run.num_rows for run in runs), default=0), compute_dtype(q_THD)
        keys, values = q_THD.new_empty(2, most * q_THD.shape[1] * q_THD.shape[2], dtype=dtype).unbind()
        times = (None, None) if operands.slot_scale_S2H is None else operands.slot_scale_S2H.unbind(1)
        return cls(pool_k, k_THD.transpose(0, 1), times[0], keys), cls(pool_v, v_THD.transpose(0, 1), times[1], values)

    def filled(self, run: Run) -> Tensor:
        """Return [E, J, D]; a prefix that the scratch still holds is not written again."""
        heads, _, dim = self.pool_HND.shape
        entries_EJD = contiguous(self.flat, heads * run.num_rows, run.keys, dim)
        whole = entries_EJD if run.num_rows == 1 else entries_EJD.view(heads, run.num_rows, run.keys, dim)
        own = run.of(self.own_HTD)
        if self.held == (run.keys, run.loans) or not run.prefix:
            whole.narrow(-2, run.prefix, run.length).copy_(own)
        else:
            torch.cat((self._lent(run), own), -2, out=whole)
        self.held = (run.keys, run.loans)
        return entries_EJD

    def _lent(self, run: Run) -> Tensor:
        """The prefixes [H, P, D] of one row, [H, G, P, D] of several."""
        one = run.loans[0]
        if run.num_rows == 1:
            return self._prefix(one, run.prefix)
        if run.loans.count(one) == run.num_rows:
            return self._prefix(one, run.prefix)[:, None].expand(-1, run.num_rows, -1, -1)
        return torch.stack([self._prefix(loan, run.prefix) for loan in run.loans], 1)

    def _prefix(self, loan: Loan, length: int) -> Tensor:
        stored_HPD = self.pool_HND.narrow(1, loan.start, length)
        if self.times_SH is None:
            return stored_HPD
        return stored_HPD.to(softmax_dtype(self.own_HTD)) * self.times_SH[loan.slot, :, None, None]


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

    @classmethod
    def over(cls, q_THD: Tensor, runs: Sequence[Run]) -> Room:
        most, narrow, wide = (
            max((run.most_scores for run in runs), default=0),
            compute_dtype(q_THD),
            softmax_dtype(q_THD),
        )
        scores = q_THD.new_empty(_whole_shares(most, narrow.itemsize), dtype=narrow)
        return cls(scores, None if wide == narrow else q_THD.new_empty(most, dtype=wide))

    def powers(self, scores_EIJ: Tensor) -> Tensor:
        """Replace the scores, which lie at the beginning of this room, by 2 to the power of them."""
        self.scores.narrow(0, 0, _whole_shares(scores_EIJ.numel(), scores_EIJ.itemsize)).exp2_()
        return scores_EIJ

    def sums(self, powers_EIJ: Tensor) -> Tensor:
        if self.wide is not None:
            powers_EIJ = contiguous(self.wide, *powers_EIJ.shape).copy_(powers_EIJ)
        return powers_EIJ.sum(-1, keepdim=True)


def weigh(q_EID: Tensor, k_EJD: Tensor, block: Block, view: View, room: Room) -> Weights:
    """Return the weights of a block; they lie in the room until the next ones do."""
    powers = room.powers(_scores(q_EID, k_EJD, block, view, room))
    sums = room.sums(powers)
    least, largest = torch.aminmax(sums)
    if least.item() >= LEAST_SUM and largest.item() <= LARGEST_SUM:
        return Weights(powers, sums, None)
    scores = _scores(q_EID, k_EJD, block, view, room)
    shift = _shift(scores, sums, block)
    powers = room.powers(scores.sub_(shift))
    return Weights(powers, room.sums(powers), shift)


def _shift(scores_EIJ: Tensor, sums_EI1: Tensor, block: Block) -> Tensor:
    """The largest scores [E, I, 1] of the rows that need a shift, else 0: a row's bits are its own matter."""
    sums_HGI1 = sums_EI1.view(block.num_heads, block.run.num_rows, -1, 1)
    can_stay_G = ((sums_HGI1 >= LEAST_SUM) & (sums_HGI1 <= LARGEST_SUM)).all(0).flatten(1).all(1)
    return scores_EIJ.amax(-1, keepdim=True).masked_fill_(can_stay_G.repeat(block.num_heads)[:, None, None], 0)


def _scores(q_EID: Tensor, k_EJD: Tensor, block: Block, view: View, room: Room) -> Tensor:
    """Write the masked scores [E, I, J], in units that exp2 takes, into the room, and return them."""
    scores = contiguous(room.scores, len(q_EID), block.num_queries, block.run.keys)
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
