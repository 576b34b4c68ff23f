"""What a prompt run trains: a deep prompt and a linear head, all fp32, and how both begin.

It refuses to know the optimiser, the data and how a backbone computes.

Shape letters: L layers, N prompted layers, H heads, P prefix tokens, D head dim, M model width, C classes,
T tokens of the text a prompt begins from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from prefixbank.kernels.plan import LayerPrefix
from prefixbank.model_store.errors import TrainingError
from prefixbank.model_store.task_prompt import Head, HeadSpec, Pooler

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.model_store.task_prompt import BackboneRef

SLOT = 1
"""The slot of the one prompt that is trained; slot 0 is no prompt."""
HEAD_STD = 0.02


class DeepPrompt(nn.Module):
    """Keys and values put before each prompted layer's own."""

    def __init__(self, kv_N2HPD: Tensor, layers: tuple[int, ...], num_layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.num_layers = num_layers
        self.kv_N2HPD = nn.Parameter(kv_N2HPD.to(torch.float32).contiguous(), requires_grad=bool(layers))
        length = self.kv_N2HPD.shape[3]
        tables = torch.tensor([[0, 0], [0, length], [0, 0]], dtype=torch.int32, device=kv_N2HPD.device)
        self.slot_tables_3S = tables
        """First tokens and lengths of slot 0 and ours; and the lengths in a layer without a prompt."""

    def layer_prefixes(self, dtype: torch.dtype, dropout: float = 0.0) -> list[LayerPrefix]:
        """One view per layer of the backbone, in its dtype; gradients flow through them to the prompt."""
        kv_N2HPD = self.kv_N2HPD.to(dtype)
        if dropout:
            kv_N2HPD = nn.functional.dropout(kv_N2HPD, dropout)
        start, length, absent = self.slot_tables_3S.unbind()
        _, _, heads, _, dim = kv_N2HPD.shape
        empty_H0D = kv_N2HPD.new_empty(heads, 0, dim)
        prefixes = [LayerPrefix(empty_H0D, empty_H0D, start, absent)] * self.num_layers
        for layer, kv_2HPD in zip(self.layers, kv_N2HPD.unbind(), strict=True):
            prefixes[layer] = LayerPrefix(kv_2HPD[0], kv_2HPD[1], start, length)
        return prefixes

    def fold(self, dtype: torch.dtype) -> Tensor:
        """The prompt as an artifact stores it.

        Raises:
            TrainingError: a value is not finite in `dtype`.
        """
        kv_N2HPD = self.kv_N2HPD.detach().to(dtype).clone()
        if not kv_N2HPD.isfinite().all():
            raise TrainingError(f"prompt.dtype: found values beyond {dtype}, wanted float32 or bfloat16")
        return kv_N2HPD

    @torch.no_grad()
    def round_to(self, dtype: torch.dtype) -> None:
        """Round to what `fold` stores, so that what is evaluated is what is served."""
        self.kv_N2HPD.copy_(self.fold(dtype))


class LinearHead(nn.Module):
    """A classifier, and the dense layer before it where the head has its own pooler."""

    def __init__(self, width: int, num_classes: int, pooler: Pooler) -> None:
        super().__init__()
        self.kind = pooler
        self.classifier = _linear(width, num_classes)
        self.pooler = _linear(width, width) if pooler == Pooler.OWN else None

    def forward(self, hidden_M: Tensor, dropout: float = 0.0) -> Tensor:
        """Logits [..., C] of hidden states [..., M], already pooled where the backbone pools."""
        hidden_M = hidden_M.to(self.classifier.weight.dtype)
        if self.pooler is not None:
            hidden_M = torch.tanh(self.pooler(hidden_M))
        if dropout:
            hidden_M = nn.functional.dropout(hidden_M, dropout)
        logits_C: Tensor = self.classifier(hidden_M)
        return logits_C

    def fold(self) -> Head:
        """The head as an artifact stores it."""
        copies = {name: tensor.detach().clone() for name, tensor in self.named_parameters()}
        return Head(
            HeadSpec(pooler=self.kind, activation=None if self.pooler is None else "tanh"),
            copies["classifier.weight"],
            copies["classifier.bias"],
            copies.get("pooler.weight"),
            copies.get("pooler.bias"),
        )


def prompted_layers(asked: tuple[int, ...] | str, ref: BackboneRef) -> tuple[int, ...]:
    """The layers a recipe asks for.

    Raises:
        TrainingError: the backbone has no such layer.
    """
    if isinstance(asked, str):
        return tuple(range(ref.num_layers))
    if asked[-1] >= ref.num_layers:
        raise TrainingError(f"prompt.layers: found layer {asked[-1]}, wanted layers 0 to {ref.num_layers - 1}")
    return asked


def no_prompt(ref: BackboneRef, device: torch.device) -> DeepPrompt:
    """The prompt of a task that is a head alone."""
    kv_02H0D = torch.zeros(0, 2, ref.num_heads, 0, ref.head_dim, device=device)
    return DeepPrompt(kv_02H0D, (), ref.num_layers)


def from_text(kv_L2HTD: Tensor, length: int, layers: tuple[int, ...], generator: torch.Generator) -> DeepPrompt:
    """Begin from the keys and values of `length` tokens drawn from real text of the task, in their order."""
    tokens = kv_L2HTD.shape[3]
    rounds = [torch.randperm(tokens, generator=generator) for _ in range(-(-length // tokens))]
    chosen_P = torch.cat(rounds)[:length].sort().values.to(kv_L2HTD.device)
    return DeepPrompt(kv_L2HTD[list(layers)][:, :, :, chosen_P], layers, kv_L2HTD.shape[0])


def from_noise(kv_L2HTD: Tensor, length: int, layers: tuple[int, ...], generator: torch.Generator) -> DeepPrompt:
    """Begin from noise with the mean and deviation that keys and values of real text have per layer and head."""
    kv_N2HTD = kv_L2HTD[list(layers)].float()
    mean, std = kv_N2HTD.mean(3, keepdim=True), kv_N2HTD.std(3, keepdim=True)
    shape = (*kv_N2HTD.shape[:3], length, kv_N2HTD.shape[4])
    noise = torch.randn(shape, generator=generator).to(kv_L2HTD.device)
    return DeepPrompt(mean + std * noise, layers, kv_L2HTD.shape[0])


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=HEAD_STD)
    nn.init.zeros_(linear.bias)
    return linear
