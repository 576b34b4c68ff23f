"""Tags on words: what named entities and semantic roles have in common.

A word's label is learned and read at its first token. It refuses to know which spans count how.

Shape letters: T tokens of a row, K tokens of all rows, C classes.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from prefixbank.model_store.tasks.spans import OUTSIDE, SpanScores, spans_of
from prefixbank.model_store.tasks.token_classification import NO_TARGET, word_classes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from prefixbank.trainer.families.family import Item, Logits


def tags_of(rows: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """O, then B- and I- of every kind of span that occurs."""
    kinds = {tag[2:] for tags in rows for tag in tags if tag != OUTSIDE}
    return (OUTSIDE, *(f"{mark}-{kind}" for kind in sorted(kinds) for mark in "BI"))


def labelled_loss(logits_KC: Tensor, items: Sequence[Item]) -> Tensor:
    """Mean cross entropy over the tokens that have a label; 0 where none has."""
    targets_K = torch.from_numpy(np.concatenate([item.targets for item in items])).to(logits_KC.device)
    summed = cross_entropy(logits_KC, targets_K, ignore_index=NO_TARGET, reduction="sum")
    return summed / (targets_K != NO_TARGET).sum().clamp(min=1)


def predicted_tags(logits: Logits, items: Sequence[Item], labels: Sequence[str]) -> list[tuple[str, ...]]:
    """The tags of each example's words; a word that was cut off counts as predicted outside."""
    return [
        tuple(OUTSIDE if c is None else labels[c] for c in word_classes(rows[0], item.rows[0]))
        for rows, item in zip(logits, items, strict=True)
    ]


def tag_counts(items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
    """Words in rows by their tag."""
    targets_K = np.concatenate([item.targets for item in items]) if items else np.zeros(0, np.int64)
    found_C = np.bincount(targets_K[targets_K != NO_TARGET], minlength=len(labels))
    return dict(zip(labels, found_C.tolist(), strict=True))


def scores_by_kind(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, SpanScores]:
    """Counts of spans by their kind."""
    counts: dict[str, Counter[str]] = {}
    for gold_tags, found_tags in zip(gold, found, strict=True):
        true, predicted = set(spans_of(gold_tags)), set(spans_of(found_tags))
        for name, spans in (("gold", true), ("found", predicted), ("correct", true & predicted)):
            for span in spans:
                counts.setdefault(span.kind, Counter())[name] += 1
    return {kind: SpanScores(c["gold"], c["found"], c["correct"]) for kind, c in sorted(counts.items())}


def as_json(by_kind: Mapping[str, SpanScores]) -> dict[str, dict[str, float]]:
    """For a report."""
    return {
        kind: {"gold": s.num_gold, "precision": s.precision, "recall": s.recall, "f1": s.f1}
        for kind, s in by_kind.items()
    }
