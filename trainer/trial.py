"""Trial: one prompt being trained - its data sets and heads, its optimiser, and where it is.

A trial knows nothing of those that share its steps: its loss, gradient norm, schedule, order and random numbers are its
own. It refuses to know the backbone's forward, files of data and what becomes of the result.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from prefixbank.model_store.errors import TrainingError
from prefixbank.trainer import checkpoint
from prefixbank.trainer.batches import epoch_order
from prefixbank.trainer.dropout import stream_of
from prefixbank.trainer.metrics import signed
from prefixbank.trainer.schedule import rate_factor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from prefixbank.trainer.deep_prompt import DeepPrompt
    from prefixbank.trainer.families import Family, Item
    from prefixbank.trainer.heads import LinearHead, WordHead
    from prefixbank.trainer.progress import Display
    from prefixbank.trainer.recipe import OptimiserSection, Recipe
    from prefixbank.trainer.shallow_prompt import ShallowPrompt

MEAN = "mean"
"""The metric of a trial over several data sets: the mean of theirs."""


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
    """Training time of this epoch, validation excluded; of steps shared with others, the share by tokens."""


@dataclass(slots=True)
class State:
    """Where a trial is. Saved with the tensors; everything else follows from the recipe."""

    identity: str
    """Digest of recipe, data and backbone: a checkpoint of other ones is refused."""
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
    stopped: str = ""
    """Why it ended before its schedule did; it is finished then, and its best epoch stands."""
    failure: str = ""
    """Why it cannot go on; it is finished then."""
    pruned: bool = False
    """It could have gone on: others have come further, or time is short."""

    @property
    def seconds(self) -> float:
        """Training time, the epoch at hand included; validation excluded."""
        return self.train_seconds + self.epoch_seconds

    def to_json(self) -> dict[str, Any]:
        # -inf is no JSON number, and follows from best_epoch.
        return asdict(self) | ({} if self.best_epoch else {"best_score": None})

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> State:
        state = cls(**fields | {"curve": [Epoch(**epoch) for epoch in fields["curve"]]})
        if not state.best_epoch:
            state.best_score = -math.inf
        return state


@dataclass(eq=False, slots=True)
class Part:
    """One data set of a trial, and the head that answers for it."""

    name: str
    """Empty where the trial has no other."""
    family: Family
    labels: tuple[str, ...]
    head: LinearHead | WordHead
    head_dropout: float
    train: Sequence[Item]
    validation: Sequence[Item]
    """Evaluated after every epoch."""


class StepShare(NamedTuple):
    """What a trial brings to a step."""

    part: Part
    items: list[Item]
    stream: torch.Generator

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)


class Trial:
    """One prompt, its heads, and how they move.

    Args:
        backbone_modules: what of the backbone is trained too; nothing but in full fine-tuning.
        identity: digest of recipe, data and backbone.
        folder: where checkpoints go; None keeps none.
    """

    def __init__(
        self,
        recipe: Recipe,
        prompt: DeepPrompt | ShallowPrompt | None,
        parts: Sequence[Part],
        *,
        device: torch.device,
        identity: str,
        folder: Path | None,
        display: Display,
        backbone_modules: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.recipe = recipe
        self.prompt = prompt
        self.parts = parts
        self.folder = folder
        self.display = display
        self.device = device
        self.state = State(identity)
        self.best: dict[str, Tensor] = {}
        modules: dict[str, nn.Module] = {} if prompt is None else {"prompt": prompt}
        for part in parts:
            modules[f"head.{part.name}" if part.name else "head"] = part.head
        self.trained = _trained(modules | dict(backbone_modules or {}))
        self.optimiser = _optimiser(self.trained, recipe.optimiser)
        self._order: list[tuple[Part, list[Item]]] = []
        self._pass = -1

    @property
    def metric(self) -> str:
        """What validation is judged by: the one part's metric, or the mean of all; the loss's own mean is "loss"."""
        own = self.parts[0].family.metric
        return own if len(self.parts) == 1 or own == "loss" else MEAN

    @property
    def steps_per_pass(self) -> int:
        """Steps in which every row is met once."""
        rows = self.recipe.optimiser.batch_rows
        return sum(math.ceil(len(part.train) / rows) for part in self.parts)

    @property
    def steps_per_epoch(self) -> int:
        """A pass, or as many of its steps as the recipe says."""
        section = self.recipe.optimiser
        wanted = math.inf if section.epoch_rows is None else math.ceil(section.epoch_rows / section.batch_rows)
        return int(min(wanted, self.steps_per_pass))

    @property
    def num_steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * self.recipe.optimiser.epochs

    @property
    def mean_loss(self) -> float:
        """Of the epoch at hand."""
        return self.state.loss_sum / max(self.state.batch, 1)

    @property
    def is_at_end_of_epoch(self) -> bool:
        return self.state.batch == self.steps_per_epoch

    def share(self) -> StepShare:
        """The next step's items and random numbers; the same until `move` is called."""
        number, place = divmod(self.state.step, self.steps_per_pass)
        if number != self._pass:
            self._order, self._pass = _pass_batches(self.parts, self.recipe, number), number
        part, items = self._order[place]
        return StepShare(part, items, stream_of(self.recipe.seed, self.state.step, self.device))

    def move(self, share: StepShare, loss: float, seconds: float) -> None:
        """Clip the gradients, take a step and account for it."""
        nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.optimiser.clip_norm)
        factor = self.rate()
        for group in self.optimiser.param_groups:
            group["lr"] = group["top_rate"] * factor
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        state = self.state
        state.step += 1
        state.batch += 1
        state.loss_sum += loss
        state.epoch_seconds += seconds
        state.trained_tokens += share.num_tokens
        self.display.step(state.step, self.mean_loss)

    def stop(self, reason: str) -> None:
        """End here, with the best epoch so far."""
        assert self.state.best_epoch, "a trial that stops has a judged epoch. This is a bug."
        self.state.stopped = reason
        self.state.finished = True

    def diverge(self, found: str) -> None:
        """Numbers ran away: end with the best epoch so far, or fail where none was judged."""
        reason = f"{found}, wanted finite ones: lower the rates of [optimiser]"
        if self.state.best_epoch:
            self.stop(reason)
        else:
            self.fail(reason)

    def fail(self, reason: str) -> None:
        """End here: it cannot go on."""
        self.state.failure = reason
        self.state.finished = True

    def prune(self, reason: str) -> None:
        """End here: it is not worth going on."""
        self.state.pruned = True
        self.fail(f"pruned after epoch {self.state.epoch}: {reason}")

    def rate(self) -> float:
        """Factor on the learning rates of the next step."""
        return rate_factor(self.recipe.optimiser, self.state.step, self.steps_per_epoch)

    def close_epoch(self, scores: Mapping[str, float]) -> Epoch:
        """Account for an epoch judged on validation; keep the parameters if they are the best so far."""
        state, metric = self.state, self.metric
        state.epoch += 1
        epoch = Epoch(state.epoch, self.mean_loss, dict(scores), self.rate(), state.epoch_seconds)
        state.curve.append(epoch)
        state.train_seconds += state.epoch_seconds
        state.batch, state.loss_sum, state.epoch_seconds = 0, 0.0, 0.0
        score = signed(metric, scores[metric])
        if score > state.best_score:
            state.best_score, state.best_epoch = score, state.epoch
            self.best = {name: tensor.detach().clone() for name, tensor in self.trained.items()}
        patience = self.recipe.selection.patience
        is_out_of_patience = patience is not None and state.epoch - state.best_epoch >= patience
        state.finished = state.epoch == self.recipe.optimiser.epochs or is_out_of_patience
        self.display.epoch(epoch, metric, state.best_epoch)
        return epoch

    def keep_best(self) -> None:
        """Go back to the best epoch."""
        self._restore(self.best)

    def save(self) -> None:
        """Write the checkpoint, where there is a folder for it."""
        if self.folder is None:
            return
        tensors: dict[str, Tensor] = {f"now.{name}": tensor for name, tensor in self.trained.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, tensor in self.trained.items():
            tensors |= {f"adam.{key}.{name}": value for key, value in self.optimiser.state[tensor].items()}
        checkpoint.save(self.folder, tensors, self.state.to_json())

    def resume(self) -> None:
        """Continue from the folder's checkpoint.

        Raises:
            TrainingError: there is none, or it belongs to another recipe, other data or another backbone.
        """
        assert self.folder is not None, "a trial without a folder cannot resume. This is a bug."
        saved = checkpoint.load(self.folder)
        try:
            state = State.from_json(saved.state)
        except (KeyError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{self.folder / checkpoint.FILE}: found the checkpoint of another version of this program: {error!r}"
            ) from error
        if state.identity != self.state.identity:
            raise TrainingError(
                f"{self.folder / checkpoint.FILE}: found the checkpoint of another recipe, of other data or of "
                f"another backbone ({state.identity[:12]}), wanted {self.state.identity[:12]}"
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

    @torch.no_grad()
    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.trained[name].copy_(tensor)


def _trained(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    named = ((f"{part}.{name}", tensor) for part, net in modules.items() for name, tensor in net.named_parameters())
    trained = {name: tensor for name, tensor in named if tensor.requires_grad}
    if not trained:
        raise TrainingError('method: found "head" with a frozen head, wanted a prompt: there is nothing to train')
    return trained


def _pass_batches(parts: Sequence[Part], recipe: Recipe, turn: int) -> list[tuple[Part, list[Item]]]:
    """Every item once; a batch is of one data set, and data sets take turns in seeded order."""
    rows = recipe.optimiser.batch_rows
    batches: list[tuple[Part, list[Item]]] = []
    for number, part in enumerate(parts):
        order = epoch_order([item.num_tokens for item in part.train], rows, recipe.seed + number, turn)
        batches += [(part, [part.train[index] for index in indices]) for indices in order]
    if len(parts) == 1:
        return batches
    turns = np.random.default_rng([recipe.seed, turn, len(parts)]).permutation(len(batches))
    return [batches[place] for place in turns]


def _optimiser(trained: Mapping[str, nn.Parameter], section: OptimiserSection) -> torch.optim.AdamW:
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
