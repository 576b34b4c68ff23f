"""DeepPrompt: keys and values before each prompted layer's own, fp32, as an embedding or through an MLP.

Both are one tensor to whoever reads `values`, and are stored as one (Liu et al., 2022, section 3.2: an embedding or an
MLP, whichever does better on the task). It refuses to know how it begins, the optimiser, and how a backbone computes.

Shape letters: N prompted layers, H heads, P prefix tokens, D head dim, M model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from prefixbank.model_store.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING_STD = 0.02
"""As transformers initialises what P-tuning v2 adds to a model."""


class DeepPrompt(nn.Module):
    """One trained prefix.

    Args:
        kv_N2HPD: where it begins.
        layers: the N prompted layers, ascending.
        mlp: reparameterisation; None trains the keys and values themselves.
    """

    def __init__(self, kv_N2HPD: Tensor, layers: tuple[int, ...], mlp: Mlp | None = None) -> None:
        super().__init__()
        self.layers = layers
        self.mlp = mlp
        self.kv_N2HPD = nn.Parameter(kv_N2HPD.to(torch.float32).contiguous(), requires_grad=mlp is None)

    @property
    def length(self) -> int:
        """Prefix tokens P."""
        return self.kv_N2HPD.shape[3]

    def values(self) -> Tensor:
        """Keys and values [N, 2, H, P, D], fp32; gradients flow to what is trained."""
        if self.mlp is None:
            return self.kv_N2HPD
        layers, _, heads, length, dim = self.kv_N2HPD.shape
        moved_PNHD = self.mlp().view(length, layers, 2, heads, dim)
        kv_N2HPD: Tensor = self.kv_N2HPD + moved_PNHD.permute(1, 2, 3, 0, 4)
        return kv_N2HPD

    @torch.no_grad()
    def fold(self, dtype: torch.dtype) -> Tensor:
        """The prefix as an artifact stores it.

        Raises:
            TrainingError: a value is not finite in `dtype`.
        """
        return finite_in(dtype, self.values())

    @torch.no_grad()
    def round_to(self, dtype: torch.dtype) -> None:
        """Become what `fold` stores, so that what is evaluated is what is served."""
        folded = self.fold(dtype)
        self.mlp = None
        self.kv_N2HPD.copy_(folded)


class Mlp(nn.Module):
    """Embedding, linear, tanh, linear: [P, M] to [P, 2 N H D]; what P-tuning v2 calls the prefix projection.

    Args:
        is_still: begin with an output of zero, for a prompt that begins elsewhere; otherwise as published.
    """

    def __init__(self, length: int, width: int, hidden: int, outputs: int, *, is_still: bool) -> None:
        super().__init__()
        self.embedding_PM = nn.Parameter(torch.randn(length, width) * EMBEDDING_STD)
        self.rise = nn.Linear(width, hidden)
        self.fall = nn.Linear(hidden, outputs)
        for linear in (self.rise, self.fall):
            nn.init.normal_(linear.weight, std=EMBEDDING_STD)
            nn.init.zeros_(linear.bias)
        if is_still:
            nn.init.zeros_(self.fall.weight)

    def forward(self) -> Tensor:
        moved: Tensor = self.fall(torch.tanh(self.rise(self.embedding_PM)))
        return moved


def finite_in(dtype: torch.dtype, values: Tensor) -> Tensor:
    """A copy in `dtype`.

    Raises:
        TrainingError: a value is not finite in it.
    """
    copied = values.detach().to(dtype).clone()
    if not copied.isfinite().all():
        raise TrainingError(f"prompt.dtype: found values beyond {dtype}, wanted float32 or bfloat16")
    return copied
