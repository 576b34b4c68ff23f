"""report.json: what a run was, what it reached, and with what confidence.

It refuses to know how to train, to evaluate and to serve.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from prefixbank.model_store.durable import replace_file
from prefixbank.trainer.metrics import LEVEL, NUM_SAMPLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from prefixbank.trainer.evaluate import Scores
    from prefixbank.trainer.loop import State
    from prefixbank.trainer.network import Network
    from prefixbank.trainer.rows import Row

FILE = "report.json"
SCHEMA_VERSION = 1
_PACKAGES = ("prefixbank", "torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """Counts of one split."""

    rows: int
    tokens: int
    truncated_rows: int
    labels: dict[str, int]
    """Rows per label, or spans' first words per tag."""


def summarise(rows: Sequence[Row], labels: Sequence[str]) -> SplitSummary:
    """Count a split."""
    counts = dict.fromkeys(labels, 0)
    for row in rows:
        for target in row.targets[row.targets >= 0].tolist():
            counts[labels[target]] += 1
    truncated = sum(row.features.truncated for row in rows)
    return SplitSummary(len(rows), sum(row.num_tokens for row in rows), truncated, counts)


def software() -> dict[str, str]:
    """Package name to version."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def compose(
    network: Network,
    state: State,
    *,
    splits: Mapping[str, SplitSummary],
    scores: Mapping[str, Scores],
    reported: str,
    data: Mapping[str, str],
) -> dict[str, Any]:
    """The report as JSON values.

    Args:
        reported: the split whose metrics are the run's result.
        data: file of the recipe to its SHA-256.
    """
    trained = sum(tensor.numel() for tensor in network.trained().values())
    frozen = sum(tensor.numel() for tensor in network.backbone.model.parameters())
    return {
        "schema_version": SCHEMA_VERSION,
        "created": now(),
        "recipe": network.recipe.model_dump(mode="json"),
        "environment": _environment(network),
        "data": {"files": dict(data), "splits": {name: asdict(summary) for name, summary in splits.items()}},
        "backbone": network.backbone.ref.model_dump(mode="json") | {"parameters": frozen},
        "trained_parameters": trained,
        "trained_share": trained / frozen,
        "reported_split": reported,
        "selection": {"metric": network.recipe.metric, "split": "validation", "epoch": state.best_epoch},
        "metrics": {name: score.metrics for name, score in scores.items()},
        "confidence": {
            "method": f"bootstrap over rows, {NUM_SAMPLES} samples, {LEVEL:.0%}",
            "intervals": {name: score.intervals for name, score in scores.items()},
        },
        "details": {name: score.details for name, score in scores.items()},
        "curve": [asdict(epoch) for epoch in state.curve],
        "train_seconds": state.train_seconds,
        "train_tokens_per_second": state.trained_tokens / state.train_seconds if state.train_seconds else None,
    }


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Put `report.json` in place in one step."""
    content = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(folder / FILE, [content.encode() + b"\n"], staging=folder)


def _environment(network: Network) -> dict[str, Any]:
    device = network.backbone.device
    return {
        "software": software(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "dtype": str(network.autocast or network.backbone.dtype).removeprefix("torch."),
    }
