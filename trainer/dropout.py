"""Dropout with a stream of random numbers per trial: what a trial draws does not depend on who shares its batch.

A trial draws in a fixed order: its prompt, then the backbone's dropouts in the order of the forward, then its head.
It refuses to know trials, rows and what is computed.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


class Segment(NamedTuple):
    """The packed tokens of one trial and where it draws from."""

    begin: int
    end: int
    stream: torch.Generator | None
    """None: nothing drops out of these."""
    share: float | None = None
    """None: as much as each dropout of the backbone says."""


def stream_of(seed: int, step: int, device: torch.device) -> torch.Generator:
    """A stream of its own for every seed (below 2^31) and step.

    The CPU's generator takes the low 32 bits of a seed: both numbers are mixed into those by numpy's `SeedSequence`.
    """
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))


def dropout(x: Tensor, share: float, stream: torch.Generator) -> Tensor:
    """Zero about `share` of the numbers and scale the others, so that the expectation stays."""
    if not share:
        return x
    kept = torch.rand(x.shape, generator=stream, device=x.device) >= share
    return x * kept / (1 - share)


@contextmanager
def dropping(dropouts: Sequence[nn.Dropout], segments: Sequence[Segment]) -> Iterator[None]:
    """Make a backbone's dropouts act on packed states [1, T, M], each segment with its own stream.

    Segments lie end to end from the first token on; tokens behind the last are left as they are.
    """

    def act(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        assert isinstance(module, nn.Dropout)
        parts = [_dropped(output[:, one.begin : one.end], one, module.p) for one in segments]
        return torch.cat([*parts, output[:, segments[-1].end :]], 1)

    with ExitStack() as hooks:
        for module in dropouts:
            hooks.callback(module.register_forward_hook(act).remove)
        yield


def _dropped(x: Tensor, segment: Segment, share: float) -> Tensor:
    if segment.stream is None:
        return x
    return dropout(x, share if segment.share is None else segment.share, segment.stream)
