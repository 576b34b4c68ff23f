"""A task's module is its family's with the manifest's settings, and says which positions a head reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefixbank.model_store.task_prompt import (
    AnsweringSpec,
    Preprocessing,
    RolesSpec,
    TaskFamily,
)
from prefixbank.model_store.tasks import TaskModule, read_positions, task_module
from prefixbank.model_store.tasks.features import Features, Text, Words
from prefixbank.model_store.tasks.multiple_choice import Choices
from prefixbank.model_store.tasks.question_answering import QuestionAnswering
from prefixbank.model_store.tasks.semantic_roles import Predicates, SemanticRoles
from prefixbank.model_store.tasks.verbalizer import Verbalizer
from tests.prompt_cases import WORDS

ROW = Features(np.arange(5), np.zeros(5, dtype=np.int64))


def module(family: TaskFamily, **settings: Any) -> TaskModule:
    return task_module(family, Preprocessing(max_tokens=64, **settings))


@pytest.mark.parametrize("family", TaskFamily)
def test_every_family_has_a_module(family: TaskFamily) -> None:
    assert module(family).num_outputs(["start", "end"]) in (1, 2)


def test_absent_settings_are_the_published_ones() -> None:
    assert module(TaskFamily.QUESTION_ANSWERING) == QuestionAnswering()
    assert module(TaskFamily.SEMANTIC_ROLES) == SemanticRoles()


def test_settings_are_the_manifests() -> None:
    spec = AnsweringSpec(stride=9, max_question_tokens=8, max_answer_tokens=7, num_best=6, null_threshold=-0.5)
    assert module(TaskFamily.QUESTION_ANSWERING, answering=spec) == QuestionAnswering(9, 8, 7, 6, -0.5)
    assert module(TaskFamily.SEMANTIC_ROLES, roles=RolesSpec(separator="|")) == SemanticRoles("|")


@pytest.mark.parametrize(
    ("family", "positions"),
    [
        (TaskFamily.TEXT_CLASSIFICATION, [0]),
        (TaskFamily.MULTIPLE_CHOICE, [0]),
        (TaskFamily.TOKEN_CLASSIFICATION, [0, 1, 2, 3, 4]),
        (TaskFamily.QUESTION_ANSWERING, [0, 1, 2, 3, 4]),
        (TaskFamily.SEMANTIC_ROLES, [0, 1, 2, 3, 4]),
    ],
)
def test_a_head_reads_the_first_token_or_all(family: TaskFamily, positions: list[int]) -> None:
    assert read_positions(module(family), ROW).tolist() == positions


def test_a_row_may_say_what_is_read() -> None:
    row = Features(ROW.token_ids, ROW.type_ids, reads=np.array([3, 1]))
    assert read_positions(module(TaskFamily.TEXT_CLASSIFICATION), row).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("item", "characters", "repeated"),
    [
        (Text("abc"), 4, 0),
        (Text("abc", "de"), 7, 0),
        (Words(("a", "bcd")), 6, 0),
        (Choices("abc", ("d", "ef")), 4 + 2 + 4 + 3, 4),
        (Choices("abc", ("d", "ef"), "so"), 7 + 2 + 7 + 3, 7),
        (Predicates(("a", "bcd"), (0,)), 6, 0),
        (Predicates(("a", "bcd"), (0, 1, 1)), 18, 12),
    ],
)
def test_an_input_says_how_much_is_tokenised(item: Any, characters: int, repeated: int) -> None:
    assert (item.num_characters, item.num_repeated_characters) == (characters, repeated)


_ONE, _TWO = [{"score": 1.0}], [{"score": 1.0}, {"score": 0.5}]


@pytest.mark.parametrize(
    ("family", "asked", "answers", "batched", "arranged"),
    [
        (TaskFamily.TEXT_CLASSIFICATION, {}, [_TWO], False, [_TWO]),
        (TaskFamily.TEXT_CLASSIFICATION, {}, [_TWO], True, [_TWO]),
        (TaskFamily.TOKEN_CLASSIFICATION, {}, [_TWO], False, _TWO),
        (TaskFamily.TOKEN_CLASSIFICATION, {}, [_TWO, _ONE], True, [_TWO, _ONE]),
        (TaskFamily.MULTIPLE_CHOICE, {}, [_TWO], False, _TWO),
        (TaskFamily.MULTIPLE_CHOICE, {}, [_TWO], True, [_TWO]),
        (TaskFamily.SEMANTIC_ROLES, {}, [_TWO], False, _TWO),
        (TaskFamily.SEMANTIC_ROLES, {}, [_TWO], True, [_TWO]),
        (TaskFamily.QUESTION_ANSWERING, {}, [_ONE], False, _ONE[0]),
        (TaskFamily.QUESTION_ANSWERING, {"top_k": 1}, [_ONE], False, _ONE[0]),
        (TaskFamily.QUESTION_ANSWERING, {"top_k": 2}, [_TWO], False, _TWO),
        (TaskFamily.QUESTION_ANSWERING, {"top_k": 2}, [_ONE], False, _ONE),
        (TaskFamily.QUESTION_ANSWERING, {}, [_ONE, _ONE], True, [_ONE[0], _ONE[0]]),
        (TaskFamily.QUESTION_ANSWERING, {"top_k": 2}, [_TWO], True, [_TWO]),
    ],
)
def test_answers_are_arranged_as_clients_unpack_them(
    family: TaskFamily, asked: dict[str, object], answers: list[Any], batched: bool, arranged: object
) -> None:
    task = module(family)
    assert task.arrange(answers, task.parse_parameters(asked), batched=batched) == arranged


def test_a_verbalizer_is_read_at_its_masks() -> None:
    task = module(TaskFamily.TEXT_CLASSIFICATION, pair=True, verbalizer=WORDS)
    assert task == Verbalizer(WORDS)
    assert task.is_token_level
    assert task.num_outputs(["no", "yes"]) == len(WORDS.outputs)
