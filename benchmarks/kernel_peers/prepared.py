"""What every peer hands the benchmark: the work of one layer, with all that a batch fixes done before."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.kernel_workloads import Batch


class Absent(Exception):
    """A peer cannot run here, for a reason that is no fault: a wheel or a device is missing."""


def packed_already(out_THD: Tensor) -> Tensor:
    return out_THD


class Prepared(NamedTuple):
    """One peer over one batch."""

    run: Callable[[], Tensor]
    """What is timed: from q, k, v and the pool to the peer's output."""
    packed: Callable[[Tensor], Tensor] = packed_already
    """Bring the output to packed [T, H, D], to be compared. Not timed."""


class Peer(Protocol):
    """A way to compute prefix attention."""

    def __call__(self, batch: Batch) -> Prepared:
        """Do what is done once for a batch and all its layers.

        Raises:
            Absent: when it cannot run here.
        """
