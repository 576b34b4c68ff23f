"""Outcome: a trained prompt and head as one value, evaluated as it will be served, and checked against the server.

It refuses to know files, reports, stores and how parameters moved.

Shape letters: K tokens that a head reads, C outputs of a head.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch

from prefixbank.model_store.errors import ServingMismatch
from prefixbank.model_store.task_prompt import Provenance, TaskPrompt
from prefixbank.trainer.deep_prompt import DeepPrompt
from prefixbank.trainer.provenance import now, software
from prefixbank.trainer.shallow_prompt import ShallowPrompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.trainer.families import Family, Scores
    from prefixbank.trainer.families.family import Logits
    from prefixbank.trainer.pack import Pack
    from prefixbank.trainer.prepare import PreparedPart
    from prefixbank.trainer.trial import Part, Trial

METRIC_TOLERANCE = 0.01
"""How far the served metric may lie from the trained one: ties fall either way."""
LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far served logits may lie from trained ones, root mean square over the deviation of the logits."""


class Verify(Protocol):
    """The serving engine's logits for rows of a prompt: [C] each, or [K, C] of the tokens its head reads."""

    def __call__(
        self, prompt: TaskPrompt, rows: Sequence[Features], backbone: Backbone
    ) -> Sequence[NDArray[np.float32]]: ...


class Outcome(NamedTuple):
    """What one data set of a trial came to."""

    family: Family
    """With what was tuned on validation rows."""
    logits: dict[str, Logits]
    """By split that was evaluated."""
    scores: dict[str, Scores]


def conclude(pack: Pack, trial: Trial, part: Part, data: PreparedPart) -> Outcome:
    """Evaluate a part as it will be stored; validation rows tune what is to be tuned, before anything is reported."""
    splits = {name: items for name, items in data.items.items() if items and name != "train"}
    logits: dict[str, Logits] = {name: pack.predict(trial, part, items) for name, items in splits.items()}
    family = part.family.tuned(logits["validation"], splits["validation"])
    scores = {name: family.score_in_full(found, splits[name], part.labels) for name, found in logits.items()}
    return Outcome(family, logits, scores)


def round_prompt(trial: Trial) -> None:
    """Round to the dtype in which the prompt is stored, so that what is evaluated is what is served."""
    if trial.prompt is not None:
        trial.prompt.round_to(getattr(torch, trial.recipe.prompt.dtype))


def fold(trial: Trial, part: Part, outcome: Outcome, backbone: Backbone) -> TaskPrompt:
    """The trained tensors and all that describes them as one value."""
    recipe, prompt, ref = trial.recipe, trial.prompt, backbone.ref
    dtype: torch.dtype = getattr(torch, recipe.prompt.dtype)
    nothing = torch.zeros(0, 2, ref.num_heads, 0, ref.head_dim)
    metrics = {f"{split}_{name}": value for split, s in outcome.scores.items() for name, value in s.metrics.items()}
    folded = TaskPrompt(
        family=recipe.family,
        labels=part.labels,
        layers=prompt.layers if isinstance(prompt, DeepPrompt) else (),
        kv_N2HPD=prompt.fold(dtype).cpu() if isinstance(prompt, DeepPrompt) else nothing,
        position_offset=recipe.position_offset,
        head=part.head.fold(),
        preprocessing=outcome.family.preprocessing(part.labels),
        backbone=ref,
        metrics=metrics,
        provenance=Provenance(created=now(), software=software(), recipe=recipe.model_dump(mode="json")),
    )
    return replace(folded, shallow_PM=prompt.fold(dtype).cpu()) if isinstance(prompt, ShallowPrompt) else folded


def check_serving(
    prompt: TaskPrompt, part: Part, data: PreparedPart, outcome: Outcome, backbone: Backbone, verify: Verify
) -> dict[str, Any]:
    """Compare the server's logits with the trainer's own on the reported split.

    Raises:
        ServingMismatch: they or the metric differ beyond tolerance.
    """
    items = data.items[data.reported]
    flat = iter(verify(prompt, [row for item in items for row in item.rows], backbone))
    served = [[next(flat) for _ in item.rows] for item in items]
    trained, metric, family = outcome.logits[data.reported], outcome.family.metric, outcome.family
    scores = [family.score(logits, items, part.labels).metrics[metric] for logits in (trained, served)]
    distance = _distance(trained, served)
    tolerance = LOGIT_TOLERANCE[backbone.dtype]
    if not (distance <= tolerance and abs(scores[0] - scores[1]) <= METRIC_TOLERANCE):
        raise ServingMismatch(
            f"{metric}: trained {scores[0]:.4f}, served {scores[1]:.4f}; logits lie {distance:.2g} apart, wanted at "
            f"most {tolerance:g}: not published"
        )
    found = {"metric": metric, "trained": scores[0], "served": scores[1], "rows": len(items)}
    return found | {"logit_distance": distance, "logit_tolerance": tolerance}


def _distance(trained: Logits, served: Logits) -> float:
    own, other = (np.concatenate([one.ravel() for rows in logits for one in rows]) for logits in (trained, served))
    return float(np.sqrt(np.mean((own - other) ** 2)) / max(float(own.std()), 1e-6))
