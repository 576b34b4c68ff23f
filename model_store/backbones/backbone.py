"""Backbone: a frozen encoder that runs packed rows, each with its own prefix.

It refuses to know tasks, tenants, stores and text; `load.py` makes one.

Shape letters: T packed tokens of all rows, R rows, V virtual tokens of all rows (the vocabulary in a name of weights),
L layers, H heads, D head dim, M model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from prefixbank.kernels.plan import NO_PROMPT_SLOT, BatchPlan, Bucket, LayerPrefix
from prefixbank.model_store.backbones.filling import filled
from prefixbank.model_store.backbones.layer_cut import resumed, states_before
from prefixbank.model_store.backbones.packing import PackedTokens, PackRow, PositionRule, pack
from prefixbank.model_store.backbones.seam import RecordingCall, SeamCall
from prefixbank.model_store.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from prefixbank.model_store.backbones.lm_head import LmHead
    from prefixbank.model_store.task_prompt import BackboneRef


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
    layers_path: str
    """Where in `model` the list of layers lies."""
    mask_id: int | None = None
    """The token that the backbone was taught to fill in; None where the tokenizer has none."""
    lm_head: LmHead | None = None
    """What stands before the backbone's vocabulary; None where the checkpoint has none, never a random one."""

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

    def pack(self, rows: Sequence[PackRow]) -> PackedTokens:
        """Lay `rows` end to end on this backbone's device; see `packing.pack`."""
        return pack(rows, self.positions, device=self.device)

    @property
    def word_embedding_VM(self) -> Tensor:
        """The frozen vector of every token id: what a shallow prompt stands in the place of.

        Raises:
            BackboneError: when the backbone's word embeddings are not as wide as the model.
        """
        weight_VM = self.model.get_input_embeddings().get_parameter("weight")
        if weight_VM.shape[1] != self.ref.width:
            raise BackboneError(
                f"backbone {self.ref.name!r} has word embeddings of width {weight_VM.shape[1]} and is {self.ref.width} "
                f"wide: it takes neither shallow prompts nor verbalizer heads"
            )
        return weight_VM

    def forward(
        self, tokens: PackedTokens, prefixes: Sequence[LayerPrefix], virtual_VM: Tensor | None = None
    ) -> Tensor:
        """Return the last hidden states [T, M]; gradients flow to the prefix pools and to `virtual_VM`.

        Args:
            virtual_VM: what stands in the place of word embeddings at `tokens.virtual_V`, in that order. Positions,
                types and the norm of the embeddings come on top, once, as for every token.

        Raises:
            ValueError: when the prefixes are not one per layer, or the vectors not one per virtual token.
            BackboneError: when the backbone takes no virtual tokens.
        """
        if len(prefixes) != self.ref.num_layers:
            raise ValueError(f"{len(prefixes)} layer prefixes for {self.ref.num_layers} layers")
        return self._run(tokens, SeamCall(tokens.plan, prefixes), virtual_VM)

    @torch.no_grad()
    def lower(self, tokens: PackedTokens, depth: int) -> Tensor:
        """Return the states [T, M] that enter layer `depth` without any prompt, whatever the rows' slots.

        At the number of layers, the last hidden states, as `forward` returns them. Rows with virtual tokens have none:
        ValueError.
        """
        call = SeamCall(tokens.plan, self._no_prefixes_of(tokens))
        if depth == self.ref.num_layers:
            return self._run(tokens, call)
        inputs = self._inputs(tokens, call)
        hidden_1TM = states_before(self.model, self.layers_path, depth, lambda cut: cut(**inputs))
        call.check_complete(depth)
        return hidden_1TM[0, : len(tokens.token_ids_T)]

    def upper(self, hidden_TM: Tensor, tokens: PackedTokens, prefixes: Sequence[LayerPrefix], depth: int) -> Tensor:
        """Return the last hidden states [T, M] from the states that enter layer `depth`: the rest of `forward`.

        `prefixes` are one per layer, and those below `depth` are not read. `upper(lower(tokens, depth), ...)` has the
        bits of `forward` for rows of the same `tokens` without a prompt below `depth`.
        """
        if depth == self.ref.num_layers:
            return hidden_TM
        call = SeamCall(tokens.plan, prefixes, num_calls=depth)
        cut = resumed(self.model, self.layers_path, depth, filled(hidden_TM)[None])
        output = cut(**self._inputs(tokens, call))
        call.check_complete()
        last_TM: Tensor = output.last_hidden_state[0]
        return last_TM[: len(hidden_TM)]

    def pooled(self, first_RM: Tensor) -> Tensor:
        """Apply the checkpoint's own pooler to the rows' first hidden states: [R, M] -> [R, M].

        Raises:
            BackboneError: when the checkpoint has no pooler.
        """
        if self.pooler is None:
            raise BackboneError(f"backbone {self.ref.name!r} has no pooler of its own; the head must carry one")
        pooled_RM: Tensor = self.pooler(filled(first_RM)[:, None])
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

    def no_prefixes(self, num_slots: int = 1) -> list[LayerPrefix]:
        """Layer prefixes that hold nothing: every one of their slots is that of a row without a prompt."""
        pool_H0D = torch.zeros(self.ref.num_heads, 0, self.ref.head_dim, dtype=self.dtype, device=self.device)
        nothing_S = torch.zeros(num_slots, dtype=torch.int32, device=self.device)
        return [LayerPrefix(pool_H0D, pool_H0D, nothing_S, nothing_S)] * self.ref.num_layers

    def _no_prefixes_of(self, tokens: PackedTokens) -> list[LayerPrefix]:
        """No prefixes, for any slot that the rows name: the plan stays as it is, and with it the bits."""
        return self.no_prefixes(num_slots=1 + int(tokens.plan.bucket_B5[:, Bucket._fields.index("slot")].max()))

    def _run(self, tokens: PackedTokens, call: SeamCall, virtual_VM: Tensor | None = None) -> Tensor:
        output = self.model(**self._inputs(tokens, call, virtual_VM))
        call.check_complete()
        hidden_TM: Tensor = output.last_hidden_state[0]
        return hidden_TM[: len(tokens.token_ids_T)]

    def _inputs(self, tokens: PackedTokens, call: SeamCall, virtual_VM: Tensor | None = None) -> dict[str, Any]:
        """What the model is called with: token ids, or their vectors where some of them are virtual."""
        num_vectors = 0 if virtual_VM is None else len(virtual_VM)
        if num_vectors != tokens.virtual_V.numel():
            raise ValueError(f"{num_vectors} vectors for {tokens.virtual_V.numel()} virtual tokens")
        inputs = {"position_ids": filled(tokens.position_ids_T)[None], "seam_call": call}
        if self.has_token_types:
            inputs["token_type_ids"] = filled(tokens.type_ids_T)[None]
        if virtual_VM is None or not num_vectors:
            return {"input_ids": filled(tokens.token_ids_T)[None], **inputs}
        words_TM = functional.embedding(tokens.token_ids_T, self.word_embedding_VM)
        embeds_TM = words_TM.index_copy(0, tokens.virtual_V, virtual_VM.to(words_TM.dtype))
        return {"inputs_embeds": filled(embeds_TM)[None], **inputs}
