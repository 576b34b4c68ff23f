"""Evaluation: the items of a split to logits to metrics, for validation, for the report and for served logits.

It refuses to know metrics' definitions, how parameters move and where reports go.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import numpy as np

from prefixbank.trainer.trial import MEAN

if TYPE_CHECKING:
    from prefixbank.trainer.pack import Pack
    from prefixbank.trainer.trial import Part, Trial


def evaluate(pack: Pack, trial: Trial) -> dict[str, float]:
    """Metrics of the validation split: by name, or by data set and name and their mean where there are several.

    Raises:
        FloatingPointError: a logit is infinite or no number.
    """
    found = {part.name: _metrics(pack, trial, part) for part in trial.parts}
    if len(trial.parts) == 1:
        return found[trial.parts[0].name]
    by_part = {f"{name}.{metric}": value for name, metrics in found.items() for metric, value in metrics.items()}
    mean = statistics.mean(found[part.name][part.family.metric] for part in trial.parts)
    return by_part | {MEAN: mean, "loss": statistics.mean(metrics["loss"] for metrics in found.values())}


def _metrics(pack: Pack, trial: Trial, part: Part) -> dict[str, float]:
    """As the epoch would be stored: what is tuned on validation rows is tuned before they are scored."""
    logits = pack.predict(trial, part, part.validation)
    if not all(np.isfinite(row).all() for rows in logits for row in rows):
        raise FloatingPointError("found validation logits of inf or nan")
    return part.family.tuned(logits, part.validation).score(logits, part.validation, part.labels).metrics
