"""Pack: several trials through one backbone in the same packed batches, each as if it were alone.

One forward and one backward serve all: the products with frozen weights, which are nearly all of the work, do not know
whose rows they multiply. A trial's loss is the mean over its own rows and reaches its own parameters alone.
It refuses to know schedules, epochs and metrics.

Shape letters: T packed tokens of all rows, K tokens that heads read, M model width, C outputs of a head.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from prefixbank.model_store.tasks import read_positions
from prefixbank.trainer.batches import Rows, assemble, evaluation_order
from prefixbank.trainer.deep_prompt import DeepPrompt
from prefixbank.trainer.dropout import Segment, dropout, dropping
from prefixbank.trainer.prefixes import Drop, Lent, first_slots, layer_prefixes
from prefixbank.trainer.shallow_prompt import ShallowPrompt
from prefixbank.trainer.states import Room, States

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.trainer.batches import Packed
    from prefixbank.trainer.families import Item
    from prefixbank.trainer.trial import Part, StepShare, Trial


class _Rows(NamedTuple):
    """The rows of one trial in one forward."""

    trial: Trial
    part: Part
    features: list[Features]
    stream: torch.Generator | None
    """None where nothing drops out."""

    @property
    def head_dropout(self) -> float:
        return 0.0 if self.stream is None else self.part.head_dropout


@dataclass(eq=False, slots=True)
class Pack:
    """A backbone and how it runs for trials."""

    backbone: Backbone
    autocast: torch.dtype | None = None
    """Arithmetic of a backbone that is itself trained in fp32; None when it computes in its own dtype."""
    keep_states: bool = True
    """Keep what lies under the lowest prompted layer; off where the backbone moves."""
    room: Room = field(default_factory=Room)
    _states: dict[int, States] = field(default_factory=dict)

    @property
    def kept_bytes(self) -> int:
        """Host memory of kept states."""
        return self.room.used

    def losses(self, trials: Sequence[Trial], shares: Sequence[StepShare]) -> list[Tensor]:
        """Each trial's loss over its own items, dropouts active."""
        rows = [
            _Rows(trial, share.part, [row for item in share.items for row in item.rows], share.stream)
            for trial, share in zip(trials, shares, strict=True)
        ]
        return [
            share.part.family.loss(logits_KC, share.items)
            for share, logits_KC in zip(shares, self._logits(rows), strict=True)
        ]

    @torch.inference_mode()
    def predict(self, trial: Trial, part: Part, items: Sequence[Item]) -> list[list[NDArray[np.float32]]]:
        """Logits of every row of every item as the server makes them: [C], or [K, C] of the tokens its head reads."""
        features = [row for item in items for row in item.rows]
        found: dict[int, NDArray[np.float32]] = {}
        for places in evaluation_order([row.num_tokens for row in features]):
            rows = _Rows(trial, part, [features[place] for place in places], None)
            [logits_KC] = self._logits([rows])
            by_row = _by_row(logits_KC.float().cpu(), rows)  # one copy from the device, not one a row
            found |= {place: one.numpy() for place, one in zip(places, by_row, strict=True)}
        in_order = iter(found[place] for place in range(len(features)))
        return [[next(in_order) for _ in item.rows] for item in items]

    def _logits(self, all_rows: Sequence[_Rows]) -> list[Tensor]:
        hidden_KM = self._read_states(all_rows)
        return [
            rows.part.head(states_KM, self.backbone, rows.head_dropout, rows.stream)
            for rows, states_KM in zip(all_rows, hidden_KM, strict=True)
        ]

    def _read_states(self, all_rows: Sequence[_Rows]) -> list[Tensor]:
        """The states [K, M] that each trial's head reads."""
        depth = self._common_depth(all_rows)
        lent = [_lent(rows) for rows in all_rows if isinstance(rows.trial.prompt, DeepPrompt)]
        laid_out = _laid_out(all_rows, lent)
        if depth == self.backbone.ref.num_layers:
            return [torch.cat(self._kept(depth).of(rows)) for rows in laid_out]
        packed = assemble(laid_out, self.backbone)
        hidden_TM = self._hidden(packed, all_rows, lent, laid_out, depth)
        return list(torch.split(hidden_TM.index_select(0, packed.read_K), packed.reads))

    def _hidden(
        self, packed: Packed, all_rows: Sequence[_Rows], lent: Sequence[Lent], laid_out: Sequence[Rows], depth: int
    ) -> Tensor:
        backbone = self.backbone
        prefixes = layer_prefixes(lent, backbone.ref, self.autocast or backbone.dtype, backbone.device)
        if depth:
            states = [state_TM for rows in laid_out for state_TM in self._kept(depth).of(rows)]
            return backbone.upper(torch.cat(states), packed.tokens, prefixes, depth)
        with self._autocasting(), self._dropping(all_rows, packed):
            return backbone.forward(packed.tokens, prefixes, _virtual(all_rows))

    def _common_depth(self, all_rows: Sequence[_Rows]) -> int:
        """How many layers none of the trials touches."""
        if not self.keep_states:
            return 0
        return min(_untouched_layers(rows.trial, self.backbone.ref.num_layers) for rows in all_rows)

    def _kept(self, depth: int) -> States:
        if depth not in self._states:
            self._states[depth] = States(self.backbone, depth, self.room)
        return self._states[depth]

    def _autocasting(self) -> AbstractContextManager[object]:
        return torch.autocast(self.backbone.device.type, self.autocast, enabled=self.autocast is not None)

    def _dropping(self, all_rows: Sequence[_Rows], packed: Packed) -> AbstractContextManager[object]:
        segments = [_segment(rows, span) for rows, span in zip(all_rows, packed.spans, strict=True)]
        if all(segment.stream is None for segment in segments):
            return nullcontext()
        dropouts = [module for module in self.backbone.model.modules() if isinstance(module, nn.Dropout)]
        return dropping(dropouts, segments)


