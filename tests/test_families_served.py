"""Questions, choices and roles through the whole serving path: rows of one input in many batches, one right answer."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import DeadlineExceeded, InputTooLong, Overloaded
from prefixbank.model_store.store import PromptStore
from prefixbank.model_store.task_prompt import Pooler, TaskFamily
from prefixbank.model_store.tasks import task_module
from prefixbank.model_store.tasks.features import Text
from prefixbank.model_store.tasks.question_answering import QuestionAnswering, QuestionAnsweringParameters
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.serving.limits import Limits
from prefixbank.serving.memory_store import MemoryStore
from prefixbank.serving.predict import Predictor
from prefixbank.serving.service import Service
from tests.family_prompts import CHOICES, QUESTIONS, ROLES, family_input, family_prompt, family_tasks, same
from tests.serving_cases import mixed_tasks, texts
from tests.tiny import SENTENCES, tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.serving.service import Answer

HOME = Address("families", "home")
LONG = " ".join(SENTENCES * 2)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")))


def ask_all(service: Service, requests: list[tuple[Address, object]]) -> list[Answer]:
    async def ask() -> list[Answer]:
        return await asyncio.gather(*(service.answer(*request) for request in requests))

    return asyncio.run(ask())


def batches_of(service: Service) -> float:
    lines = service.exposition().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("prefixbank_batch_size_count"))


def test_all_families_in_one_mixture_answer_as_each_does_alone(backbone: Backbone) -> None:
    tasks = mixed_tasks(backbone) | family_tasks(backbone)
    choose = random.Random(3)
    requests = [
        (address, family_input(tasks[address], text))
        for address, text in zip(choose.choices(sorted(tasks), k=180), texts(180, seed=5), strict=True)
    ]
    with Service(backbone, MemoryStore(tasks), Limits(token_budget=200)) as service:
        found = ask_all(service, requests)
        service.check_integrity()
    for address, prompt in tasks.items():
        with Predictor(backbone, {address: prompt}, Limits(max_rows=1)) as alone:
            for (asked, inputs), answer in zip(requests, found, strict=True):
                if asked == address:
                    wanted = alone.answer(address, inputs)
                    assert answer.revision == wanted.revision
                    assert same(answer.value, wanted.value), (address, inputs)


@pytest.mark.parametrize("budget", [50, 4096])
def test_windows_that_land_in_different_batches_give_one_answer(backbone: Backbone, budget: int) -> None:
    tasks = {address: prompt for address, prompt in family_tasks(backbone).items() if prompt.family is QUESTIONS}
    for address, prompt in tasks.items():
        inputs = {"question": "who flew to Oslo?", "context": LONG}
        with Predictor(backbone, tasks, Limits(token_budget=budget)) as predictor:
            answer = predictor.answer(address, inputs, {"top_k": 3})
            num_batches = batches_of(predictor.service)
        assert num_batches > 5 if budget == 50 else num_batches <= 2
        assert same(answer.value, by_hand(backbone, prompt, inputs, {"top_k": 3}))


def by_hand(backbone: Backbone, prompt: TaskPrompt, inputs: object, asked: dict[str, object]) -> Any:
    """The answer from logits that the Predictor computes row by row, each in a service of its own."""
    module, prep = task_module(prompt.family, prompt.preprocessing), prompt.preprocessing
    parameters = module.parse_parameters(asked)
    (item,) = module.parse_inputs(inputs, prep, parameters).items
    tokenizer = TextTokenizer(backbone.tokenizer)
    rows = module.encode_rows(tokenizer, prep, item, parameters, max_tokens=prep.max_tokens)
    logits = []
    for row in rows:
        with Predictor(backbone, {}) as predictor:
            logits += predictor.logits(prompt, [row])
    return module.arrange([module.decode(logits, rows, prompt.labels, parameters)], parameters, batched=False)


@pytest.mark.parametrize("family", [QUESTIONS, CHOICES, ROLES])
def test_a_batched_request_is_answered_in_its_order(backbone: Backbone, family: TaskFamily) -> None:
    tasks = {address: prompt for address, prompt in family_tasks(backbone).items() if prompt.family is family}
    for address, prompt in tasks.items():
        inputs = [family_input(prompt, text) for text in texts(12, seed=1)]
        with Predictor(backbone, tasks) as predictor:
            batched = predictor.answer(address, inputs)
            assert same(batched.value, [predictor.answer(address, one).value for one in inputs])
            predictor.service.check_integrity()


def test_an_answer_lies_where_it_says(backbone: Backbone) -> None:
    tasks = family_tasks(backbone)
    squad, srl = Address("families", "squad"), Address("families", "srl")
    with Predictor(backbone, tasks) as predictor:
        spans = predictor.answer(squad, {"question": "who?", "context": LONG}, {"top_k": 20}).value
        assert len(spans) == 20
        assert all(LONG[span["start"] : span["end"]] == span["answer"] != "" for span in spans)
        sentence = SENTENCES[2].split()
        frames = predictor.answer(srl, {"words": sentence, "predicates": [2, 4]}).value
    assert [frame["predicate"]["word"] for frame in frames] == ["flew", "Madrid"]
    for argument in (argument for frame in frames for argument in frame["arguments"]):
        for piece in argument.get("parts", [argument]):
            assert SENTENCES[2][piece["start"] : piece["end"]] == piece["word"]


def test_the_null_answer_is_given_where_the_task_knows_it(backbone: Backbone) -> None:
    """A head that prefers the first token of every row, with and without a threshold."""
    for name, threshold, wanted in (("squad", None, False), ("squad2", 0.5, True)):
        prompt = family_tasks(backbone)[Address("families", name)]
        assert prompt.preprocessing.answering is not None
        assert prompt.preprocessing.answering.null_threshold == threshold
        with Predictor(backbone, {HOME: sure_of_nothing(backbone, prompt)}) as predictor:
            inputs = {"question": "who?", "context": "Maria"}
            assert (predictor.answer(HOME, inputs).value["answer"] == "") is wanted
            asked = {"handle_impossible_answer": not wanted}
            assert (predictor.answer(HOME, inputs, asked).value["answer"] == "") is not wanted


def sure_of_nothing(backbone: Backbone, prompt: TaskPrompt) -> TaskPrompt:
    """The prompt with a head that finds [CLS] of this input the likeliest start and end."""
    tokenizer, prep = TextTokenizer(backbone.tokenizer), prompt.preprocessing
    (row,) = QuestionAnswering().encode_rows(
        tokenizer, prep, Text("who?", "Maria"), QuestionAnsweringParameters(), max_tokens=prep.max_tokens
    )
    with Predictor(backbone, {}) as predictor:
        states = [predictor.logits(with_weight(prompt, weight_2M), [row])[0] for weight_2M in eye(backbone).split(2)]
    hidden_TM = torch.from_numpy(np.concatenate(states, axis=1))
    direction_M = hidden_TM[0] - hidden_TM[1:].mean(0)
    return with_weight(prompt, torch.stack([direction_M, direction_M]))


def eye(backbone: Backbone) -> torch.Tensor:
    return torch.eye(backbone.ref.width)


def with_weight(prompt: TaskPrompt, weight_2M: torch.Tensor) -> TaskPrompt:
    return dataclasses.replace(
        prompt, head=dataclasses.replace(prompt.head, weight_CM=weight_2M, bias_C=torch.zeros(2))
    )


def test_a_promotion_between_two_windows_changes_nothing(backbone: Backbone, tmp_path: Path) -> None:
    """A request is answered by the revision it resolved, however many batches its rows are in."""
    store = PromptStore(tmp_path / "store")
    prompts = [family_prompt(backbone, QUESTIONS, length, seed=40 + length) for length in (5, 17)]
    revisions = [store.publish(HOME, prompt) for prompt in prompts]
    inputs = {"question": "who flew to Oslo?", "context": " ".join(SENTENCES)}
    wanted = dict(zip(revisions, (by_hand(backbone, prompt, inputs, {}) for prompt in prompts), strict=True))
    store.promote(HOME, revisions[0])
    with Predictor(backbone, store, Limits(token_budget=50, follow_interval_s=0.01)) as predictor:
        futures = []
        for step in range(4):
            current = [predictor.submit(HOME, inputs) for _ in range(3)]
            assert current[0].result(30).revision == revisions[step % 2], "resolved before the next promotion"
            store.promote(HOME, revisions[(step + 1) % 2])
            futures += current
        answers = [future.result(30) for future in futures]
        predictor.service.check_integrity()
    assert all(same(answer.value, wanted[answer.revision]) for answer in answers)


def test_a_pool_smaller_than_the_working_set_answers_the_same(backbone: Backbone) -> None:
    tasks = family_tasks(backbone)
    requests = [(address, family_input(prompt, text)) for text in texts(8, seed=2) for address, prompt in tasks.items()]
    with Service(backbone, MemoryStore(tasks)) as service:
        wanted = ask_all(service, requests)
    one_token = 2 * backbone.ref.width * 4
    small = Limits(token_budget=150, pool_bytes=int(150 * one_token / 0.5), head_share=0.5, host_cache_bytes=50_000)
    with Service(backbone, MemoryStore(tasks), small) as service:
        found = ask_all(service, requests)
        service.check_integrity()
        assert 'prefixbank_task_evictions_total{reason="room",tier="device"}' in service.exposition().decode()
    assert all(same(one.value, other.value) for one, other in zip(found, wanted, strict=True))


# what goes wrong is named


def test_questions_beyond_what_the_queue_holds_are_overload(backbone: Backbone) -> None:
    prompts = {HOME: family_prompt(backbone, QUESTIONS, 5, seed=1)}
    inputs = {"question": "who?", "context": LONG}
    with Predictor(backbone, prompts, Limits(max_queued_tokens=100, token_budget=50)) as predictor:
        futures = [predictor.submit(HOME, inputs) for _ in range(4)]
        errors = {type(future.exception(30)) for future in futures}
        assert Overloaded in errors <= {Overloaded, type(None)}
        assert predictor.answer(HOME, inputs).value["answer"]
        predictor.service.check_integrity()


def test_a_question_that_runs_out_of_time_leaves_nothing_behind(backbone: Backbone) -> None:
    with Service(backbone, MemoryStore({HOME: family_prompt(backbone, QUESTIONS, 5, seed=1)})) as service:
        asyncio.run(service.answer(HOME, {"question": "who?", "context": "Maria"}))
        with pytest.raises(DeadlineExceeded):
            asyncio.run(service.answer(HOME, {"question": "who?", "context": LONG * 9}, timeout_s=0.001))
        asyncio.run(service.answer(HOME, {"question": "who?", "context": "Maria"}))
        service.check_integrity()


def test_a_text_of_too_many_windows_is_refused_or_cut(backbone: Backbone) -> None:
    with Predictor(backbone, {HOME: family_prompt(backbone, QUESTIONS, 5, seed=1)}) as predictor:
        inputs = {"question": "who?", "context": LONG * 9}
        with pytest.raises(InputTooLong, match="windows"):
            predictor.answer(HOME, inputs)
        answer = predictor.answer(HOME, inputs, {"truncation": True})
    assert (answer.num_truncated, answer.value["end"] > 0) == (1, True)


def test_metrics_name_each_family(backbone: Backbone) -> None:
    tasks = family_tasks(backbone)
    with Predictor(backbone, tasks) as predictor:
        for address, prompt in tasks.items():
            predictor.answer(address, family_input(prompt, SENTENCES[0]))
            predictor.service.metrics.count_request(address, 200, 0.01)
        exposition = predictor.service.exposition().decode()
    for address, prompt in tasks.items():
        labels = f'code="200",pipeline="{prompt.family}",task="{address}"'
        assert f"prefixbank_requests_total{{{labels}}} 1.0" in exposition
        for stage in ("tokenize", "queue", "forward", "post"):
            assert f'pipeline="{prompt.family}",stage="{stage}"' in exposition


@pytest.mark.parametrize("pooler", [Pooler.NONE, Pooler.BACKBONE, Pooler.OWN])
def test_choices_are_scored_by_a_pooled_state(backbone: Backbone, pooler: Pooler) -> None:
    prompt = family_prompt(backbone, CHOICES, 5, seed=1, pooler=pooler)
    inputs = family_input(prompt, SENTENCES[3])
    with Predictor(backbone, {HOME: prompt}) as predictor:
        answer = predictor.answer(HOME, inputs).value
    assert same(answer, by_hand(backbone, prompt, inputs, {}))
    assert sum(choice["score"] for choice in answer) == pytest.approx(1)
