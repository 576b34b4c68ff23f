"""report.json: what a run was, what it reached, and with what confidence.

It refuses to know how to train, to evaluate and to serve, where the report goes and how it is drawn.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prefixbank.trainer.metrics import LEVEL, NUM_SAMPLES
from prefixbank.trainer.provenance import now, software

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefixbank.trainer.families import Family, Item, Scores
    from prefixbank.trainer.pack import Pack
    from prefixbank.trainer.readers.faults import Fault
    from prefixbank.trainer.trial import Trial

FILE = "report.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """Counts of one split."""

    rows: int
    """Items: sentences, premises, questions; of questions in training, windows."""
    tokens: int
    truncated_rows: int
    labels: dict[str, int]
    """How often each label, or whatever else the targets tell apart, occurs."""


def summarise(family: Family, items: Sequence[Item], labels: Sequence[str]) -> SplitSummary:
    """Count a split."""
    tokens, truncated = sum(item.num_tokens for item in items), sum(item.truncated for item in items)
    return SplitSummary(len(items), tokens, truncated, family.counts(items, labels))


def compose(
    trial: Trial,
    pack: Pack,
    *,
    metric: str,
    splits: Mapping[str, SplitSummary],
    scores: Mapping[str, Scores],
    reported: str,
    data: Mapping[str, str],
    skipped: Mapping[str, Sequence[Fault]],
) -> dict[str, Any]:
    """The report as JSON values.

    Args:
        metric: what the result is judged by.
        reported: the split whose metrics are the run's result.
        data: file of the recipe to its SHA-256.
        skipped: bad rows that were left out, by split. What was wrong with one may quote it: that stays away with all
            other texts where `report.mistakes` is 0.
    """
    state, ref = trial.state, pack.backbone.ref
    trained = sum(tensor.numel() for tensor in trial.trained.values())
    frozen = sum(tensor.numel() for tensor in pack.backbone.model.parameters())
    return {
        "schema_version": SCHEMA_VERSION,
        "created": now(),
        "recipe": trial.recipe.model_dump(mode="json"),
        "environment": _environment(pack),
        "data": {"files": dict(data), "splits": {name: asdict(summary) for name, summary in splits.items()}},
        "skipped": {
            name: {"rows": len(rows), "first": str(rows[0]) if trial.recipe.report.mistakes else rows[0].where}
            for name, rows in skipped.items()
            if rows
        },
        "backbone": ref.model_dump(mode="json") | {"parameters": frozen},
        "trained_parameters": trained,
        "trained_share": trained / frozen,
        "reported_split": reported,
        "selection": {"metric": metric, "split": "validation", "epoch": state.best_epoch},
        "metrics": {name: score.metrics for name, score in scores.items()},
        "confidence": {
            "method": f"bootstrap over rows, those of one text together, {NUM_SAMPLES} samples, {LEVEL:.0%}",
            "intervals": {name: score.intervals for name, score in scores.items()},
        },
        "details": {name: score.details for name, score in scores.items()},
        "curve": [asdict(epoch) for epoch in state.curve],
        "stopped": state.stopped,
        "train_seconds": state.seconds,
        "train_tokens_per_second": state.trained_tokens / state.seconds if state.seconds else None,
    }


def _environment(pack: Pack) -> dict[str, Any]:
    import torch

    device = pack.backbone.device
    return {
        "software": software(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "dtype": str(pack.autocast or pack.backbone.dtype).removeprefix("torch."),
    }
