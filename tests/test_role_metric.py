"""F1 of semantic roles, against srl-eval.pl restated from its definition on brackets."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from prefixbank.model_store.tasks.semantic_roles import Argument, arguments_of
from prefixbank.model_store.tasks.spans import SpanScores
from prefixbank.trainer.metrics.roles import role_scores, scores_by_role, total_scores
from prefixbank.trainer.readers.propositions import read_propositions

if TYPE_CHECKING:
    from pathlib import Path

ROLES = ["A0", "A1", "AM-TMP", "C-A0", "C-A1", "C-AM-TMP", "R-A0", "V", "C-V", "C-C-A1"]


def brackets(tags: list[str]) -> list[str]:
    """The props column of IOB2 tags."""
    following = [*tags[1:], "O"]
    starts = [f"({tag[2:]}" if tag[0] == "B" else "" for tag in tags]
    ends = [")" if tag != "O" and after[0] != "I" else "" for tag, after in zip(tags, following, strict=True)]
    return [f"{start}*{end}" for start, end in zip(starts, ends, strict=True)]


def srl_arguments(column: list[str]) -> list[tuple[str, list[tuple[int, int]]]]:
    """load_SE_tagging: phrases in order; one called C-X joins the newest X, or becomes one."""
    phrases, begun = [], None
    for place, tag in enumerate(column):
        if tag.startswith("("):
            begun = (tag[1:].rstrip("*)"), place)
        if tag.endswith(")"):
            phrases.append((begun[0], begun[1], place))
    arguments, newest = [], {}
    for role, first, last in phrases:
        if role.startswith("C-") and role[2:] in newest:
            newest[role[2:]].append((first, last))
            continue
        role = role[2:] if role.startswith("C-") else role
        newest[role] = [(first, last)]
        arguments.append((role, newest[role]))
    return arguments


def srl_counts(gold: list[str], predicted: list[str]) -> dict[str, Counter[str]]:
    """discriminate_args: gold arguments by outer words; a prediction takes the one that is like it in all pieces."""
    by_extent = {(parts[0][0], parts[-1][1]): (role, parts) for role, parts in srl_arguments(gold)}
    counts = {"right": Counter(), "excess": Counter(), "missed": Counter()}
    for role, parts in srl_arguments(predicted):
        extent = (parts[0][0], parts[-1][1])
        if by_extent.get(extent) == (role, parts):
            del by_extent[extent]
            counts["right"][role] += 1
        else:
            counts["excess"][role] += 1
    counts["missed"].update(role for role, _ in by_extent.values())
    return counts


def random_roles(chance: random.Random, length: int) -> list[str]:
    tags: list[str] = []
    while len(tags) < length:
        kind, run = chance.choice([None, *ROLES]), min(chance.randrange(1, 4), length - len(tags))
        tags += ["O"] * run if kind is None else [f"B-{kind}", *[f"I-{kind}"] * (run - 1)]
    return tags


def disturbed(chance: random.Random, tags: list[str]) -> list[str]:
    """Mostly right; never an I- that continues nothing, which brackets cannot write."""
    found: list[str] = []
    for tag in tags:
        tag = chance.choice(["O", f"B-{chance.choice(ROLES)}"]) if chance.random() < 0.1 else tag
        torn = tag[0] == "I" and (not found or found[-1][2:] != tag[2:])
        found.append(f"B{tag[1:]}" if torn else tag)
    return found


@pytest.fixture(scope="module")
def propositions() -> list[tuple[list[str], list[str]]]:
    chance = random.Random(11)
    gold = [random_roles(chance, chance.randrange(1, 14)) for _ in range(3000)]
    return [(tags, disturbed(chance, tags)) for tags in gold]


def test_counts_are_srl_evals(propositions: list[tuple[list[str], list[str]]]) -> None:
    for gold, predicted in propositions:
        counts = srl_counts(brackets(gold), brackets(predicted))
        right, excess, missed = (
            sum(n for role, n in counts[name].items() if role != "V") for name in ("right", "excess", "missed")
        )
        assert role_scores(gold, predicted) == SpanScores(right + missed, right + excess, right)


def test_counts_by_role_are_srl_evals(propositions: list[tuple[list[str], list[str]]]) -> None:
    summed = {"right": Counter(), "excess": Counter(), "missed": Counter()}
    for gold, predicted in propositions:
        for name, counter in srl_counts(brackets(gold), brackets(predicted)).items():
            summed[name] += counter
    found = scores_by_role(*zip(*propositions, strict=True))
    assert sorted(found) == ["A0", "A1", "AM-TMP", "C-A1", "R-A0"]
    for role, scores in found.items():
        right, excess, missed = (summed[name][role] for name in ("right", "excess", "missed"))
        assert scores == SpanScores(right + missed, right + excess, right)


def test_totals_are_micro_averaged(propositions: list[tuple[list[str], list[str]]]) -> None:
    scores = [role_scores(gold, predicted) for gold, predicted in propositions]
    total = total_scores(scores)
    assert total.num_correct == sum(one.num_correct for one in scores)
    assert 0.4 < total.f1 < 0.9
    assert total_scores([]) == SpanScores(0, 0, 0)


@pytest.mark.parametrize(
    ("tags", "arguments"),
    [
        ("B-A1 O B-C-A1 I-C-A1", [("A1", (0, 1), (2, 4))]),
        ("B-A1 B-A1 B-C-A1", [("A1", (0, 1)), ("A1", (1, 2), (2, 3))]),
        ("B-C-A1 B-A0", [("A1", (0, 1)), ("A0", (1, 2))]),
        ("B-R-A0 B-A0", [("R-A0", (0, 1)), ("A0", (1, 2))]),
        ("I-A0 I-A0 I-A1", [("A0", (0, 2)), ("A1", (2, 3))]),
    ],
)
def test_pieces_join_the_newest_of_their_role(tags: str, arguments: list[tuple[object, ...]]) -> None:
    assert list(arguments_of(tags.split())) == [
        Argument(role, parts) for role, *rest in arguments for parts in [tuple(rest)]
    ]


def test_a_torn_argument_is_wrong_when_a_piece_is() -> None:
    assert role_scores(["B-A1", "O", "B-C-A1"], ["B-A1", "O", "O"]) == SpanScores(1, 1, 0)


def test_the_verb_counts_nowhere() -> None:
    assert role_scores(["B-V", "B-C-V", "B-A0"], ["O", "B-V", "B-A0"]) == SpanScores(1, 1, 1)


def test_real_propositions_against_themselves_are_all_right(shared_data: Path) -> None:
    path = shared_data / "srl" / "ewt_propbank" / "ewt_propbank_dev.gold_conll"
    total = total_scores([role_scores(row.tags, row.tags) for row in read_propositions(path).rows])
    assert total.f1 == 1.0
    assert total.num_gold == 9479, "as many as srl-eval.pl counts in the file"
