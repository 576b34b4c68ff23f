"""The seam: transformers' attention interface, routed to the one attention op of `kernels`.

A model loaded with `attn_implementation=SEAM` calls `_attend` once per layer with the keyword argument `seam_call`
that the forward was given. This file refuses to know architectures, weights and how rows were packed.

Shape letters: T packed tokens of all rows, L layers, H heads, D head dim, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import AttentionInterface, AttentionMaskInterface

from prefixbank.kernels.attention import prefix_attention
from prefixbank.model_store.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from prefixbank.kernels.plan import BatchPlan, LayerPrefix

SEAM = "prefixbank"
"""The name under which the seam is registered with transformers."""
_MARK = "prefixbank_layer"


class SeamLayer(NamedTuple):
    """What an attention module must know of itself: encoders of transformers do not tell it."""

    number: int
    window: int
    """Largest distance to an own key that is seen; 0 for no limit."""


@dataclass(slots=True)
class SeamCall:
    """One forward's business with the seam: the rows, the prefixes, and which layers have called."""

    plan: BatchPlan
    prefixes: Sequence[LayerPrefix]
    num_calls: int = 0
    """Layers before the next one to call; a forward that begins above the first layer begins with its number."""

    def attend(self, layer: SeamLayer, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scale: float) -> Tensor:
        if layer.number != self.num_calls:
            raise BackboneError(f"layer {layer.number} called the seam as number {self.num_calls}. This is a bug.")
        self.num_calls += 1
        prefix = self.prefixes[layer.number]
        return prefix_attention(q_THD, k_THD, v_THD, prefix, self.plan, scale=scale, window=layer.window)

    def check_complete(self, num_layers: int | None = None) -> None:
        """Raise unless every layer, or each of the first `num_layers`, went through the seam exactly once, in order."""
        wanted = len(self.prefixes) if num_layers is None else num_layers
        if self.num_calls != wanted:
            raise BackboneError(f"{self.num_calls} of {wanted} layers called the seam. This is a bug.")


@dataclass(slots=True)
class RecordingCall(SeamCall):
    """A call that also keeps each layer's own keys and values."""

    keys_LTHD: list[Tensor] = field(default_factory=list)
    values_LTHD: list[Tensor] = field(default_factory=list)

    def attend(self, layer: SeamLayer, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scale: float) -> Tensor:
        self.keys_LTHD.append(k_THD)
        self.values_LTHD.append(v_THD)
        return SeamCall.attend(self, layer, q_THD, k_THD, v_THD, scale)


def mark(attention: nn.Module, layer: SeamLayer) -> None:
    """Tell an attention module which layer it is."""
    setattr(attention, _MARK, layer)


def _attend(
    module: nn.Module,
    q_1HTD: Tensor,
    k_1HTD: Tensor,
    v_1HTD: Tensor,
    attention_mask: Tensor | None,
    *,
    seam_call: SeamCall,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    if attention_mask is not None or dropout:
        raise BackboneError("the seam got an attention mask or attention dropout. This is a bug.")
    q_THD, k_THD, v_THD = (x_1HTD[0].transpose(0, 1) for x_1HTD in (q_1HTD, k_1HTD, v_1HTD))
    out_THD = seam_call.attend(getattr(module, _MARK), q_THD, k_THD, v_THD, scaling)
    return out_THD[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """Rows are kept apart by the plan; a packed batch has no padding to mask."""


AttentionInterface.register(SEAM, _attend)
AttentionMaskInterface.register(SEAM, _no_mask)
