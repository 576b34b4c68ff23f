"""What a prompt reaches against a head alone and full fine-tuning, in one harness: SST-2 and CoNLL04 on MiniLM.

    python -m benchmarks.training [sst2] [conll04] [--methods prompt,head,full] [--seeds 1] [--json FILE]

The recipes are those of `examples/recipes`; each method brings its own rates, set once and not searched. Prompts and
heads pass the serving check or the run stops, so no number stands for something the server would not answer.
Exits with 1 when a prompt does not beat the head alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.environment import commit, hardware
from prefixbank.cli_train import served_logits
from prefixbank.trainer.recipe import load
from prefixbank.trainer.run import train

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "examples" / "recipes"
METHODS = ("prompt", "head", "full")
SETTINGS: dict[tuple[str, str], list[str]] = {
    ("sst2", "head"): ["optimiser.head_rate=1e-2"],
    ("sst2", "full"): ["optimiser.backbone_rate=5e-5", "optimiser.head_rate=1e-3", "optimiser.backbone_dropout=true"],
    ("conll04", "head"): ["optimiser.head_rate=1e-2"],
    ("conll04", "full"): [
        "optimiser.backbone_rate=2e-4",
        "optimiser.head_rate=1e-3",
        "optimiser.backbone_dropout=true",
    ],
}
"""What a method changes in a recipe, which is written for the prompt."""


class Result(NamedTuple):
    """One task and method over all seeds."""

    task: str
    method: str
    metric: str
    scores: tuple[float, ...]
    """On the reported split, one per seed."""
    interval: tuple[float, float]
    """Bootstrap interval of the first seed's score."""
    trained_share: float
    train_seconds: float
    """Mean over the seeds, validation excluded."""
    tokens_per_second: float

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)


def measure(task: str, method: str, num_seeds: int) -> Result:
    """Train one task with one method, once per seed."""
    path = RECIPES / f"{task}.toml"
    reports = []
    for seed in range(11, 11 + num_seeds):
        recipe = load(path, [f"method={method}", f"seed={seed}", *SETTINGS.get((task, method), [])])
        with tempfile.TemporaryDirectory() as folder:
            verify = None if method == "full" else served_logits
            reports.append(train(recipe, Path(folder), root=path.parent, verify=verify).report)
    return _result(task, method, reports)


def _result(task: str, method: str, reports: list[dict[str, Any]]) -> Result:
    first = reports[0]
    metric, split = first["selection"]["metric"], first["reported_split"]
    low, high = first["confidence"]["intervals"][split][metric]
    return Result(
        task,
        method,
        metric,
        tuple(report["metrics"][split][metric] for report in reports),
        (low, high),
        first["trained_share"],
        statistics.mean(report["train_seconds"] for report in reports),
        statistics.mean(report["train_tokens_per_second"] for report in reports),
    )


def _table(results: list[Result]) -> str:
    lines = [
        f"{'task':8} {'method':7} {'metric':9} {'score':>7} {'95 %':>15} {'trained':>9} {'time':>8} {'tokens/s':>9}"
    ]
    for r in results:
        interval = f"{r.interval[0]:.4f}-{r.interval[1]:.4f}"
        figures = f"{r.mean:7.4f} {interval:>15} {r.trained_share:9.3%} {r.train_seconds:6.0f} s"
        lines.append(f"{r.task:8} {r.method:7} {r.metric:9} {figures} {r.tokens_per_second:9.0f}")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["sst2", "conll04"], help="names of example recipes")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    results = [measure(task, method, asked.seeds) for task in asked.tasks for method in asked.methods.split(",")]
    origin = {"hardware": hardware(), "commit": commit(), "threads": torch.get_num_threads()}
    print(json.dumps(origin))  # noqa: T201
    print(_table(results))  # noqa: T201
    if asked.json:
        rows = [result._asdict() | {"mean": result.mean} for result in results]
        asked.json.write_text(json.dumps(origin | {"results": rows}, indent=2) + "\n")
    means = {(result.task, result.method): result.mean for result in results}
    return 0 if all(means[task, "prompt"] > mean for (task, method), mean in means.items() if method == "head") else 1


if __name__ == "__main__":
    sys.exit(main())
