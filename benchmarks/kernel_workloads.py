"""The batches that the kernel benchmark measures: tokens, row lengths, prefix lengths, and whose rows they are.

Rows come sorted by task, as a server can order them for nothing: some peers need that, ours does not mind.
It refuses to know routes and clocks.

Shape letters: T packed tokens, R rows, S slots, H heads, D head dim, N pool tokens, L own tokens and P prefix tokens
of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from prefixbank.kernels.plan import BatchPlan, LayerPrefix, Mode
from tests.kernel_cases import Case, int32

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

Mix = Literal["identical", "uniform", "zipf", "distinct"]
MIXES: tuple[Mix, ...] = ("identical", "uniform", "zipf", "distinct")
UNIFORM_TASKS = 8
ZIPF_EXPONENT = 1.5
MIXED_PREFIXES = (0, 16, 20, 128, 512)
MIXED_LENGTHS = (64.0, 0.8)
"""Median, and standard deviation of the logarithm, of a mixture of lengths."""
LONGEST = 512
PAGE = 16
"""Slots begin at multiples of this many pool tokens."""


@dataclass(frozen=True)
class Shape:
    """What a batch looks like; the numbers in it are random."""

    tokens: int
    length: int | None
    """Own tokens L of each row; None for a log-normal mixture."""
    prefix: int | None
    """Prefix tokens P of each task; None for a mixture of `MIXED_PREFIXES`."""
    mix: Mix = "distinct"
    heads: int = 16
    dim: int = 64
    dtype: torch.dtype = field(default=torch.bfloat16)

    @property
    def name(self) -> str:
        own, lent = (("mix" if x is None else x) for x in (self.length, self.prefix))
        main = f"T={self.tokens} L={own} P={lent} {self.mix}"
        other = f"H{self.heads} D{self.dim} {str(self.dtype).removeprefix('torch.')}"
        return main if other == "H16 D64 bfloat16" else f"{main} {other}"

    def lengths(self) -> list[int]:
        """Own lengths of the rows; together about `tokens`, and never more."""
        if self.length is not None:
            return [self.length] * max(1, self.tokens // self.length)
        median, sigma = MIXED_LENGTHS
        drawn = np.random.default_rng(0).lognormal(np.log(median), sigma, self.tokens).astype(int)
        lengths = np.clip(drawn, 4, min(LONGEST, self.tokens))
        return [int(length) for length in lengths[np.cumsum(lengths) <= self.tokens]]

    def tasks(self, num_rows: int) -> list[int]:
        """The task of each row, ascending from 1."""
        chance = np.random.default_rng(1)
        if self.mix == "identical":
            return [1] * num_rows
        if self.mix == "distinct":
            return list(range(1, num_rows + 1))
        num_tasks = min(num_rows, UNIFORM_TASKS) if self.mix == "uniform" else num_rows
        shares = np.arange(1, num_tasks + 1) ** -(0.0 if self.mix == "uniform" else ZIPF_EXPONENT)
        return sorted((1 + chance.choice(num_tasks, num_rows, p=shares / shares.sum())).tolist())

    def prefix_lengths(self, num_tasks: int) -> list[int]:
        """P of every slot; slot 0 is that of a row without a prompt."""
        if self.prefix is not None:
            return [0] + [self.prefix] * num_tasks
        return [0, *np.random.default_rng(2).choice(MIXED_PREFIXES, num_tasks).tolist()]


@dataclass(frozen=True)
class Batch:
    """One batch of a shape on a device, and what peers want to know about it on the host."""

    shape: Shape
    case: Case
    lengths: list[int]
    """L of each row."""
    slots: list[int]
    """Slot of each row, ascending."""
    slot_start: list[int]
    slot_length: list[int]

    @property
    def lent(self) -> list[int]:
        """P of each row."""
        return [self.slot_length[slot] for slot in self.slots]

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First token, and the one after the last, of each row."""
        return list(pairwise([0, *np.cumsum(self.lengths).tolist()]))

    @property
    def device(self) -> torch.device:
        return self.case.q_THD.device

    @property
    def flop(self) -> float:
        """Useful operations: 4 L (P + L) D H of each row."""
        pairs = sum(own * (own + lent) for own, lent in zip(self.lengths, self.lent, strict=True))
        return 4.0 * self.shape.heads * self.shape.dim * pairs

    @property
    def bytes_moved(self) -> int:
        """Least bytes of device memory: q, k, v and the output once, each read prefix once."""
        per_token = self.shape.heads * self.shape.dim * self.case.q_THD.element_size()
        prefix_tokens = sum(self.slot_length[slot] for slot in set(self.slots))
        return per_token * (4 * sum(self.lengths) + 2 * prefix_tokens)


