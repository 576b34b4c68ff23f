"""Exact match, F1 and thresholds of answers, against the official scripts restated from their definitions."""

from __future__ import annotations

import random
import string

import pytest

from prefixbank.trainer.metrics.squad import (
    Judged,
    best_threshold,
    judge_v1,
    judge_v2,
    normalise,
    refused,
    summary_v2,
    tuned_null_threshold,
)

WORDS = ["the", "The", "a", "AN", "cat", "Cat,", "cat's", "U.S.", "1,000", "--", "theatre", "a-b", "\u3000", "…", "É"]


def words_left(text: str) -> list[str]:
    """Words without case and punctuation; no articles, also those that punctuation leaves between other signs."""
    kept = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    runs, word = [], ""
    for sign in kept + " ":
        if (sign.isalnum() or sign == "_") == (word[-1:].isalnum() or word[-1:] == "_"):
            word += sign
        else:
            runs.append(" " if word in ("a", "an", "the") else word)
            word = sign
    return "".join([*runs, word]).split()


def overlap(found: list[str], wanted: list[str]) -> float:
    """F1 of two bags of words, by striking out."""
    left = list(wanted)
    same = sum(word in left and left.remove(word) is None for word in found)
    return 2 * same / (len(found) + len(wanted)) if same else 0.0


def script(prediction: str, answers: list[str], version: int) -> tuple[float, float]:
    found = words_left(prediction)
    wanted = [words_left(answer) for answer in answers]
    if version == 2:
        wanted = [words for words in wanted if words] or [[]]
    empty = [float(version == 2 and found == words) for words in wanted]
    f1 = [overlap(found, one) if found and one else nothing for one, nothing in zip(wanted, empty, strict=True)]
    return float(any(found == words for words in wanted)), max(f1)


def random_text(chance: random.Random) -> str:
    return chance.choice([" ", "  ", "\n"]).join(chance.choices(WORDS, k=chance.randrange(6)))


def random_questions(seed: int, count: int, least_answers: int) -> list[tuple[str, list[str]]]:
    chance = random.Random(seed)
    questions = []
    for _ in range(count):
        answers = [random_text(chance) for _ in range(chance.randrange(least_answers, 4))]
        near = chance.choice(answers) if answers and chance.random() < 0.6 else random_text(chance)
        questions.append(("" if chance.random() < 0.2 else near, answers))
    return questions


@pytest.mark.parametrize(("version", "judge"), [(1, judge_v1), (2, judge_v2)])
def test_scores_are_the_scripts(version: int, judge: type) -> None:
    scores = set()
    for prediction, answers in random_questions(version, 2000, least_answers=2 - version):
        judged = judge(prediction, answers)
        assert judged == pytest.approx(script(prediction, answers, version))
        scores.add(judged.exact == judged.f1)
    assert scores == {True, False}


@pytest.mark.parametrize(
    ("text", "left"),
    [("The  U.S. Navy", "us navy"), ("an\ta the", ""), ("theatre, Anna", "theatre anna"), ("a-b", "ab"), ("…", "…")],
)
def test_texts_are_compared_without_articles_and_punctuation(text: str, left: str) -> None:
    assert normalise(text) == left


def test_an_article_alone_scores_differently_in_both_versions() -> None:
    assert judge_v1("the", ["a"]) == Judged(1.0, 0.0)
    assert judge_v2("the", ["a"]) == Judged(1.0, 1.0)


def script_sweep(scores: list[float], unsure: list[float], has: list[bool], texts: list[str]) -> tuple[float, float]:
    """find_best_thresh: from nobody answered, questions come in by their no-answer score."""
    reached = best = float(has.count(False))
    threshold = 0.0
    for i in sorted(range(len(scores)), key=lambda i: unsure[i]):
        reached += scores[i] if has[i] else -bool(texts[i])
        if reached > best:
            best, threshold = reached, unsure[i]
    return best / len(scores), threshold


@pytest.mark.parametrize("seed", range(10))
def test_the_best_threshold_is_the_scripts(seed: int) -> None:
    chance = random.Random(seed)
    questions = random_questions(seed, 1000, least_answers=0)
    unsure = [chance.choice([chance.random(), chance.randrange(5) / 5]) for _ in questions]
    texts, has = [text for text, _ in questions], [bool(answers) for _, answers in questions]
    scores = [judge_v2(*question).f1 for question in questions]
    assert best_threshold(scores, unsure, has, texts) == pytest.approx(script_sweep(scores, unsure, has, texts))


def test_refusing_everything_names_the_threshold_it_is_given() -> None:
    assert best_threshold([0.0, 0.0], [-3.0, -1.0], [False, True], ["x", "y"], answer_nothing=-4.0) == (0.5, -4.0)


def test_applying_a_threshold_gives_what_the_sweep_promised() -> None:
    """But for predictions of articles alone, which the script's sweep takes for answers and its F1 for none."""
    chance = random.Random(7)
    questions = [one for one in random_questions(7, 1500, least_answers=0) if not one[0] or normalise(one[0])]
    judged = [judge_v2(*question) for question in questions]
    has, unsure = [bool(answers) for _, answers in questions], [chance.random() for _ in questions]
    best = best_threshold([one.exact for one in judged], unsure, has, [text for text, _ in questions])
    kept = [
        refused(one, has_answer=is_there) if doubt > best.threshold else one
        for one, is_there, doubt in zip(judged, has, unsure, strict=True)
    ]
    assert summary_v2(kept, has)["exact"] == pytest.approx(best.score)


def test_the_null_threshold_is_tuned_on_differences_of_logits() -> None:
    predicted, differences = ["cat", "dog", "", "owl"], [-5.0, -1.0, float("inf"), 2.0]
    assert tuned_null_threshold(predicted, differences, [["cat"], ["dog"], [], []]) == (1.0, 0.5)
    assert tuned_null_threshold(predicted, differences, [[], [], [], []]) == (1.0, -5.5)
    assert tuned_null_threshold(predicted, differences, [["cat"], ["dog"], [], ["owl"]]) == (1.0, 3.0)


def test_no_question_hangs_on_the_last_bits_of_a_logit() -> None:
    chance = random.Random(3)
    questions = random_questions(3, 500, least_answers=0)
    texts, answers = [text for text, _ in questions], [found for _, found in questions]
    differences = [chance.gauss(0, 3) for _ in questions]
    best = tuned_null_threshold(texts, differences, answers)
    scores = [judge_v2(*question).f1 for question in questions]
    as_the_script = best_threshold(scores, differences, [bool(found) for found in answers], texts)
    assert best.score == as_the_script.score
    assert [one > best.threshold for one in differences] == [one > as_the_script.threshold for one in differences]
    assert min(abs(one - best.threshold) for one in differences) > 1e-4


def test_a_summary_parts_questions_with_and_without_an_answer() -> None:
    found = summary_v2([Judged(1, 1), Judged(0, 0.5), Judged(1, 1)], [True, True, False])
    assert found == pytest.approx(
        {"exact": 2 / 3, "f1": 2.5 / 3}
        | {"has_answer_exact": 0.5, "has_answer_f1": 0.75, "no_answer_exact": 1.0, "no_answer_f1": 1.0}
    )


def test_a_summary_of_one_kind_names_no_other() -> None:
    assert sorted(summary_v2([Judged(1, 1)], [True])) == ["exact", "f1", "has_answer_exact", "has_answer_f1"]
