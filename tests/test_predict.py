"""The Predictor: the serving path without an event loop of the caller's, and the trainer's last check."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import NoSuchStore, PromptTooLarge
from prefixbank.model_store.store import PromptStore
from prefixbank.model_store.tasks import task_module
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.serving.limits import Limits
from prefixbank.serving.predict import Predictor
from tests.serving_cases import TEXT, TOKENS, random_prompt, texts
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskFamily, TaskPrompt
    from prefixbank.model_store.tasks.features import Features

HOME = Address("acme", "home")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")))


def encoded(backbone: Backbone, prompt: TaskPrompt, count: int) -> list[Features]:
    prep, tokenizer = prompt.preprocessing, TextTokenizer(backbone.tokenizer)
    module = task_module(prompt.family, prep)
    asked = module.parse_parameters({})
    items = module.parse_inputs(texts(count), prep, asked).items
    return [row for item in items for row in module.encode_rows(tokenizer, prep, item, asked, max_tokens=64)]


def test_prompts_in_hand_a_store_and_its_folder_answer_alike(backbone: Backbone, tmp_path: Path) -> None:
    prompt, store = random_prompt(backbone, 5, seed=1), PromptStore(tmp_path / "store")
    store.promote(HOME, store.publish(HOME, prompt))
    answers = []
    for prompts in ({HOME: prompt}, store, tmp_path / "store"):
        with Predictor(backbone, prompts) as predictor:
            answers.append(predictor.answer(HOME, "the film was a quiet joy"))
    assert answers[0].revision == answers[1].revision == answers[2].revision
    assert [answer.value for answer in answers[1:]] == [answers[0].value] * 2


def test_a_folder_that_is_no_store_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(NoSuchStore):
        Predictor(backbone, tmp_path / "nothing")


def test_a_backbone_may_be_named(tmp_path: Path) -> None:
    folder = str(tiny_backbone_folder(tmp_path, "bert"))
    prompt = random_prompt(load_backbone(folder), 5, seed=1)
    with Predictor(folder, {HOME: prompt}) as predictor:
        assert predictor.answer(HOME, "hello").value


@pytest.mark.parametrize("family", [TEXT, TOKENS])
def test_the_logits_of_a_check_are_those_behind_the_answers(backbone: Backbone, family: TaskFamily) -> None:
    prompt = random_prompt(backbone, 17, seed=1, family=family)
    rows = encoded(backbone, prompt, 20)
    with Predictor(backbone, {HOME: prompt}) as predictor:
        logits = predictor.logits(prompt, rows)
        answers = [predictor.answer(HOME, text, one_label(prompt)).value for text in texts(20)]
        again = predictor.logits(prompt, rows[:3])
        predictor.service.check_integrity()
    assert len(logits) == 20
    for one, other in zip(logits, again, strict=False):
        np.testing.assert_allclose(one, other, atol=1e-5)
    if family == TOKENS:
        assert [len(one) for one in logits] == [row.num_tokens for row in rows]
    else:
        best = [prompt.labels[int(one.argmax())] for one in logits]
        assert [answer[0][0]["label"] for answer in answers] == best


def one_label(prompt: TaskPrompt) -> dict[str, object]:
    return {} if prompt.family == TOKENS else {"top_k": 1}


def test_two_prompts_checked_one_after_the_other_are_not_confused(backbone: Backbone) -> None:
    first, second = (random_prompt(backbone, 5, seed=seed) for seed in (1, 2))
    rows = encoded(backbone, first, 3)
    with Predictor(backbone, {}) as predictor:
        mine, other, mine_again = (predictor.logits(prompt, rows) for prompt in (first, second, first))
    np.testing.assert_allclose(mine, mine_again, atol=1e-6)
    assert np.abs(np.array(mine) - np.array(other)).max() > 0.1


def test_a_check_of_more_rows_than_the_queue_takes_succeeds(backbone: Backbone) -> None:
    prompt = random_prompt(backbone, 5, seed=1)
    with Predictor(backbone, {}, Limits(max_queued_tokens=64, token_budget=512)) as predictor:
        assert len(predictor.logits(prompt, encoded(backbone, prompt, 300))) == 300


def test_a_prompt_that_does_not_fit_is_refused_by_name(backbone: Backbone) -> None:
    prompt = random_prompt(backbone, 64, seed=1)
    with Predictor(backbone, {}, Limits(pool_bytes=20_000)) as predictor, pytest.raises(PromptTooLarge):
        predictor.logits(prompt, encoded(backbone, prompt, 1))


def test_requests_submitted_together_share_batches(backbone: Backbone) -> None:
    with Predictor(backbone, {HOME: random_prompt(backbone, 5, seed=1)}) as predictor:
        futures = [predictor.submit(HOME, text) for text in texts(100)]
        assert all(future.result(30).value for future in futures)
        lines = predictor.service.exposition().decode().splitlines()
    batches = next(float(line.split()[1]) for line in lines if line.startswith("prefixbank_batch_size_count"))
    assert batches < 100


def test_closing_ends_every_thread_and_every_request(backbone: Backbone) -> None:
    before = set(threading.enumerate())
    predictor = Predictor(backbone, {HOME: random_prompt(backbone, 5, seed=1)})
    futures = [predictor.submit(HOME, text) for text in texts(50)]
    predictor.close()
    assert all(future.done() for future in futures)
    assert set(threading.enumerate()) == before
