"""Backbones, random prompts and fakes that the serving tests share. It refuses to know pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prefixbank.model_store.address import Address
from prefixbank.model_store.task_prompt import (
    Head,
    HeadSpec,
    Pooler,
    Preprocessing,
    Provenance,
    TaskFamily,
    TaskPrompt,
)
from tests.tiny import SENTENCES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefixbank.model_store.backbones.backbone import Backbone

TEXT, TOKENS = TaskFamily.TEXT_CLASSIFICATION, TaskFamily.TOKEN_CLASSIFICATION
LENGTHS = (0, 1, 5, 16, 17, 64, 33, 20)
"""Prompt lengths that hurt: none, below, at and above the pool's alignment."""


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def random_prompt(
    backbone: Backbone,
    length: int,
    *,
    seed: int,
    family: TaskFamily = TEXT,
    pooler: Pooler = Pooler.NONE,
    layers: Sequence[int] | None = None,
    num_labels: int = 3,
    notes: str = "",
) -> TaskPrompt:
    """A prompt whose every number differs from any other seed's; labels tell the seed."""
    ref, random = backbone.ref, torch.Generator().manual_seed(seed)
    layers = tuple(range(ref.num_layers) if layers is None else layers) if length else ()
    own = pooler is Pooler.OWN
    return TaskPrompt(
        family=family,
        labels=tuple(f"seed {seed} label {number}" for number in range(num_labels)),
        layers=layers,
        kv_N2HPD=torch.randn(len(layers), 2, ref.num_heads, length, ref.head_dim, generator=random),
        position_offset=length,
        head=Head(
            HeadSpec(pooler=pooler, activation="tanh" if own else None),
            torch.randn(num_labels, ref.width, generator=random),
            torch.randn(num_labels, generator=random),
            torch.randn(ref.width, ref.width, generator=random) * 0.2 if own else None,
            torch.randn(ref.width, generator=random) * 0.2 if own else None,
        ),
        preprocessing=Preprocessing(max_tokens=64),
        backbone=ref,
        provenance=Provenance(notes=notes),
    )


def mixed_tasks(backbone: Backbone) -> dict[Address, TaskPrompt]:
    """Eight tasks that differ in everything a task may differ in."""
    poolers = (
        Pooler.NONE,
        Pooler.BACKBONE,
        Pooler.OWN,
        Pooler.OWN,
        Pooler.BACKBONE,
        Pooler.NONE,
        Pooler.NONE,
        Pooler.NONE,
    )
    return {
        Address(f"tenant{number % 3}", f"task{number}"): random_prompt(
            backbone,
            length,
            seed=number + 1,
            family=TOKENS if number >= 6 else TEXT,
            pooler=pooler,
            layers=(0, 2) if number == 4 else None,
            num_labels=1 + number,
        )
        for number, (length, pooler) in enumerate(zip(LENGTHS, poolers, strict=True))
    }


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of very different lengths, made of the tiny tokenizer's sentences."""
    random = torch.Generator().manual_seed(seed)
    picks = torch.randint(0, len(SENTENCES), (count, 3), generator=random).tolist()
    cuts = torch.randint(1, 4, (count,), generator=random).tolist()
    return [" ".join(SENTENCES[pick] for pick in row[:cut]) for row, cut in zip(picks, cuts, strict=True)]
