"""States: hidden states under the lowest prompted layer, computed once per row and kept in host memory.

A deep prompt that begins at layer d changes nothing below it (Liu et al., 2022, Figure 4 prompts the upper layers
alone), so neither does training: all epochs and all trials of a pack share what is here. Under a head alone that is
the whole backbone, and only the tokens that the head reads are kept.
It refuses to know prompts, heads and batches' order. Nothing is evicted: what does not fit is computed again.

Shape letters: T tokens of a row, K tokens that a head reads, M model width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prefixbank.model_store.tasks import read_positions
from prefixbank.trainer.batches import Rows, assemble

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.tasks.features import Features

DEFAULT_BYTES = 2 << 30
"""Keeps a million tokens of a model 1,024 wide in bf16. On a smaller host, rows beyond the room are computed again."""


@dataclass(slots=True)
class Room:
    """Host memory for the states of a pack's trials, whatever depths they have in common as they come and go."""

    num_bytes: int = DEFAULT_BYTES
    used: int = 0

    def take(self, num_bytes: int) -> bool:
        """Whether so much was left."""
        fits = self.used + num_bytes <= self.num_bytes
        self.used += num_bytes * fits
        return fits


class States:
    """States that enter layer `depth`, or that leave the last one where `depth` is the number of layers.

    Rows are known by identity: hand in the same objects again.
    """

    def __init__(self, backbone: Backbone, depth: int, room: Room) -> None:
        self.backbone = backbone
        self.depth = depth
        self.room = room
        self._kept: dict[tuple[int, int], tuple[Features, Tensor]] = {}

    @property
    def reads_only(self) -> bool:
        """Whether states of read tokens are all there is."""
        return self.depth == self.backbone.ref.num_layers

    @torch.inference_mode(False)  # validation fills it too, and training saves what it finds for backward
    @torch.no_grad()
    def of(self, rows: Rows) -> list[Tensor]:
        """States [T, M] of each row in order, or [K, M] where `reads_only`, on the backbone's device."""
        keys = [(id(row), rows.position_offset) for row in rows.features]
        missing = [place for place, key in enumerate(keys) if key not in self._kept]
        fresh = self._compute(rows._replace(features=[rows.features[place] for place in missing])) if missing else []
        computed = dict(zip(missing, fresh, strict=True))
        for place, states in computed.items():
            self._keep(keys[place], rows.features[place], states)
        device = self.backbone.device
        return [
            computed[place] if place in computed else self._kept[key][1].to(device) for place, key in enumerate(keys)
        ]

    def _compute(self, rows: Rows) -> list[Tensor]:
        packed = assemble([rows], self.backbone)
        hidden_TM = self.backbone.lower(packed.tokens, self.depth)
        if not self.reads_only:
            return list(torch.split(hidden_TM, [row.num_tokens for row in rows.features]))
        counts = [len(read_positions(rows.task, row)) for row in rows.features]
        return list(torch.split(hidden_TM.index_select(0, packed.read_K), counts))

    def _keep(self, key: tuple[int, int], row: Features, states: Tensor) -> None:
        if key not in self._kept and self.room.take(states.numel() * states.element_size()):
            self._kept[key] = (row, states.to("cpu", copy=True))
