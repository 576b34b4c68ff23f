"""Backbone: a frozen encoder that runs packed rows, each with its own prefix.

It refuses to know tasks, tenants, stores and text; `load.py` makes one.

Shape letters: T packed tokens of all rows, R rows, L layers, H heads, D head dim, M model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.plan import NO_PROMPT_SLOT, BatchPlan, LayerPrefix
from prefixbank.model_store.backbones.packing import PackedTokens, PackRow, PositionRule, pack
from prefixbank.model_store.backbones.seam import RecordingCall, SeamCall
from prefixbank.model_store.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from prefixbank.model_store.task_prompt import BackboneRef


LEAST_TOKENS = 16
"""A matrix product of fewer rows takes another path in CPU libraries and rounds otherwise, so shorter batches are
filled up with tokens of no row: a row then has the same bits alone and in company."""


@dataclass(frozen=True, eq=False, slots=True)
class Backbone:
    """A frozen encoder. Build it with `load_backbone`: that checks that every layer goes through the seam."""

    ref: BackboneRef
    tokenizer: Tokenizer
    """Without truncation and padding, whatever its file says."""
    positions: PositionRule
    dtype: torch.dtype
    device: torch.device
    model: PreTrainedModel
    """transformers' base model, without its pooler."""
    pooler: nn.Module | None
    """The checkpoint's own pooler; None where it has none, never a random one."""
    has_token_types: bool
    """Whether the type ids of packed tokens are read; where they are not they may hold anything."""

    @property
    def fingerprint(self) -> str:
        return self.ref.fingerprint

    @property
    def max_positions(self) -> int:
        """Positions that a row and its position offset may take together."""
        return self.positions.count

    @property
    def has_pooler(self) -> bool:
        return self.pooler is not None

    def max_tokens(self, position_offset: int) -> int:
        """Longest row, special tokens included, of a task prompt with this offset."""
        return max(0, self.positions.count - position_offset)

    def position_ids(self, lengths: Sequence[int], offsets: Sequence[int]) -> NDArray[np.int64]:
        """The position ids [T] of packed rows in this backbone's own numbering."""
        return self.positions.number_plain(lengths, offsets)

    def pack(self, rows: Sequence[PackRow]) -> PackedTokens:
        """Lay `rows` end to end on this backbone's device; see `packing.pack`."""
        return pack(rows, self.positions, device=self.device)

    def forward(self, tokens: PackedTokens, prefixes: Sequence[LayerPrefix]) -> Tensor:
        """Return the last hidden states [T, M]; gradients flow to the prefix pools when they ask for them.

        Raises:
            ValueError: when the prefixes are not one per layer.
        """
        if len(prefixes) != self.ref.num_layers:
            raise ValueError(f"{len(prefixes)} layer prefixes for {self.ref.num_layers} layers")
        return self._run(tokens, SeamCall(tokens.plan, prefixes))

    def pooled(self, first_RM: Tensor) -> Tensor:
        """Apply the checkpoint's own pooler to the rows' first hidden states: [R, M] -> [R, M].

        Raises:
            BackboneError: when the checkpoint has no pooler.
        """
        if self.pooler is None:
            raise BackboneError(f"backbone {self.ref.name!r} has no pooler of its own; the head must carry one")
        pooled_RM: Tensor = self.pooler(_filled(first_RM)[:, None])
        return pooled_RM[: len(first_RM)]

    @torch.no_grad()
    def key_values(self, tokens: PackedTokens) -> Tensor:
        """Return the keys and values [L, 2, H, T, D] that each layer computes for `tokens` without any prompt."""
        lengths = tokens.plan.row_start_R1.diff().tolist()
        plan = BatchPlan.build(lengths, [NO_PROMPT_SLOT] * len(lengths), mode=tokens.plan.mode, device=self.device)
        call = RecordingCall(plan, self.no_prefixes())
        self._run(tokens, call)
        own_LTHD = zip(call.keys_LTHD, call.values_LTHD, strict=True)
        layers = [torch.stack(kv)[:, : tokens.plan.num_tokens].transpose(1, 2) for kv in own_LTHD]
        return torch.stack(layers)

    def no_prefixes(self) -> list[LayerPrefix]:
        """Layer prefixes that hold the slot of a row without a prompt and nothing else."""
        pool_H0D = torch.zeros(self.ref.num_heads, 0, self.ref.head_dim, dtype=self.dtype, device=self.device)
        nothing_1 = torch.zeros(1, dtype=torch.int32, device=self.device)
        return [LayerPrefix(pool_H0D, pool_H0D, nothing_1, nothing_1)] * self.ref.num_layers

    def _run(self, tokens: PackedTokens, call: SeamCall) -> Tensor:
        types = {"token_type_ids": _filled(tokens.type_ids_T)[None]} if self.has_token_types else {}
        output = self.model(
            input_ids=_filled(tokens.token_ids_T)[None],
            position_ids=_filled(tokens.position_ids_T)[None],
            seam_call=call,
            **types,
        )
        call.check_complete()
        hidden_TM: Tensor = output.last_hidden_state[0]
        return hidden_TM[: len(tokens.token_ids_T)]


def _filled(x: Tensor) -> Tensor:
    """Append zeros along the first dimension, up to `LEAST_TOKENS`."""
    missing = LEAST_TOKENS - len(x)
    return x if missing <= 0 else torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
