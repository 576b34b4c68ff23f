"""PoolBytes: what the parts of a PromptPool cost, and how many of each a budget pays for.

It refuses to know devices, tensors and prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from prefixbank.serving.staging import ALIGNMENT

if TYPE_CHECKING:
    import torch

    from prefixbank.model_store.task_prompt import BackboneRef

MAX_SLOTS = 65_536
TABLE_SHARE = 1 / 64
"""Part of a budget for the slot tables. They take more only where prompts of all layers need more slots."""


class Sizes(NamedTuple):
    """How much of each a pool has."""

    num_tokens: int
    num_rows: int
    num_slots: int
    """The slot of no prompt included."""


@dataclass(frozen=True, slots=True)
class PoolBytes:
    """Bytes of one of each."""

    layers: int
    token: int
    """A key and a value of one layer, all heads."""
    row: int
    """A row of a head and its bias, or a vector of a shallow prompt."""
    slot: int
    """In the tables of all layers: start and length and, where prefixes are quantised, two scales per head."""

    @classmethod
    def of(cls, backbone: BackboneRef, stored: torch.dtype, *, is_quantised: bool) -> PoolBytes:
        layers, heads = backbone.num_layers, backbone.num_heads
        numbers = 2 + (2 * heads if is_quantised else 0)
        token = 2 * heads * backbone.head_dim * stored.itemsize
        return cls(layers, token, row=4 * (backbone.width + 1), slot=4 * layers * numbers)

    def sizes(self, budget_bytes: int, head_share: float) -> Sizes:
        """What a budget pays for. Prefixes and tables share what is not for heads."""
        prefix_bytes = int(budget_bytes * (1 - head_share))
        num_rows = max(int(budget_bytes * head_share) // self.row, 1)
        smallest_prompt = self.layers * ALIGNMENT * self.token + self.slot
        num_slots = 1 + max(int(budget_bytes * TABLE_SHARE) // self.slot, prefix_bytes // smallest_prompt, 1)
        num_slots = min(num_slots, num_rows + 1, MAX_SLOTS)
        num_tokens = (prefix_bytes - num_slots * self.slot) // self.token // ALIGNMENT * ALIGNMENT
        return Sizes(max(num_tokens, ALIGNMENT), num_rows, num_slots)

    def total(self, used: Sizes) -> int:
        return used.num_tokens * self.token + used.num_rows * self.row + used.num_slots * self.slot
