"""ShallowPrompt: vectors in the place of word embeddings, before the text, at the input alone.

The baseline of the paper (Lester et al., 2021; Liu et al., 2021), done right: positions, types and layer norm are
applied once, to prompt and text together, and the head reads the text's own first token. It refuses to know how it
begins, the optimiser, and how a backbone computes.

Shape letters: P prompt tokens, M model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from prefixbank.trainer.deep_prompt import finite_in

if TYPE_CHECKING:
    from torch import Tensor


class ShallowPrompt(nn.Module):
    """One trained prompt [P, M], fp32."""

    def __init__(self, vectors_PM: Tensor) -> None:
        super().__init__()
        self.vectors_PM = nn.Parameter(vectors_PM.to(torch.float32).contiguous())

    @property
    def length(self) -> int:
        """Prompt tokens P."""
        return self.vectors_PM.shape[0]

    def values(self) -> Tensor:
        """The vectors; gradients flow to them."""
        return self.vectors_PM

    def fold(self, dtype: torch.dtype) -> Tensor:
        """The prompt as an artifact stores it.

        Raises:
            TrainingError: a value is not finite in `dtype`.
        """
        return finite_in(dtype, self.vectors_PM)

    @torch.no_grad()
    def round_to(self, dtype: torch.dtype) -> None:
        """Become what `fold` stores, so that what is evaluated is what is served."""
        self.vectors_PM.copy_(self.fold(dtype))
