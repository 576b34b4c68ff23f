"""Scalars for TensorBoard: a display that writes them beside whatever a person sees.

TensorBoard is asked for by `--tensorboard`, and refused before training where it is not installed. It refuses to know
how anything is computed.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

from prefixbank.model_store.errors import TrainingError

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.trainer.trial import Epoch

FOLDER = "tensorboard"


class TensorBoardDisplay:
    """Writes loss by step; loss, metrics and rate by epoch.

    Args:
        folder: where event files go; made by the first event.

    Raises:
        TrainingError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboard") is None:
            raise TrainingError("--tensorboard: found no tensorboard, wanted it: pip install prefixbank[tensorboard]")
        self.folder = folder
        self._writer: Any = None
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def start(self, num_steps: int, finished: int) -> None:
        """Events of steps after `finished` that an interrupted run has written are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._step = finished
        self._writer = SummaryWriter(str(self.folder), purge_step=finished + 1 if finished else None)

    def step(self, step: int, loss: float) -> None:
        self._writer.add_scalar("train/loss", loss, step)
        self._step = step

    def epoch(self, epoch: Epoch, metric: str, best_epoch: int) -> None:
        """By step as well, so that one axis serves all."""
        self._writer.add_scalar("train/epoch_loss", epoch.train_loss, self._step)
        self._writer.add_scalar("train/rate_factor", epoch.rate, self._step)
        for name, value in epoch.validation.items():
            self._writer.add_scalar(f"validation/{name}", value, self._step)
        self._writer.flush()
