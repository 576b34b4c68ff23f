"""Span F1 of every scheme, against conlleval restated as it runs: one pass over a file, token by token."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from prefixbank.model_store.tasks.spans import SpanScores, span_scores
from prefixbank.trainer.readers.tags import SCHEMES, iob2

Tags = list[str]
Runs = list[tuple[str, int]]
"""Kinds ("" outside) and lengths, one after the other."""


def begins(before: str, now: str) -> bool:
    """startOfChunk for the letters that CoNLL-2003 uses."""
    return now != "O" and (now[0] == "B" or before == "O" or before[2:] != now[2:])


def ends(before: str, now: str) -> bool:
    """endOfChunk."""
    return before != "O" and (now == "O" or now[0] == "B" or before[2:] != now[2:])


def conlleval(gold: list[Tags], predicted: list[Tags]) -> SpanScores:
    """Counts of a file; a chunk is right when both sides begin, end and are called alike."""
    counts: Counter[str] = Counter()
    agrees = False
    before = ("O", "O")
    rows = [
        pair for sentence in zip(gold, predicted, strict=True) for pair in [*zip(*sentence, strict=True), ("O", "O")]
    ]
    for true, found in rows:
        closed = (ends(before[0], true), ends(before[1], found))
        if agrees and closed == (True, True):
            counts["correct"] += 1
            agrees = False
        elif agrees and (closed[0] != closed[1] or true[2:] != found[2:]):
            agrees = False
        opened = (begins(before[0], true), begins(before[1], found))
        agrees = agrees or (opened == (True, True) and true[2:] == found[2:])
        counts["gold"] += opened[0]
        counts["found"] += opened[1]
        before = (true, found)
    return SpanScores(counts["gold"], counts["found"], counts["correct"])


def random_runs(chance: random.Random) -> Runs:
    return [
        (chance.choice(["", "", "PER", "LOC", "A-B"]), chance.randrange(1, 4)) for _ in range(chance.randrange(1, 6))
    ]


def tags_of(runs: Runs, scheme: str) -> Tags:
    """The runs as each scheme defines its tags."""
    tags: Tags = []
    for place, (kind, length) in enumerate(runs):
        if not kind:
            tags += (["*"] if scheme == "brackets" else ["O"]) * length
            continue
        touches = place > 0 and runs[place - 1][0] == kind
        if scheme == "brackets":
            tags += [f"({kind}*)"] if length == 1 else [f"({kind}*", *["*"] * (length - 2), "*)"]
            continue
        single = {"iob1": "B" if touches else "I", "iob2": "B", "bilou": "U", "iobes": "S"}[scheme]
        first = single if scheme.startswith("iob") and scheme != "iobes" else "B"
        last = {"bilou": "L", "iobes": "E"}.get(scheme, "I")
        marks = single if length == 1 else first + "I" * (length - 2) + last
        tags += [f"{mark}-{kind}" for mark in marks]
    return tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_says_the_same(scheme: str) -> None:
    chance = random.Random(scheme)
    for _ in range(1000):
        runs = random_runs(chance)
        assert iob2(tags_of(runs, scheme), scheme) == tuple(tags_of(runs, "iob2"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_are_conllevals(scheme: str) -> None:
    """Truth in any scheme as a file has it, predictions with every mistake a head can make."""
    chance = random.Random(scheme)
    truth = [random_runs(chance) for _ in range(2000)]
    gold = [list(iob2(tags_of(runs, scheme), scheme)) for runs in truth]
    marks = ["O", *(f"{mark}-{kind}" for mark in "BI" for kind in ("PER", "LOC", "A-B"))]
    predicted = [[tag if chance.random() < 0.8 else chance.choice(marks) for tag in tags] for tags in gold]
    scores = span_scores(gold, predicted)
    assert scores == conlleval([tags_of(runs, "iob2") for runs in truth], predicted)
    assert 0.3 < scores.f1 < 0.9


def test_iob1_is_scored_without_rewriting_too() -> None:
    chance = random.Random(1)
    gold = [tags_of(random_runs(chance), "iob1") for _ in range(2000)]
    predicted = [[tag if chance.random() < 0.8 else "O" for tag in tags] for tags in gold]
    assert span_scores(gold, predicted) == conlleval(gold, predicted)
