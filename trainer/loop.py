"""The loop: steps, epochs, selection, early stop, checkpoints.

It refuses to know files' formats, metrics' definitions, recipes' origins and what becomes of the result.
Randomness is a function of seed and step alone, so a resumed run continues bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prefixbank.model_store.errors import TrainingError, TrainingInterrupted
from prefixbank.trainer import checkpoint
from prefixbank.trainer.batches import epoch_order
from prefixbank.trainer.evaluate import evaluate
from prefixbank.trainer.interruption import catch_interruption

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from prefixbank.trainer.network import Network
    from prefixbank.trainer.progress import Display
    from prefixbank.trainer.recipe import OptimiserSection
    from prefixbank.trainer.rows import Row

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 30.0
"""A run killed without warning loses at most this much, and the step it is in."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of the curve."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the epoch's steps, dropouts active."""
    validation: dict[str, float]
    rate: float
    """Factor on the learning rates at the end of the epoch."""
    seconds: float
    """Training time of this epoch, validation excluded."""


@dataclass(slots=True)
class State:
    """Where a run is. Saved with the tensors; everything else follows from the recipe."""

    identity: str
    """Digest of recipe and data: a checkpoint of other ones is refused."""
    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Steps finished in the epoch at hand."""
    step: int = 0
    """Steps finished in all."""
    loss_sum: float = 0.0
    """Over the steps of the epoch at hand."""
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0
    trained_tokens: int = 0
    curve: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    """0 before the first validation."""
    best_score: float = -math.inf
    finished: bool = False

    def to_json(self) -> dict[str, Any]:
        # -inf is no JSON number, and follows from best_epoch.
        return asdict(self) | ({} if self.best_epoch else {"best_score": None})

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> State:
        state = cls(**fields | {"curve": [Epoch(**epoch) for epoch in fields["curve"]]})
        if not state.best_epoch:
            state.best_score = -math.inf
        return state


class Loop:
    """One run over one network.

    Args:
        identity: digest of recipe and data.
        folder: where checkpoints go.
    """

    def __init__(
        self,
        network: Network,
        train_rows: Sequence[Row],
        validation_rows: Sequence[Row],
        labels: Sequence[str],
        *,
        identity: str,
        folder: Path,
        display: Display,
    ) -> None:
        self.network = network
        self.train_rows = train_rows
        self.validation_rows = validation_rows
        self.labels = labels
        self.folder = folder
        self.display = display
        self.recipe = network.recipe
        self.trained = network.trained()
        self.optimiser = _optimiser(self.trained, self.recipe.optimiser)
        self.state = State(identity)
        self.best: dict[str, Tensor] = {}
        self.lengths = [row.num_tokens for row in train_rows]
        self.steps_per_epoch = math.ceil(len(train_rows) / self.recipe.optimiser.batch_rows)
        self._saved_at = time.monotonic()

    def run(self) -> State:
        """Train to the end, then leave the network at its best epoch.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; the checkpoint is written.
            TrainingError: the loss is no number.
        """
        epochs = self.recipe.optimiser.epochs
        device = self.network.backbone.device
        devices = [device] if device.type == "cuda" else []
        with catch_interruption() as asked, self.display, torch.random.fork_rng(devices):
            self.display.start(epochs * self.steps_per_epoch, self.state.step)
            while not self.state.finished:
                self._epoch(asked)
                self._close_epoch()
                if self.state.epoch == epochs or self._is_out_of_patience():
                    self.state.finished = True
                self.save()
        self._restore(self.best)
        return self.state

    def save(self) -> None:
        """Write the checkpoint."""
        tensors: dict[str, Tensor] = {f"now.{name}": tensor for name, tensor in self.trained.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, tensor in self.trained.items():
            tensors |= {f"adam.{key}.{name}": value for key, value in self.optimiser.state[tensor].items()}
        checkpoint.save(self.folder, tensors, self.state.to_json())
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Continue from the folder's checkpoint.

        Raises:
            TrainingError: there is none, or it belongs to another recipe or other data.
        """
        saved = checkpoint.load(self.folder)
        state = State.from_json(saved.state)
        if state.identity != self.state.identity:
            raise TrainingError(
                f"{self.folder / checkpoint.FILE}: found the checkpoint of another recipe or of other data "
                f"({state.identity[:12]}), wanted {self.state.identity[:12]}"
            )
        self.state = state
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
        for key, tensor in saved.tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        self._restore(parts["now"])
        self.best = {name: tensor.to(self.trained[name].device) for name, tensor in parts["best"].items()}
        for key, tensor in parts["adam"].items():
            moment, _, name = key.partition(".")
            parameter = self.trained[name]
            self.optimiser.state[parameter][moment] = tensor.to(parameter.device)

    def _epoch(self, asked: threading.Event) -> None:
        order = epoch_order(self.lengths, self.recipe.optimiser.batch_rows, self.recipe.seed, self.state.epoch)
        for indices in order[self.state.batch :]:
            started = time.perf_counter()
            rows = [self.train_rows[index] for index in indices]
            loss = self._step(rows)
            self._account(rows, loss, time.perf_counter() - started)
            self.display.step(self.state.step, self.state.loss_sum / self.state.batch)
            if asked.is_set():
                self.save()
                raise TrainingInterrupted(
                    f"interrupted in epoch {self.state.epoch + 1} after step {self.state.step}: "
                    f"{self.folder / checkpoint.FILE} holds it, --resume continues"
                )
            if time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
                self.save()

    def _step(self, rows: Sequence[Row]) -> float:
        optimiser = self.recipe.optimiser
        torch.manual_seed(_step_seed(self.recipe.seed, self.state.step))
        batch = self.network.assemble(rows)
        loss = nn.functional.cross_entropy(self.network.training_logits(batch), batch.targets)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"step {self.state.step}: found a loss of {value}, wanted a finite one: lower optimiser.prompt_rate"
            )
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.trained.values(), optimiser.clip_norm)
        factor = rate_factor(self.state.step, self.steps_per_epoch * optimiser.epochs, optimiser.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = group["top_rate"] * factor
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return value

    def _account(self, rows: Sequence[Row], loss: float, seconds: float) -> None:
        state = self.state
        state.step += 1
        state.batch += 1
        state.loss_sum += loss
        state.epoch_seconds += seconds
        state.trained_tokens += sum(row.num_tokens for row in rows)

    def _close_epoch(self) -> None:
        state = self.state
        scores = evaluate(self.network, self.validation_rows, self.labels).metrics
        factor = rate_factor(state.step, self.steps_per_epoch * self.recipe.optimiser.epochs, 0)
        train_loss = state.loss_sum / max(state.batch, 1)
        state.epoch += 1
        state.curve.append(Epoch(state.epoch, train_loss, scores, factor, state.epoch_seconds))
        state.train_seconds += state.epoch_seconds
        state.batch, state.loss_sum, state.epoch_seconds = 0, 0.0, 0.0
        metric = self.recipe.metric
        score = -scores[metric] if metric == "loss" else scores[metric]
        if score > state.best_score:
            state.best_score, state.best_epoch = score, state.epoch
            self.best = {name: tensor.detach().clone() for name, tensor in self.trained.items()}
        self.display.epoch(state.curve[-1], metric, state.best_epoch)

    def _is_out_of_patience(self) -> bool:
        patience = self.recipe.selection.patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.trained[name].copy_(tensor)


def rate_factor(step: int, num_steps: int, warmup: float) -> float:
    """Factor on the learning rates before step `step` (from 0): linear climb, then linear decay to 0."""
    climb = math.ceil(warmup * num_steps)
    if step < climb:
        return (step + 1) / climb
    return max(0.0, (num_steps - step) / max(1, num_steps - climb))


def _optimiser(trained: dict[str, nn.Parameter], section: OptimiserSection) -> torch.optim.AdamW:
    rates = {
        "prompt": section.prompt_rate,
        "head": section.head_rate,
        "backbone": section.backbone_rate,
        "backbone_pooler": section.backbone_rate,
    }
    groups = [
        {"params": [tensor], "top_rate": rates[name.partition(".")[0]], "lr": 0.0} for name, tensor in trained.items()
    ]
    return torch.optim.AdamW(groups, weight_decay=section.weight_decay, fused=True)


def _step_seed(seed: int, step: int) -> int:
    """A seed of its own for every step: `seed` is below 2^31."""
    return (step << 31) | seed