def _segment(rows: _Rows, span: tuple[int, int]) -> Segment:
    asked = rows.trial.recipe.optimiser.backbone_dropout
    return Segment(*span, rows.stream if asked else None, None if isinstance(asked, bool) else asked)


def _untouched_layers(trial: Trial, num_layers: int) -> int:
    """Layers under whose output a trial changes nothing."""
    if isinstance(trial.prompt, ShallowPrompt) or trial.recipe.optimiser.backbone_dropout:
        return 0
    return num_layers if trial.prompt is None else trial.prompt.layers[0]


def _lent(rows: _Rows) -> Lent:
    prompt, section = rows.trial.prompt, rows.trial.recipe.prompt
    assert isinstance(prompt, DeepPrompt)
    if rows.stream is None or not section.dropout:
        return Lent(prompt, len(rows.features))
    return Lent(prompt, len(rows.features), Drop(section.dropout, rows.stream, section.dropout_per == "row"))


def _laid_out(all_rows: Sequence[_Rows], lent: Sequence[Lent]) -> list[Rows]:
    slots = iter(zip(first_slots(lent), lent, strict=True))
    laid_out = []
    for rows in all_rows:
        prompt, recipe = rows.trial.prompt, rows.trial.recipe
        plain = Rows(rows.features, rows.part.family.task, recipe.position_offset)
        if isinstance(prompt, ShallowPrompt):
            plain = plain._replace(num_virtual=prompt.length)
        elif isinstance(prompt, DeepPrompt):
            slot, one = next(slots)
            plain = plain._replace(first_slot=slot, slot_step=int(one.num_slots > 1))
        laid_out.append(plain)
    return laid_out


def _virtual(all_rows: Sequence[_Rows]) -> Tensor | None:
    """The shallow prompts' vectors [V, M], once per row; None where there are none."""
    parts = []
    for rows in all_rows:
        prompt, section = rows.trial.prompt, rows.trial.recipe.prompt
        if isinstance(prompt, ShallowPrompt):
            drawn = len(rows.features) if section.dropout_per == "row" else 1
            vectors_VM = prompt.values().repeat(drawn, 1)
            if rows.stream is not None:
                vectors_VM = dropout(vectors_VM, section.dropout, rows.stream)
            parts.append(vectors_VM.repeat(len(rows.features) // drawn, 1))
    return torch.cat(parts) if parts else None


def _by_row(logits_KC: Tensor, rows: _Rows) -> Sequence[Tensor]:
    task = rows.part.family.task
    if not task.is_token_level:
        return logits_KC.unbind()
    return list(torch.split(logits_KC, [len(read_positions(task, row)) for row in rows.features]))