def make_batches(shape: Shape, device: torch.device, count: int) -> list[Batch]:
    """Make `count` batches that share a plan and differ in every number, as the layers of a model do."""
    lengths = shape.lengths()
    slots = shape.tasks(len(lengths))
    slot_length = shape.prefix_lengths(max(slots))
    room = [-(-length // PAGE) * PAGE for length in slot_length]
    slot_start = [0, *np.cumsum(room)[:-1].tolist()]
    plan = BatchPlan.build(lengths, slots, mode=Mode.FULL, device=device, longest_prefix=max(slot_length))
    tables = int32(slot_start).to(device), int32(slot_length).to(device)
    batches = []
    for seed in range(count):
        qkv, pool = _numbers(shape, sum(lengths), max(sum(room), PAGE), device, seed)
        case = Case(qkv[:, 0], qkv[:, 1], qkv[:, 2], LayerPrefix(pool[0], pool[1], *tables), plan)
        batches.append(Batch(shape, case, lengths, slots, slot_start, slot_length))
    return batches


def _numbers(shape: Shape, tokens: int, pool: int, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    chance = torch.Generator(device).manual_seed(seed)
    how = {"generator": chance, "device": device, "dtype": shape.dtype}
    return (
        torch.randn(tokens, 3, shape.heads, shape.dim, **how),  # type: ignore[call-overload]
        torch.randn(2, shape.heads, pool, shape.dim, **how),  # type: ignore[call-overload]
    )


GOALS = (
    Shape(16384, 512, 0),
    Shape(16384, 128, 0),
    Shape(16384, 128, 128),
    Shape(16384, 128, 128, "identical"),
    Shape(16384, 128, 20),
)
"""Shapes that the goals speak of."""


def grid(*, quick: bool) -> Iterator[Shape]:
    """All shapes to measure, those first that matter most: whoever runs out of time stops where it stands."""
    seen: dict[Shape, None] = dict.fromkeys(GOALS)
    for mix in MIXES:
        seen |= dict.fromkeys([Shape(16384, 128, 128, mix), Shape(16384, None, None, mix)])
    yield from seen
    rest = dict.fromkeys(_quick() if quick else [*_quick(), *_full()])
    yield from (shape for shape in rest if shape not in seen)


def _quick() -> Iterator[Shape]:
    for tokens in (1024, 4096):
        yield Shape(tokens, 128, 128)
    yield from (Shape(16384, 32, 128), Shape(16384, 512, 128), Shape(16384, 128, 512))
    yield from (Shape(16384, 128, 128, dim=32), Shape(16384, 128, 128, dim=128, heads=8))
    yield Shape(16384, 128, 128, dtype=torch.float16)


def _full() -> Iterator[Shape]:
    for tokens in (16384, 4096, 1024):
        for length in (128, 512, 32, None):
            for prefix in (0, 16, 20, 128, 512, None):
                yield Shape(tokens, length, prefix)
    for length in (32, 512):
        for mix in MIXES:
            yield Shape(16384, length, 128, mix)


def rehearsal() -> Iterator[Shape]:
    """The same kinds of shapes, small enough for an interpreter."""
    small = {"heads": 2, "dim": 16, "dtype": torch.float32}
    yield Shape(48, 16, 0, **small)  # type: ignore[arg-type]
    for mix in MIXES:
        yield Shape(48, 16, 20, mix, **small)  # type: ignore[arg-type]
    yield Shape(96, None, 5, "zipf", **small)  # type: ignore[arg-type]
