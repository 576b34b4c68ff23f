"""Spans are counted as conlleval counts them; its rules are restated here from its source, tag pair by tag pair."""

from __future__ import annotations

import random

import pytest

from prefixbank.model_store.tasks.spans import Span, SpanScores, span_scores, spans_of

ENDS = {"BB", "BS", "BO", "IB", "IS", "IO"} | {mark + tag for mark in "ES" for tag in "BIESO"}
"""conlleval's endOfChunk: the tag before, the tag now; an end and a single always close."""
STARTS = {mark + tag for mark in "BIESO" for tag in "BS"} | {"EE", "EI", "SE", "SI", "OE", "OI"}
"""conlleval's startOfChunk."""
BILOU = {"B": "B", "I": "I", "L": "E", "U": "S", "O": "O"}


def parts(tag: str) -> tuple[str, str]:
    mark, _, kind = tag.partition("-")
    return mark, kind


def conlleval_spans(tags: list[str]) -> set[Span]:
    """The chunks that conlleval finds in one sentence."""
    spans, start = set(), 0
    mark, kind = "O", ""
    for position, tag in enumerate([*tags, "O"]):
        previous_mark, previous_kind, (mark, kind) = mark, kind, parts(tag)
        changed = kind != previous_kind
        if previous_mark != "O" and (previous_mark + mark in ENDS or changed):
            spans.add(Span(previous_kind, start, position))
        if mark != "O" and (previous_mark + mark in STARTS or changed):
            start = position
    return spans


def random_tags(chance: random.Random, marks: str) -> list[str]:
    tags = ["O", "O", *(f"{mark}-{kind}" for mark in marks for kind in ("PER", "LOC"))]
    return chance.choices(tags, k=chance.randrange(12))


@pytest.mark.parametrize("marks", ["I", "BI", "IE", "BIES"])
def test_spans_are_conllevals_on_any_tags(marks: str) -> None:
    chance = random.Random(marks)
    for _ in range(1000):
        tags = random_tags(chance, marks)
        found = spans_of(tags)
        assert set(found) == conlleval_spans(tags)
        assert list(found) == sorted(found, key=lambda span: span.start)


def test_bilou_is_iobes_in_other_letters() -> None:
    chance = random.Random(0)
    for _ in range(1000):
        tags = random_tags(chance, "BILU")
        assert spans_of(tags) == spans_of([BILOU[tag[0]] + tag[1:] for tag in tags])


def test_scores_are_conllevals() -> None:
    chance = random.Random(1)
    gold = [random_tags(chance, "BI") for _ in range(1000)]
    predicted = [[tag if chance.random() < 0.8 else "O" for tag in tags] for tags in gold]
    true, found = (
        {(i, *span) for i, tags in enumerate(side) for span in conlleval_spans(tags)} for side in (gold, predicted)
    )
    precision, recall = len(true & found) / len(found), len(true & found) / len(true)
    scores = span_scores(gold, predicted)
    assert (scores.precision, scores.recall) == (precision, recall)
    assert scores.f1 == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("", []),
        ("O O", []),
        ("I-A I-A O I-A", [("A", 0, 2), ("A", 3, 4)]),
        ("I-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),
        ("B-A I-B", [("A", 0, 1), ("B", 1, 2)]),
        ("B-A L-A U-A", [("A", 0, 2), ("A", 2, 3)]),
        ("B-A E-A S-A", [("A", 0, 2), ("A", 2, 3)]),
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
        ("PER PER O LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B I O", [("", 0, 2)]),
        ("X-A X-A", [("X-A", 0, 2)]),
    ],
)
def test_spans_of_each_scheme(tags: str, spans: list[tuple[str, int, int]]) -> None:
    assert list(spans_of(tags.split())) == spans


def test_nothing_to_count_scores_zero() -> None:
    scores = span_scores([["O"]], [["O"]])
    assert (scores.precision, scores.recall, scores.f1) == (0.0, 0.0, 0.0)


def test_f1_of_known_counts() -> None:
    assert SpanScores(num_gold=4, num_predicted=2, num_correct=1).f1 == pytest.approx(1 / 3)
