"""Families of tasks: rows as the server makes them, losses from their definitions, scores, confidence, mistakes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from prefixbank.model_store.errors import InvalidRecipe
from prefixbank.model_store.task_prompt import AnsweringSpec, RolesSpec, TaskFamily
from prefixbank.model_store.tasks import read_positions, task_module
from prefixbank.model_store.tasks.token_classification import NO_TARGET
from prefixbank.trainer.families import family_for
from prefixbank.trainer.families.answers import Answers
from prefixbank.trainer.families.classification import Classification
from prefixbank.trainer.families.family import mean_loss
from prefixbank.trainer.families.mistakes import Mark, Mistake, worst
from prefixbank.trainer.families.roles import Roles
from prefixbank.trainer.families.verbalizer import VerbalizedLabels
from prefixbank.trainer.families.words import WordLabels
from prefixbank.trainer.readers.examples import TextExample
from prefixbank.trainer.recipe import parse
from tests.family_cases import CONTEXT, NAMES, PROPOSITIONS, QUESTIONS, TEXTS, case_of, random_logits, right_logits
from tests.tiny import tiny_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAMILIES = {
    "classification": TaskFamily.TEXT_CLASSIFICATION,
    "verbalizer": TaskFamily.TEXT_CLASSIFICATION,
    "words": TaskFamily.TOKEN_CLASSIFICATION,
    "answers": TaskFamily.QUESTION_ANSWERING,
    "unanswered": TaskFamily.QUESTION_ANSWERING,
    "roles": TaskFamily.SEMANTIC_ROLES,
    "choices": TaskFamily.MULTIPLE_CHOICE,
}


def cross_entropy(logits: NDArray[Any], target: int) -> float:
    shifted = logits.astype(np.float64) - logits.max()
    return float(np.log(np.exp(shifted).sum()) - shifted[target])


@pytest.mark.parametrize("name", NAMES)
def test_the_server_builds_the_same_task_from_what_the_artifact_stores(name: str) -> None:
    case = case_of(name)
    assert task_module(FAMILIES[name], case.prep) == case.family.task or name in ("classification", "words", "choices")
    assert type(task_module(FAMILIES[name], case.prep)) is type(case.family.task)


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_score_one_and_leave_no_mistake(name: str) -> None:
    case = case_of(name)
    items = case.items()
    full = case.family.score_in_full(right_logits(name, case, items), items, case.labels)
    assert full.metrics[case.score] == 1
    assert full.details["mistakes"] == []
    assert full.intervals[case.score][1] == 1
    assert set(full.metrics) - {"ece", "has_answer_f1", "has_answer_exact", "no_answer_f1", "no_answer_exact"} == set(
        case.family.metrics
    )


@pytest.mark.parametrize("name", NAMES)
def test_scores_in_full_are_those_of_an_epoch_and_more(name: str) -> None:
    case = case_of(name)
    items = case.items()
    logits = random_logits(case, items)
    plain, full = (score(logits, items, case.labels) for score in (case.family.score, case.family.score_in_full))
    assert {key: value for key, value in full.metrics.items() if key != "ece"} == plain.metrics
    assert case.family.metric in plain.metrics
    low, high = full.intervals[case.family.metric]
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("name", NAMES)
def test_calibration_counts_every_answer_once(name: str) -> None:
    case = case_of(name)
    items = case.items()
    full = case.family.score_in_full(random_logits(case, items, seed=3), items, case.labels)
    calibration = full.details["calibration"]
    gaps = sum(one["count"] * abs(one["confidence"] - one["accuracy"]) for one in calibration["bins"])
    count = sum(one["count"] for one in calibration["bins"])
    assert calibration["ece"] == pytest.approx(gaps / count) == full.metrics["ece"]
    assert count == len(items) or name in ("words", "roles")


@pytest.mark.parametrize("name", NAMES)
def test_marks_of_mistakes_lie_in_their_texts(name: str) -> None:
    case = case_of(name)
    items = case.items()
    found = case.family.score_in_full(random_logits(case, items, seed=2), items, case.labels).details["mistakes"]
    assert found
    assert [one["where"] in {item.example.where for item in items} for one in found] == [True] * len(found)
    for one in found:
        for mark in one["marks"]:
            assert one["texts"][mark["text"]][mark["start"] : mark["end"]].strip()
    assert (
        replace(case.family, num_mistakes=0)
        .score_in_full(random_logits(case, items), items, case.labels)
        .details["mistakes"]
        == []
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_random_logits_falls_along_its_gradient(name: str) -> None:
    case = case_of(name)
    items = case.items(training=True)
    flat = [np.atleast_2d(one) for rows in random_logits(case, items) for one in rows]
    logits_KC = torch.from_numpy(np.concatenate(flat)).double().requires_grad_()
    loss = case.family.loss(logits_KC, items)
    (gradient,) = torch.autograd.grad(loss, logits_KC)
    assert torch.isfinite(gradient).all()
    assert case.family.loss(logits_KC - 0.1 * gradient, items) < loss


def test_the_loss_of_words_is_the_mean_over_first_tokens() -> None:
    case = case_of("words")
    items = case.items()
    logits = random_logits(case, items)
    wanted = [
        cross_entropy(rows[0][t], item.targets[t])
        for rows, item in zip(logits, items, strict=True)
        for t in np.flatnonzero(item.targets != NO_TARGET)
    ]
    assert len(wanted) == 7
    assert mean_loss(case.family, logits, items) == pytest.approx(np.mean(wanted))


def test_rows_without_a_label_cost_nothing() -> None:
    case = case_of("words")
    item = case.items()[0]
    empty = item._replace(targets=np.full_like(item.targets, NO_TARGET))
    assert mean_loss(case.family, random_logits(case, [empty]), [empty]) == 0


def test_the_loss_of_answers_is_the_mean_of_start_and_end_over_each_window() -> None:
    case = case_of("unanswered")
    items = case.items(training=True)
    logits = random_logits(case, items)
    wanted = [
        cross_entropy(rows[0][:, side], item.targets[0][side])
        for rows, item in zip(logits, items, strict=True)
        for side in (0, 1)
    ]
    assert mean_loss(case.family, logits, items) == pytest.approx(np.mean(wanted))


def test_the_loss_of_choices_is_over_the_choices_of_a_premise() -> None:
    case = case_of("choices")
    items = case.items()
    logits = random_logits(case, items)
    wanted = [cross_entropy(np.concatenate(rows), item.targets[0]) for rows, item in zip(logits, items, strict=True)]
    assert [len(item.rows) for item in items] == [2, 3]
    assert mean_loss(case.family, logits, items) == pytest.approx(np.mean(wanted))


def test_the_loss_of_a_verbalizer_is_over_the_labels_scores() -> None:
    case = case_of("verbalizer")
    assert isinstance(case.family, VerbalizedLabels)
    assert [len(tokens) for tokens in case.family.spec.token_ids] == [1, 2]
    items = case.items()
    logits = random_logits(case, items)
    scores = [case.family.task.label_logits(rows[0]) for rows in logits]
    wanted = [cross_entropy(one, item.targets[0]) for one, item in zip(scores, items, strict=True)]
    assert mean_loss(case.family, logits, items) == pytest.approx(np.mean(wanted))
    assert all(len(read_positions(case.family.task, item.rows[0])) == 2 for item in items)


def test_questions_are_trained_by_window_and_evaluated_whole() -> None:
    case = case_of("unanswered")
    whole, windows = case.items(), case.items(training=True)
    assert [len(item.rows) for item in whole] == [len(item.targets) for item in whole]
    assert len(windows) == sum(len(item.rows) for item in whole) > len(whole)
    nulls = [item for item in windows if not item.targets.any()]
    assert {item.example.where for item in nulls} == {"c: q1", "c: q3"}
    answered = next(item for item in windows if item.targets.any())
    tokens = [tiny_tokenizer("bert").id_to_token(int(token)) for token in answered.rows[0].token_ids]
    start, end = answered.targets[0]
    assert tokens[start : end + 1] == ["john", "smith"]


def test_a_threshold_is_tuned_only_where_there_may_be_no_answer() -> None:
    case = case_of("answers")
    items = case.items()
    assert case.family.tuned(random_logits(case, items), items) is case.family
    case = case_of("unanswered")
    items = case.items()
    logits = right_logits("unanswered", case, items)
    for rows, item in zip(logits, items, strict=True):
        for logits_T2 in rows:
            logits_T2[0] += 50.0 if item.example.where == "c: q3" else 20.0
    assert case.family.score(logits, items, case.labels).metrics["f1"] == pytest.approx(1 / 3)
    tuned = case.family.tuned(logits, items)
    assert tuned.score(logits, items, case.labels).metrics["f1"] == 1
    assert tuned.preprocessing(case.labels).answering == tuned.spec != AnsweringSpec(null_threshold=0.0, stride=4)


def test_the_confidence_of_an_answer_is_the_servers() -> None:
    case = case_of("unanswered")
    (item,) = case.items()[:1]
    logits = random_logits(case, [item])
    task = case.family.task
    (served,) = task.decode(logits[0], item.rows, case.labels, task.parse_parameters({}))
    full = case.family.score_in_full(logits, [item], case.labels)
    assert full.details["calibration"]["bins"][0]["confidence"] == pytest.approx(served["score"])


def test_answers_are_scored_as_version_one_where_all_have_one() -> None:
    """Version 1.1 gives nothing for an answer of which nothing is left, version 2.0 drops it."""
    case = case_of("answers")
    items = case.items()
    assert set(case.family.score(random_logits(case, items), items, case.labels).metrics) == {"loss", "exact", "f1"}
    assert case.family.counts(items, case.labels) == {"answer": 2, "no answer": 0}


def test_questions_about_one_text_are_drawn_together() -> None:
    """Two questions with opposite scores about one text: every draw has both, so that the interval is a point."""
    case = case_of("answers")
    items = case.items()
    logits = right_logits("answers", case, items)
    logits[1] = [np.zeros_like(one) for one in logits[1]]
    full = case.family.score_in_full(logits, items, case.labels)
    assert full.intervals["exact"] == [0.5, 0.5]


def test_roles_leave_the_verb_out_where_words_count_it() -> None:
    case = case_of("roles")
    items = case.items()
    logits = right_logits("roles", case, items)
    verb = case.labels.index("B-V")
    for rows, item in zip(logits, items, strict=True):
        for t in np.flatnonzero(item.targets == verb):
            rows[0][t, verb] -= 50
            rows[0][t, case.labels.index("O")] += 20
    scores = case.family.score(logits, items, case.labels).metrics
    assert scores["role_f1"] == 1 > scores["span_f1"]
    by_type = case.family.score_in_full(logits, items, case.labels).details["by_type"]
    assert set(by_type) == {"ARG0", "ARG1"}


def test_a_torn_argument_is_one_mark_per_piece() -> None:
    case = case_of("roles")
    items = case.items()[:1]
    logits = right_logits("roles", case, items)
    last = int(np.flatnonzero(items[0].targets != NO_TARGET)[-1])
    logits[0][0][last] = np.eye(len(case.labels))[0]
    (mistake,) = case.family.score_in_full(logits, items, case.labels).details["mistakes"]
    text = mistake["texts"][0]
    marks = [(text[mark["start"] : mark["end"]], mark["kind"], mark["label"]) for mark in mistake["marks"]]
    assert mistake["expected"] == "ARG1: some music ... turn"
    assert mistake["found"] == "ARG1: some music"
    assert marks == [
        ("play", "both", "V"),
        ("some music", "expected", "ARG1"),
        ("some music", "found", "ARG1"),
        ("turn", "expected", "ARG1"),
    ]


def test_f1_of_two_labels_is_that_of_the_last() -> None:
    case = case_of("classification")
    items = case.items()
    logits = [[np.array([0.0, 1.0], np.float32)]] * 3
    assert case.labels == ("bad", "good")
    scores = case.family.score(logits, items, case.labels).metrics
    assert (scores["f1"], scores["accuracy"]) == (pytest.approx(0.5), pytest.approx(1 / 3))


def test_f1_is_refused_where_there_are_not_two_labels() -> None:
    three = [*TEXTS, TextExample(("x", "y"), "odd", "a:4")]
    with pytest.raises(InvalidRecipe, match=r"\"f1\" with 3 labels \(bad, good, odd\), wanted \"macro_f1\""):
        Classification(32, ("a", "b"), "f1").labels(three, None)


def test_the_default_separator_is_not_stored() -> None:
    assert Roles(16).preprocessing(()).roles is None
    assert Roles(16, separator="|").preprocessing(()).roles == RolesSpec(separator="|")


def test_counts_tell_what_a_split_holds() -> None:
    found = {name: (case := case_of(name)).family.counts(case.items(), case.labels) for name in NAMES}
    assert found["classification"] == found["verbalizer"] == {"bad": 2, "good": 1}
    assert found["words"] == {"O": 4, "B-LOC": 1, "I-LOC": 0, "B-PER": 1, "I-PER": 1}
    assert found["unanswered"] == {"answer": 2, "no answer": 1}
    assert found["choices"] == {"choice 1": 1, "choice 2": 1}
    assert found["roles"]["B-V"] == 2


def test_the_worst_mistakes_come_first_and_long_texts_are_cut_around_their_marks() -> None:
    long = "a" * 6000 + "MARK" + "b" * 6000
    marked = Mistake(2.0, "x:2", ("short", long), "e", "f", 0.9, (Mark(1, 6000, 6004, "found", "L"),))
    plain = Mistake(1.0, "x:1", (long,), "e", "f", 0.5)
    first, second = worst([plain, marked], 5)
    assert (first["where"], second["where"]) == ("x:2", "x:1")
    (mark,) = first["marks"]
    assert first["texts"][1][mark["start"] : mark["end"]] == "MARK"
    assert len(first["texts"][1]) == len(second["texts"][0]) + 1 == 2002
    assert worst([plain, marked], 1) == [first]


class FakeBackbone:
    tokenizer = tiny_tokenizer("bert")


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ({"family": "text-classification"}, Classification),
        ({"family": "token-classification"}, WordLabels),
        ({"family": "question-answering", "answering": {"stride": 7}}, Answers),
        ({"family": "semantic-role-labeling", "roles": {"separator": "|"}}, Roles),
        (
            {
                "family": "text-classification",
                "head": {"kind": "verbalizer", "template": "{text} {mask}", "words": {"a": "sky", "b": "sea"}},
            },
            VerbalizedLabels,
        ),
    ],
)
def test_a_recipe_finds_its_family(table: dict[str, Any], kind: type) -> None:
    recipe = parse({"data": {"train": "x"}, "report": {"mistakes": 3}, **table})
    family: Any = family_for(recipe, FakeBackbone(), [])
    assert (type(family), family.num_mistakes, family.max_tokens) == (kind, 3, 128)


@pytest.mark.parametrize(
    ("asked", "examples", "threshold"),
    [
        ("auto", QUESTIONS, None),
        ("auto", case_of("unanswered").examples, 0.0),
        (True, QUESTIONS, 0.0),
        (False, [], None),
    ],
)
def test_training_questions_tell_whether_there_may_be_no_answer(asked: Any, examples: Any, threshold: Any) -> None:
    table = {"family": "question-answering", "data": {"train": "x"}, "answering": {"unanswerable": asked}}
    family: Any = family_for(parse(table), FakeBackbone(), examples)
    assert family.spec.null_threshold == threshold


def test_propositions_and_contexts_are_what_they_claim() -> None:
    assert CONTEXT[QUESTIONS[0].answers[0].start :] == "John Smith"
    assert all(one.tags[one.predicate] == "B-V" for one in PROPOSITIONS)
