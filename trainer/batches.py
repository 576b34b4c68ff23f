"""Batches: which items go together in which order, and the packed tensors of the rows of several trials.

Order is a function of seed and epoch alone, so a resumed run needs to know only where it stopped. Items of like
length go together, shortest first: equally long neighbours that read one prompt are one matrix product on the CPU.
It refuses to know what is computed from a batch.

Shape letters: T packed tokens of all rows, R rows, K tokens that heads read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prefixbank.kernels.plan import NO_PROMPT_SLOT
from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.tasks import read_positions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.backbones.packing import PackedTokens
    from prefixbank.model_store.tasks import TaskModule
    from prefixbank.model_store.tasks.features import Features

POOL_BATCHES = 16
"""Items are sorted by length within so many batches of a shuffled epoch."""
EVALUATION_TOKENS = 4096


class Rows(NamedTuple):
    """The rows of one trial, and how they are to be laid out."""

    features: Sequence[Features]
    task: TaskModule
    """Says which tokens a head reads."""
    position_offset: int = 0
    num_virtual: int = 0
    """Tokens of a shallow prompt before each text."""
    first_slot: int = NO_PROMPT_SLOT
    slot_step: int = 0
    """1 where every row reads a slot of its own."""


class Packed(NamedTuple):
    """Rows of several trials on the backbone's device."""

    tokens: PackedTokens
    read_K: Tensor
    """int64: the packed tokens whose states heads read."""
    reads: list[int]
    """How many of the K belong to each trial."""
    spans: list[tuple[int, int]]
    """Each trial's packed tokens: first and end."""


def epoch_order(lengths: Sequence[int], batch_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Every item once, in batches of `batch_rows` of like length, shortest first in each, in seeded order."""
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(len(lengths))
    pool = batch_rows * POOL_BATCHES
    batches: list[list[int]] = []
    for first in range(0, len(shuffled), pool):
        alike = sorted(shuffled[first : first + pool].tolist(), key=lambda row: lengths[row])
        batches += [alike[start : start + batch_rows] for start in range(0, len(alike), batch_rows)]
    return [batches[index] for index in random.permutation(len(batches))]


def evaluation_order(lengths: Sequence[int], most_tokens: int = EVALUATION_TOKENS) -> Iterator[list[int]]:
    """Every row once, shortest first, in batches of at most `most_tokens` tokens or one row."""
    batch: list[int] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and tokens + lengths[row] > most_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += lengths[row]
    if batch:
        yield batch


def assemble(shares: Sequence[Rows], backbone: Backbone) -> Packed:
    """Lay the rows of all trials end to end and say which of their tokens heads read."""
    packed: list[PackRow] = []
    read_K: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    reads, spans, end = [], [], 0
    for share in shares:
        begin, first_read = end, len(read_K)
        for number, row in enumerate(share.features):
            slot = share.first_slot + number * share.slot_step
            packed.append(
                PackRow(row.token_ids, row.type_ids, slot, share.position_offset, num_virtual=share.num_virtual)
            )
            read_K.append(read_positions(share.task, row) + (end + share.num_virtual))
            end += row.num_tokens + share.num_virtual
        reads.append(sum(map(len, read_K[first_read:])))
        spans.append((begin, end))
    device = backbone.device
    return Packed(backbone.pack(packed), torch.from_numpy(np.concatenate(read_K)).to(device), reads, spans)
