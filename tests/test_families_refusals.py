"""Families of tasks: labels and rows that do not fit are refused by place, or cut and told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prefixbank.model_store.errors import InvalidData, InvalidRecipe, TrainingError
from prefixbank.model_store.task_prompt import AnsweringSpec
from prefixbank.model_store.tasks.token_classification import NO_TARGET
from prefixbank.trainer.families.answers import Answers
from prefixbank.trainer.families.classification import Classification
from prefixbank.trainer.families.roles import Roles
from prefixbank.trainer.families.verbalizer import spelled
from prefixbank.trainer.families.words import WordLabels
from prefixbank.trainer.readers.examples import PropositionExample, QuestionExample, TextExample, WordsExample
from tests.family_cases import TEXTS, case_of, right_logits
from tests.tiny import tiny_tokenizer


def test_one_label_alone_is_refused() -> None:
    with pytest.raises(TrainingError, match="found the labels bad, wanted two or more"):
        Classification(32).labels(TEXTS[1:], None)
    with pytest.raises(TrainingError, match="found the labels O, wanted two or more"):
        WordLabels(32).labels([WordsExample(("a",), ("O",), "x")], None)


@pytest.mark.parametrize("name", ["classification", "words", "roles"])
def test_a_label_that_training_has_not_seen_is_refused_by_place(name: str) -> None:
    case = case_of(name)
    labels = [label for label in case.labels if label not in ("good", "B-PER", "B-V")]
    where = {"classification": "a:1", "words": "b:1", "roles": "d:1"}[name]
    with pytest.raises(InvalidData, match=f"^{where}: found label .* wanted one of the training labels"):
        case.family.items(case.examples, labels, tiny_tokenizer("bert"), case.prep, training=True)


@pytest.mark.parametrize("name", ["words", "roles"])
def test_a_rare_tag_that_training_has_not_seen_counts_as_missed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = case_of(name)
    odd = replace(case.examples[0], tags=("B-NEW", *case.examples[0].tags[1:]), where="late:9")
    examples = [*case.examples] * 5 + [odd]
    items = case.family.items(examples, case.labels, tiny_tokenizer("bert"), case.prep, training=False)
    assert items[-1].targets[1] == NO_TARGET
    (message,) = caplog.messages
    assert message.startswith("late:9: 1 of ")
    assert "tagged words have tags that training has not (B-NEW): they count as missed" in message
    scores = case.family.score(right_logits(name, case, items), items, case.labels).metrics
    assert scores["recall"] < 1


def test_tags_of_another_set_of_labels_are_refused_by_place() -> None:
    case = case_of("words")
    examples = [WordsExample(("a", "b"), ("B-person", "O"), "late:9")]
    with pytest.raises(
        InvalidData, match=r"^late:9: 1 of 1 tagged words .*\(B-person\), wanted those of training: O, B-"
    ):
        case.family.items(examples, case.labels, tiny_tokenizer("bert"), case.prep, training=False)


def test_a_label_without_a_word_is_refused_by_place() -> None:
    with pytest.raises(InvalidData, match=r"^a:9: found label 'odd', head.words has words for bad, good"):
        case_of("verbalizer").family.labels([TextExample(("x", "y"), "odd", "a:9")], None)


def test_a_word_that_the_vocabulary_lacks_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match=r"head\.words: .*no tokens for the word '☃'"):
        spelled("{text} {mask}", {"a": "joy", "b": "☃"}, tiny_tokenizer("bert"))


def test_two_labels_with_the_same_tokens_are_refused() -> None:
    with pytest.raises(InvalidRecipe, match="same tokens for 'joy' and 'JOY'"):
        spelled("{text} {mask}", {"a": "joy", "b": "JOY"}, tiny_tokenizer("bert"))


def test_a_row_of_a_hundred_thousand_words_is_cut_and_told() -> None:
    words = ("sky",) * 100_000
    examples = [WordsExample(words, ("B-X", *["O"] * 99_999), "x:1")]
    family = WordLabels(32)
    labels = family.labels(examples, None)
    (item,) = family.items(examples, labels, tiny_tokenizer("bert"), family.preprocessing(labels), training=False)
    assert (item.num_tokens, item.truncated) == (32, True)
    scores = family.score_in_full([[np.zeros((32, 3), np.float32)]], [item], labels)
    assert scores.metrics["recall"] == 0


def test_a_text_of_a_hundred_thousand_words_becomes_as_many_windows_as_a_request_may() -> None:
    example = QuestionExample("why?", "sky " * 100_000, (), "q", 0, "x: q")
    family = Answers(32, AnsweringSpec(null_threshold=0.0))
    prep = family.preprocessing(("start", "end"))
    (item,) = family.items([example], ("start", "end"), tiny_tokenizer("bert"), prep, training=False)
    assert (len(item.rows), item.truncated) == (64, True)


def test_a_predicate_that_leaves_no_room_is_refused_by_place() -> None:
    example = PropositionExample(("ab" * 45, "b"), ("B-V", "B-ARG1"), 0, 0, "x:7")
    family = Roles(16)
    labels = family.labels([example], None)
    with pytest.raises(InvalidData, match=r"^x:7: .*the predicate and its separator take"):
        family.items([example], labels, tiny_tokenizer("bert"), family.preprocessing(labels), training=True)
