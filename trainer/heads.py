"""Heads while they are trained: from hidden states to logits, fp32; a linear one, or the words of a vocabulary.

It refuses to know prompts, rows and losses.

Shape letters: K hidden states read, M model width, C outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from prefixbank.model_store.errors import TrainingError
from prefixbank.model_store.task_prompt import Head, HeadSpec, Pooler
from prefixbank.trainer.dropout import dropout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone

HEAD_STD = 0.02
"""As transformers initialises a classifier."""


class LinearHead(nn.Module):
    """A classifier, and the dense layer before it where the head has its own pooler."""

    def __init__(self, width: int, num_classes: int, pooler: Pooler) -> None:
        super().__init__()
        self.kind = pooler
        self.classifier = _linear(width, num_classes)
        self.pooler = _linear(width, width) if pooler == Pooler.OWN else None

    def forward(
        self, hidden_KM: Tensor, backbone: Backbone, share: float = 0.0, stream: torch.Generator | None = None
    ) -> Tensor:
        """Logits [K, C] of hidden states [K, M] in the backbone's dtype; `share` of their numbers drop out."""
        if self.kind == Pooler.BACKBONE:
            hidden_KM = backbone.pooled(hidden_KM.to(backbone.dtype))
        hidden_KM = hidden_KM.to(self.classifier.weight.dtype)
        if self.pooler is not None:
            hidden_KM = torch.tanh(self.pooler(hidden_KM))
        if share:
            assert stream is not None, "dropout without a stream. This is a bug."
            hidden_KM = dropout(hidden_KM, share, stream)
        logits_KC: Tensor = self.classifier(hidden_KM)
        return logits_KC

    def fold(self) -> Head:
        """The head as an artifact stores it."""
        copies = {name: _copied(tensor) for name, tensor in self.named_parameters()}
        return Head(
            HeadSpec(pooler=self.kind, activation=None if self.pooler is None else "tanh"),
            copies["classifier.weight"],
            copies["classifier.bias"],
            copies.get("pooler.weight"),
            copies.get("pooler.bias"),
        )

    @torch.no_grad()
    def begin_from(self, head: Head) -> None:
        """Take over a stored head.

        Raises:
            TrainingError: it is of another form.
        """
        if head.spec.pooler != self.kind or head.weight_CM.shape != self.classifier.weight.shape:
            found = f"a stored head {tuple(head.weight_CM.shape)} with pooler {head.spec.pooler.value}"
            wanted = f"{tuple(self.classifier.weight.shape)} with {self.kind.value}"
            raise TrainingError(f"prompt.start: found {found}, wanted {wanted}")
        self.classifier.weight.copy_(head.weight_CM)
        self.classifier.bias.copy_(head.bias_C)
        if self.pooler is not None:
            assert head.pooler_weight_MM is not None
            assert head.pooler_bias_M is not None
            self.pooler.weight.copy_(head.pooler_weight_MM)
            self.pooler.bias.copy_(head.pooler_bias_M)


class WordHead(nn.Module):
    """The rows of the backbone's vocabulary for a few words, behind the transform that stands before it; all frozen.

    Args:
        token_ids: the C words.
    """

    def __init__(self, backbone: Backbone, token_ids: Sequence[int]) -> None:
        super().__init__()
        chosen_C = torch.tensor(token_ids, device=backbone.device)
        bias_V = None if backbone.lm_head is None else backbone.lm_head.bias_V
        rows_VM = backbone.word_embedding_VM if backbone.lm_head is None else backbone.lm_head.decoder_VM
        weight_CM = rows_VM[chosen_C].detach().float()
        self.weight_CM = nn.Parameter(weight_CM, requires_grad=False)
        bias_C = weight_CM.new_zeros(len(token_ids)) if bias_V is None else bias_V[chosen_C].detach().float()
        self.bias_C = nn.Parameter(bias_C, requires_grad=False)
        self.lm_digest = None if backbone.lm_head is None else backbone.lm_head.digest

    def forward(
        self, hidden_KM: Tensor, backbone: Backbone, share: float = 0.0, stream: torch.Generator | None = None
    ) -> Tensor:
        """Logits [K, C] of the states at masks; nothing drops out of a frozen head."""
        if backbone.lm_head is not None:
            hidden_KM = backbone.lm_head.transform(hidden_KM.to(backbone.dtype))
        return nn.functional.linear(hidden_KM.to(self.weight_CM.dtype), self.weight_CM, self.bias_C)

    def fold(self) -> Head:
        """The head as an artifact stores it."""
        pooler = Pooler.NONE if self.lm_digest is None else Pooler.LM
        spec = HeadSpec(pooler=pooler, lm_digest=self.lm_digest)
        return Head(spec, _copied(self.weight_CM), _copied(self.bias_C))

    def begin_from(self, head: Head) -> None:
        """A frozen head begins where it ends."""


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=HEAD_STD)
    nn.init.zeros_(linear.bias)
    return linear


def _copied(tensor: Tensor) -> Tensor:
    """In host memory, as a task prompt's tensors are."""
    return tensor.detach().to("cpu", copy=True)
