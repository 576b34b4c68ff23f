"""The whole answer path in one process: isolation, hot swap, eviction, refusals."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import (
    BackboneMismatch,
    DeadlineExceeded,
    InputTooLong,
    InvalidRequest,
    NoSuchAlias,
    Overloaded,
    PromptTooLarge,
    ShuttingDown,
    UnknownTask,
)
from prefixbank.model_store.store import PromptStore
from prefixbank.serving.limits import Limits
from prefixbank.serving.memory_store import MemoryStore
from prefixbank.serving.predict import Predictor
from prefixbank.serving.scheduler import QueueState
from prefixbank.serving.service import Service
from tests.serving_cases import mixed_tasks, random_prompt, texts
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

HOME = Address("acme", "sentiment")
EVERYTHING = {"ignore_labels": []}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")))


def parameters_of(prompt: TaskPrompt) -> Mapping[str, object]:
    return EVERYTHING if prompt.family == "token-classification" else {}


def assert_same_answer(found: Any, wanted: Any) -> None:
    if isinstance(found, float):
        assert abs(found - wanted) <= 1e-5
    elif isinstance(found, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same_answer(one, other)
    elif isinstance(found, dict):
        assert found.keys() == wanted.keys()
        for key in found:
            assert_same_answer(found[key], wanted[key])
    else:
        assert found == wanted


def labels_of(answer: Any) -> set[str]:
    if isinstance(answer, dict):
        return {answer.get("label") or answer.get("entity_group") or answer["entity"]}
    return set().union(*map(labels_of, answer)) if answer else set()


def answer_all(service: Service, requests: list[tuple[Address, str, Mapping[str, object]]]) -> list[Any]:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(service.answer(*request) for request in requests))

    return asyncio.run(ask())


def mixture(tasks: Mapping[Address, TaskPrompt], count: int) -> list[tuple[Address, str, Mapping[str, object]]]:
    choose = random.Random(7)
    addresses = [choose.choice(sorted(tasks)) for _ in range(count)]
    return [(a, t, parameters_of(tasks[a])) for a, t in zip(addresses, texts(count, seed=3), strict=True)]


def alone(backbone: Backbone, tasks: Mapping[Address, TaskPrompt], requests: list[Any]) -> list[Any]:
    """Each request answered by a server that has its one task, in a batch of its own."""
    wanted: list[Any] = [None] * len(requests)
    for address, prompt in tasks.items():
        with Predictor(backbone, {address: prompt}, Limits(max_rows=1)) as predictor:
            own = [index for index, request in enumerate(requests) if request[0] == address]
            for index, future in [(index, predictor.submit(*requests[index])) for index in own]:
                wanted[index] = future.result()
            predictor.service.check_integrity()
    return wanted


def test_eight_tasks_in_one_mixture_answer_as_each_does_alone(backbone: Backbone) -> None:
    tasks = mixed_tasks(backbone)
    requests = mixture(tasks, 500)
    wanted = alone(backbone, tasks, requests)
    with Service(backbone, MemoryStore(tasks), Limits(token_budget=512)) as service:
        found = answer_all(service, requests)
        service.check_integrity()
    for request, answer, other in zip(requests, found, wanted, strict=True):
        assert answer.revision == other.revision
        assert_same_answer(answer.value, other.value)
        assert labels_of(answer.value) <= set(tasks[request[0]].labels)


def test_a_pool_smaller_than_the_working_set_answers_the_same(backbone: Backbone) -> None:
    tasks = mixed_tasks(backbone)
    requests = mixture(tasks, 150)
    with Service(backbone, MemoryStore(tasks)) as service:
        wanted = answer_all(service, requests)
    one_layer = 2 * backbone.ref.width * 4
    small = Limits(token_budget=256, pool_bytes=int(16 * 20 * one_layer / 0.75), host_cache_bytes=100_000)
    with Service(backbone, MemoryStore(tasks), small) as service:
        found = answer_all(service, requests)
        service.check_integrity()
        assert 'prefixbank_task_evictions_total{reason="room",tier="device"}' in service.exposition().decode()
    for answer, other in zip(found, wanted, strict=True):
        assert_same_answer(answer.value, other.value)


def test_a_batched_request_is_answered_in_its_order(backbone: Backbone) -> None:
    tasks, inputs = mixed_tasks(backbone), texts(20)
    address = next(iter(tasks))
    with Predictor(backbone, tasks) as predictor:
        batched = predictor.answer(address, inputs)
        one_by_one = [predictor.answer(address, text).value for text in inputs]
        assert batched.tokens == sum(predictor.answer(address, text).tokens for text in inputs)
        predictor.service.check_integrity()
    assert_same_answer(batched.value, [one[0] for one in one_by_one])


class Traffic:
    """Steady requests for one task from a few clients, each answer kept with the text that was asked."""

    def __init__(self, service: Service, num_clients: int = 4) -> None:
        self.service, self.num_clients = service, num_clients
        self.answers: list[tuple[str, Any]] = []
        self.errors: list[Exception] = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.num_clients)))

    async def _client(self, number: int) -> None:
        inputs = texts(12, seed=number)
        while not self.stopping.is_set():
            for text in inputs:
                try:
                    self.answers.append((text, await self.service.answer(HOME, text)))
                except Exception as error:  # every failure counts, whatever it is
                    self.errors.append(error)

    def __enter__(self) -> Traffic:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self.thread.join()


def test_hot_swaps_under_load_fail_nothing_and_mix_nothing(backbone: Backbone, tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "store")
    prompts = [random_prompt(backbone, length, seed=seed) for seed, length in enumerate((16, 5, 0, 20))]
    revisions = [store.publish(HOME, prompt) for prompt in prompts]
    by_revision = dict(zip(revisions, prompts, strict=True))
    store.promote(HOME, revisions[0])
    with Service(backbone, store, Limits(follow_interval_s=0.01)) as service, Traffic(service) as traffic:
        for step in range(24):
            store.promote(HOME, revisions[step % 3])
            time.sleep(0.02)
            if step % 4 == 3:
                store.rollback(HOME)
            if step % 6 == 5:  # one comes and goes for good
                store.promote(HOME, store.publish(HOME, prompts[3]))
                time.sleep(0.02)
                store.promote(HOME, revisions[0])
                store.delete(HOME, revisions[3])
    assert traffic.errors == []
    seen = {answer.revision for _, answer in traffic.answers}
    assert seen == set(revisions)
    for revision, prompt in by_revision.items():
        with Predictor(backbone, {HOME: prompt}) as offline:
            asked = {text for text, answer in traffic.answers if answer.revision == revision}
            wanted = {text: offline.answer(HOME, text) for text in asked}
        for text, answer in traffic.answers:
            if answer.revision == revision:
                assert_same_answer(answer.value, wanted[text].value)
    service.check_integrity()


def test_a_promote_is_served_by_the_next_request(backbone: Backbone, tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "store")
    revisions = [store.publish(HOME, random_prompt(backbone, 5, seed=seed)) for seed in range(2)]
    store.promote(HOME, revisions[0])
    with Predictor(backbone, store, Limits(follow_interval_s=60.0)) as predictor:
        for step in range(6):
            store.promote(HOME, revisions[step % 2])
            assert predictor.answer(HOME, "hello").revision == revisions[step % 2]


def test_an_alias_of_its_own_is_served_when_asked_for(backbone: Backbone, tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "store")
    live, canary = (store.publish(HOME, random_prompt(backbone, 5, seed=seed)) for seed in range(2))
    store.promote(HOME, live)
    store.promote(HOME, canary, "canary")
    with Predictor(backbone, store) as predictor:
        assert predictor.answer(HOME, "hello", alias="canary").revision == canary
        assert predictor.answer(HOME, "hello").revision == live
        with pytest.raises(UnknownTask, match="blue"):
            predictor.answer(HOME, "hello", alias="blue")


def test_a_task_taken_out_of_service_is_unknown_at_once(backbone: Backbone, tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "store")
    store.promote(HOME, store.publish(HOME, random_prompt(backbone, 5, seed=1)))
    with Predictor(backbone, store) as predictor:
        predictor.answer(HOME, "hello")
        store.drop_alias(HOME)
        with pytest.raises(UnknownTask) as refusal:
            predictor.answer(HOME, "hello")
        assert isinstance(refusal.value.__cause__, NoSuchAlias)
        with pytest.raises(UnknownTask):
            predictor.answer(Address("acme", "never-heard-of"), "hello")


def test_what_is_wrong_with_a_request_is_named(backbone: Backbone) -> None:
    with Predictor(backbone, {HOME: random_prompt(backbone, 5, seed=1)}) as predictor:
        with pytest.raises(InvalidRequest):
            predictor.answer(HOME, {"no": "text"})
        with pytest.raises(InvalidRequest):
            predictor.answer(HOME, "hello", {"top_q": 3})
        with pytest.raises(InputTooLong):
            predictor.answer(HOME, "hello " * 200)
        assert predictor.answer(HOME, "hello " * 200, {"truncation": True}).tokens == 64


def test_a_prompt_of_another_backbone_is_refused_and_hurts_no_other(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    fit = random_prompt(backbone, 5, seed=1)
    stranger = random_prompt(backbone, 5, seed=2)
    object.__setattr__(stranger, "backbone", backbone.ref.model_copy(update={"fingerprint": "f" * 64}))
    other = Address("acme", "stranger")
    with Predictor(backbone, {HOME: fit, other: stranger}) as predictor:
        for _ in range(3):
            with pytest.raises(BackboneMismatch, match="ffffffffffff"):
                predictor.answer(other, "hello")
        assert predictor.answer(HOME, "hello").value
    assert caplog.text.count("cannot be served") == 1


def test_a_prompt_larger_than_the_pool_is_refused_by_name(backbone: Backbone) -> None:
    prompts = {HOME: random_prompt(backbone, 64, seed=1)}
    with Predictor(backbone, prompts, Limits(pool_bytes=20_000)) as predictor, pytest.raises(PromptTooLarge):
        predictor.answer(HOME, "hello")


def test_overload_refuses_at_the_door_and_counts_it(backbone: Backbone) -> None:
    with Predictor(backbone, {HOME: random_prompt(backbone, 5, seed=1)}, Limits(max_queued_tokens=50)) as predictor:
        outcomes = [future.exception(30) for future in [predictor.submit(HOME, text) for text in texts(300)]]
        refused = [error for error in outcomes if isinstance(error, Overloaded)]
        assert {type(error) for error in outcomes} == {type(None), Overloaded}
        assert all(error.retry_after_s > 0 for error in refused)
        counted = f'prefixbank_rejected_total{{reason="Overloaded"}} {float(len(refused))}'
        assert counted in predictor.service.exposition().decode()


def test_a_deadline_that_has_passed_is_told(backbone: Backbone) -> None:
    async def ask(service: Service) -> None:
        with pytest.raises(DeadlineExceeded):
            await service.answer(HOME, "hello", timeout_s=0.0)
        assert (await service.answer(HOME, "hello")).value

    with Service(backbone, MemoryStore({HOME: random_prompt(backbone, 5, seed=1)})) as service:
        asyncio.run(ask(service))
        service.check_integrity()


def test_a_client_that_leaves_costs_nobody_else(backbone: Backbone) -> None:
    async def ask(service: Service) -> None:
        leaving = [asyncio.create_task(service.answer(HOME, texts(30, seed))) for seed in range(10)]
        staying = [asyncio.create_task(service.answer(HOME, "hello")) for _ in range(5)]
        await asyncio.sleep(0.001)
        for task in leaving:
            task.cancel()
        answers = await asyncio.gather(*staying)
        assert len({answer.revision for answer in answers}) == 1

    with Service(backbone, MemoryStore({HOME: random_prompt(backbone, 5, seed=1)})) as service:
        asyncio.run(ask(service))
        time.sleep(0.05)
        service.check_integrity()


def test_a_closed_service_says_so_and_leaves_no_thread(backbone: Backbone) -> None:
    before = set(threading.enumerate())
    service = Service(backbone, MemoryStore({HOME: random_prompt(backbone, 5, seed=1)}))
    asyncio.run(service.answer(HOME, "hello"))
    service.close()
    assert service.health().status == "draining"
    with pytest.raises(ShuttingDown):
        asyncio.run(service.answer(HOME, "hello"))
    assert set(threading.enumerate()) == before
    service.close()


def test_health_information_and_tasks_say_what_runs(backbone: Backbone) -> None:
    tasks = mixed_tasks(backbone)
    with Predictor(backbone, tasks) as predictor:
        answers = {address: predictor.answer(address, "hello") for address in tasks}
        service = predictor.service
        assert service.health().status == "ok"
        assert service.health().failed_steps == 0
        assert service.info().num_tasks == service.info().num_resident == 8
        assert service.info().dtype == "float32"
        statuses = {status.address: status for status in service.tasks()}
        assert {address: status.revision for address, status in statuses.items()} == {
            address: answer.revision for address, answer in answers.items()
        }
        assert all(status.facts.labels == tasks[address].labels for address, status in statuses.items())


def test_an_engine_that_forms_no_batches_is_reported_as_failed(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Service(backbone, MemoryStore(), Limits(timeout_s=5.0)) as service:
        stuck = QueueState(depth=1, tokens=9, oldest_age_s=11.0)
        monkeypatch.setattr(service._scheduler, "state", lambda: stuck)
        assert service.health().status == "failed"


def test_an_answer_in_bf16_is_near_the_one_computed_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")
    half = load_backbone(str(folder), dtype=torch.bfloat16)
    tasks = {address: prompt for address, prompt in mixed_tasks(half).items() if prompt.family == "text-classification"}
    requests = mixture(tasks, 60)
    wanted = alone(half, tasks, requests)
    with Service(half, MemoryStore(tasks)) as service:
        found = answer_all(service, requests)
    for answer, other in zip(found, wanted, strict=True):
        scores, others = ({one["label"]: one["score"] for one in each.value[0]} for each in (answer, other))
        assert scores == pytest.approx(others, abs=1e-2)
