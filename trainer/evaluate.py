"""Evaluation: rows to logits to metrics, the same for validation, for the report and for served logits.

It refuses to know how parameters move and where reports go.

Shape letters: T tokens of one row, C classes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prefixbank.model_store.tasks.spans import OUTSIDE, SpanScores, span_scores, spans_of
from prefixbank.model_store.tasks.token_classification import NO_TARGET, word_classes
from prefixbank.trainer import metrics
from prefixbank.trainer.batches import evaluation_order
from prefixbank.trainer.readers import TextExample, WordsExample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from prefixbank.trainer.network import Network
    from prefixbank.trainer.rows import Row


@dataclass(frozen=True, slots=True)
class Scores:
    """One split's result."""

    metrics: dict[str, float]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    """Low and high end of 95 %, by bootstrap over rows."""
    details: dict[str, Any] = field(default_factory=dict)
    """JSON values: the confusion matrix, or scores by type of span."""


def evaluate(network: Network, rows: Sequence[Row], labels: Sequence[str]) -> Scores:
    """Metrics of a split, without intervals and details."""
    return score(predict(network, rows), rows, labels)


@torch.inference_mode()
def predict(network: Network, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
    """Logits of every row in the order given: [C], or [T, C] for words."""
    lengths = [row.num_tokens for row in rows]
    logits: dict[int, NDArray[np.float32]] = {}
    for indices in evaluation_order(lengths):
        found = network.row_logits(network.assemble([rows[index] for index in indices]))
        logits |= {index: one.float().cpu().numpy() for index, one in zip(indices, found, strict=True)}
    return [logits[index] for index in range(len(rows))]


def score(logits: Sequence[NDArray[np.float32]], rows: Sequence[Row], labels: Sequence[str]) -> Scores:
    """Metrics of logits, wherever they were computed."""
    loss = _loss(logits, rows)
    if isinstance(rows[0].example, TextExample):
        confusion_CC = _confusion(logits, rows, len(labels))
        return Scores({"loss": loss, **{name: metric(confusion_CC) for name, metric in _METRICS.items()}})
    total = span_scores(*_tags(logits, rows, labels))
    return Scores({"loss": loss, "span_f1": total.f1, "precision": total.precision, "recall": total.recall})


def score_in_full(logits: Sequence[NDArray[np.float32]], rows: Sequence[Row], labels: Sequence[str]) -> Scores:
    """Metrics of logits with intervals and details, for a report."""
    plain = score(logits, rows, labels).metrics
    if isinstance(rows[0].example, TextExample):
        confusion_CC = _confusion(logits, rows, len(labels))
        intervals = {name: metrics.confusion_interval(metric, confusion_CC) for name, metric in _METRICS.items()}
        return Scores(plain, intervals, {"labels": list(labels), "confusion": confusion_CC.tolist()})
    gold, found = _tags(logits, rows, labels)
    by_row = [span_scores([g], [f]) for g, f in zip(gold, found, strict=True)]
    return Scores(plain, {"span_f1": metrics.span_interval(by_row)}, {"by_type": _by_type(gold, found)})


_METRICS = {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1, "matthews": metrics.matthews}


def _loss(logits: Sequence[NDArray[np.float32]], rows: Sequence[Row]) -> float:
    """Mean cross entropy over all targets."""
    classes = logits[0].shape[-1]
    logits_KC = np.concatenate([one.reshape(-1, classes) for one in logits]).astype(np.float64)
    targets_K = np.concatenate([row.targets for row in rows])
    read_K = targets_K != NO_TARGET
    logits_KC, targets_K = logits_KC[read_K], targets_K[read_K]
    top_K1 = logits_KC.max(-1, keepdims=True)
    lse_K = np.log(np.exp(logits_KC - top_K1).sum(-1)) + top_K1[:, 0]
    return float((lse_K - logits_KC[np.arange(len(targets_K)), targets_K]).mean()) if len(targets_K) else 0.0


def _confusion(logits: Sequence[NDArray[np.float32]], rows: Sequence[Row], classes: int) -> NDArray[np.int64]:
    gold = [int(row.targets[0]) for row in rows]
    return metrics.confusion(gold, [int(one.argmax()) for one in logits], classes)


def _tags(
    logits: Sequence[NDArray[np.float32]], rows: Sequence[Row], labels: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """True and predicted tags per row; a word that was cut off counts as predicted outside."""
    gold = [row.example.tags for row in rows if isinstance(row.example, WordsExample)]
    found = [
        tuple(OUTSIDE if c is None else labels[c] for c in word_classes(one, row.features))
        for one, row in zip(logits, rows, strict=True)
    ]
    return gold, found


def _by_type(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    counts: dict[str, Counter[str]] = {}
    for gold_tags, found_tags in zip(gold, found, strict=True):
        true, predicted = set(spans_of(gold_tags)), set(spans_of(found_tags))
        for name, spans in (("gold", true), ("found", predicted), ("correct", true & predicted)):
            for span in spans:
                counts.setdefault(span.kind, Counter())[name] += 1
    scores = {kind: SpanScores(c["gold"], c["found"], c["correct"]) for kind, c in sorted(counts.items())}
    return {
        kind: {"gold": s.num_gold, "precision": s.precision, "recall": s.recall, "f1": s.f1}
        for kind, s in scores.items()
    }
