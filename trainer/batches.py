"""Batches: which rows go together in which order, and their packed tensors.

Order is a function of seed and epoch alone, so a resumed run needs to know only where it stopped. Rows of like
length go together, shortest first: equally long neighbours that read one prompt are one matrix product on the CPU.
It refuses to know what is computed from a batch.

Shape letters: T packed tokens of all rows, R rows, K labelled tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.tasks.token_classification import NO_TARGET
from prefixbank.trainer.readers import TextExample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.backbones.packing import PackedTokens
    from prefixbank.trainer.rows import Row

POOL_BATCHES = 16
"""Rows are sorted by length within so many batches of a shuffled epoch."""
EVALUATION_TOKENS = 4096


class RowBatch(NamedTuple):
    """Packed rows on the backbone's device."""

    tokens: PackedTokens
    lengths: tuple[int, ...]
    targets: Tensor
    """int64: class of each row [R], or of each labelled token [K]."""
    read_K: Tensor
    """int64: the packed positions whose logits the targets speak of: first tokens of rows, or labelled tokens."""


def epoch_order(lengths: Sequence[int], batch_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Every row once, in batches of `batch_rows` rows of like length, shortest first in each, in seeded order."""
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


def assemble(rows: Sequence[Row], backbone: Backbone, *, slot: int, position_offset: int) -> RowBatch:
    """Lay rows end to end and say which positions the targets speak of."""
    packed = backbone.pack([PackRow(r.features.token_ids, r.features.type_ids, slot, position_offset) for r in rows])
    lengths = tuple(row.num_tokens for row in rows)
    read_K, targets = _targets(rows, lengths)
    targets_K, positions_K = (torch.from_numpy(array).to(backbone.device) for array in (targets, read_K))
    return RowBatch(packed, lengths, targets_K, positions_K)


def _targets(rows: Sequence[Row], lengths: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    targets = np.concatenate([row.targets for row in rows])
    if isinstance(rows[0].example, TextExample):
        return np.cumsum((0, *lengths[:-1]), dtype=np.int64), targets
    read_K = np.flatnonzero(targets != NO_TARGET)
    return read_K, targets[read_K]
