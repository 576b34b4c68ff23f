"""What the launchers of the heads would compile for real batches, as `launch_cases` has it for attention.

A program of its own, because launching on paper changes a process for good.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import torch

from benchmarks.launches import launch_on_paper
from prefixbank.kernels.attention import Route
from prefixbank.kernels.gpu.head_tiling import declared
from prefixbank.kernels.head_plan import HeadRow
from tests.head_cases import EDGES, HeadCase, make_heads
from tests.launch_cases import recompiled, undeclared

if TYPE_CHECKING:
    from collections.abc import Iterator


def differentiate(case: HeadCase) -> None:
    """Launch forward and backward."""
    case.gradients(Route.TRITON, torch.zeros(len(case.x_NM), case.plan.num_classes))


def random_batches(count: int = 100) -> Iterator[HeadCase]:
    """Batches that differ in rows, vectors, classes and where heads lie; some numbers are 1, or a multiple of 16."""
    chance = random.Random(0)
    for number in range(count):
        rows = [
            HeadRow(0, *(chance.choice([1, 16, chance.randrange(80)]) for _ in range(3)))
            for _ in range(1 if number % 10 == 0 else chance.randrange(1, 40))
        ]
        yield make_heads(rows, 384, tail=chance.choice([0, 1, 16]))


def main() -> None:
    def serve() -> None:
        for dtype, width in declared():
            differentiate(make_heads(EDGES, width, dtype=dtype))

    def repeat() -> None:
        for case in random_batches():
            differentiate(case)

    found = {"undeclared": undeclared(launch_on_paper(serve)), "recompiled": recompiled(launch_on_paper(repeat))}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
