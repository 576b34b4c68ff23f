"""Prefixes of one byte per number through the whole answer path: the answers are those of what is stored, always."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from prefixbank.cli import main
from prefixbank.kernels.quantise import dequantise, quantise
from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.store import PromptStore
from prefixbank.serving import prompt_pool
from prefixbank.serving.limits import Limits
from prefixbank.serving.memory_store import MemoryStore
from prefixbank.serving.predict import Predictor
from prefixbank.serving.service import Service
from tests.serving_cases import mixed_tasks, random_prompt, texts
from tests.tiny import SENTENCES, tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

    Request = tuple[Address, str, dict[str, object]]

STORED = (torch.int8, torch.float8_e4m3fn)
HOME = Address("acme", "home")
POOL = 2**20
"""Bytes of a pool that holds every task of a test."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(str(folder))


def requests_of(tasks: Mapping[Address, TaskPrompt], count: int) -> list[Request]:
    addresses = sorted(tasks)
    parameters: dict[str, dict[str, object]] = {"token-classification": {"ignore_labels": []}}
    chosen = [addresses[(5 * number) % len(addresses)] for number in range(count)]
    return [(one, text, parameters.get(tasks[one].family, {})) for one, text in zip(chosen, texts(count), strict=True)]


def answer_all(service: Service, requests: list[Request]) -> list[Any]:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(service.answer(*request) for request in requests))

    return [answer.value for answer in asyncio.run(ask())]


def as_stored(prompt: TaskPrompt, stored: torch.dtype) -> TaskPrompt:
    """The prompt whose prefix is, in full, what the other's becomes."""
    return replace(prompt, kv_N2HPD=dequantise(*quantise(prompt.kv_N2HPD, stored)))


def numbers_of(answer: Any) -> list[float]:
    if isinstance(answer, dict):
        return [value for value in answer.values() if isinstance(value, float)]
    return [number for one in answer for number in numbers_of(one)]


@pytest.mark.parametrize("stored", STORED)
def test_a_mixture_of_tasks_is_answered_with_the_prefixes_that_are_stored(
    backbone: Backbone, stored: torch.dtype
) -> None:
    tasks = mixed_tasks(backbone)
    requests = requests_of(tasks, 60)
    with Service(
        backbone, MemoryStore(tasks), Limits(token_budget=512, pool_bytes=POOL), prefix_dtype=stored
    ) as service:
        found = answer_all(service, requests)
        service.check_integrity()
    same = {address: as_stored(prompt, stored) for address, prompt in tasks.items()}
    with Service(backbone, MemoryStore(same), Limits(token_budget=512, pool_bytes=POOL)) as service:
        wanted = answer_all(service, requests)
    for one, other in zip(found, wanted, strict=True):
        assert numbers_of(one) == pytest.approx(numbers_of(other), abs=1e-5)
    with Service(backbone, MemoryStore(tasks), Limits(pool_bytes=POOL)) as service:
        assert [*map(numbers_of, answer_all(service, requests))] != [*map(numbers_of, found)]


@pytest.mark.parametrize("stored", STORED)
def test_a_row_alone_gives_the_bits_it_gives_in_company(stored: torch.dtype) -> None:
    backbone = load_backbone("minilm")
    tasks = {
        Address("acme", f"task{seed}"): random_prompt(backbone, length, seed=seed)
        for seed, length in enumerate((0, 5, 16, 16, 33))
    }
    requests = requests_of(tasks, 20)
    with Service(backbone, MemoryStore(tasks), Limits(max_rows=1, pool_bytes=2 * POOL), prefix_dtype=stored) as service:
        alone = answer_all(service, requests)
    with Service(backbone, MemoryStore(tasks), Limits(pool_bytes=2 * POOL), prefix_dtype=stored) as service:
        together = answer_all(service, requests)
    assert together == alone


def test_a_pool_smaller_than_the_working_set_answers_the_same_in_int8(backbone: Backbone) -> None:
    tasks = mixed_tasks(backbone)
    requests = requests_of(tasks, 60)
    with Service(backbone, MemoryStore(tasks), Limits(pool_bytes=POOL), prefix_dtype=torch.int8) as service:
        wanted = answer_all(service, requests)
    small = Limits(token_budget=256, pool_bytes=30_000, host_cache_bytes=30_000)
    with Service(backbone, MemoryStore(tasks), small, prefix_dtype=torch.int8) as service:
        found = answer_all(service, requests)
        service.check_integrity()
        assert 'prefixbank_task_evictions_total{reason="room",tier="device"}' in service.exposition().decode()
    for one, other in zip(found, wanted, strict=True):
        assert numbers_of(one) == pytest.approx(numbers_of(other), abs=1e-5)


def test_prompts_that_move_in_the_pool_answer_the_same_in_int8(backbone: Backbone, tmp_path: Path) -> None:
    """Two of three tasks are deleted from a full pool while the server runs; what is left moves, and one more comes."""
    store, tasks = PromptStore(tmp_path / "store"), {}
    for seed in range(9):
        tasks[Address("acme", f"task{seed}")] = random_prompt(backbone, 17, seed=seed)
    for address, prompt in tasks.items():
        store.promote(address, store.publish(address, prompt))
    kept = [address for number, address in enumerate(tasks) if number % 3 == 2]
    all_nine = 9 * 3 * 32 * 2 * backbone.ref.width
    size = Limits(pool_bytes=int(1.4 * all_nine), follow_interval_s=0.01)
    with Predictor(backbone, store, size, prefix_dtype=torch.int8) as predictor:
        before = {address: predictor.answer(address, list(SENTENCES[:3])).value for address in tasks}
        pool = predictor.service._pool
        starts = {slot.revision: slot.prefix.start for slot in pool._slots.values()}
        for address in tasks.keys() - set(kept):
            revision = store.resolve(address)
            store.drop_alias(address)
            store.delete(address, revision)
        wait_until(lambda: predictor.answer(kept[0], "hello") and len(pool._slots) == len(kept))
        wait_until(lambda: any(starts[slot.revision] != slot.prefix.start for slot in pool._slots.values()))
        newcomer = random_prompt(backbone, 40, seed=99)
        store.promote(HOME, store.publish(HOME, newcomer))
        assert predictor.answer(HOME, "hello").value
        assert {address: predictor.answer(address, list(SENTENCES[:3])).value for address in kept} == {
            address: before[address] for address in kept
        }
        predictor.service.check_integrity()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize(("stored", "name"), [(None, "float32"), (torch.int8, "int8"), (STORED[1], "float8_e4m3fn")])
def test_information_and_metrics_say_what_prefixes_are_stored_in(
    backbone: Backbone, stored: torch.dtype | None, name: str
) -> None:
    with Service(backbone, MemoryStore(), prefix_dtype=stored) as service:
        assert (service.info().dtype, service.info().prefix_dtype) == ("float32", name)
        assert f'prefix_dtype="{name}"' in service.exposition().decode()


def test_the_logits_of_a_check_are_those_of_what_is_stored(backbone: Backbone) -> None:
    prompt = random_prompt(backbone, 17, seed=1)
    with Predictor(backbone, {HOME: prompt}, Limits(pool_bytes=POOL), prefix_dtype=torch.int8) as predictor:
        encoded = predictor.service._encoder.submit(prompt, list(SENTENCES), {}).result()
        rows = [row.features for row in encoded.rows]
        found = np.array(predictor.logits(prompt, rows))
    with Predictor(backbone, {}, Limits(pool_bytes=POOL)) as predictor:
        wanted = np.array(predictor.logits(as_stored(prompt, torch.int8), rows))
        given = np.array(predictor.logits(prompt, rows))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - given).max() > 1e-4


def test_predict_takes_the_setting_from_its_command_line(
    backbone: Backbone, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = PromptStore(tmp_path / "store")
    store.promote(HOME, store.publish(HOME, random_prompt(backbone, 5, seed=1)))
    source = tmp_path / "lines.jsonl"
    source.write_text("\n".join(map(json.dumps, SENTENCES)))
    said = []
    for setting in ("auto", "int8", "float8_e4m3fn"):
        where = ["--store", str(store.root), "--backbone", str(folder), "--input", str(source)]
        small = ["--set", f"limits.pool_bytes={POOL}", "--prefix-dtype", setting]
        assert main(["predict", str(HOME), *where, *small]) == 0
        said.append([numbers_of(json.loads(line)) for line in capsys.readouterr().out.splitlines()])
    assert len(said[0]) == len(SENTENCES)
    assert said[0] != said[1] != said[2]
    assert main(["predict", str(HOME), *where, "--prefix-dtype", "int4"]) == 1
    assert "prefix_dtype" in capsys.readouterr().err


def test_a_device_that_cannot_read_the_dtype_is_refused_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prompt_pool, "can_read", lambda dtype, device: False)
    PromptStore(tmp_path / "store")
    where = ["--store", str(tmp_path / "store"), "--backbone", str(folder), "--input", os.devnull]
    assert main(["predict", str(HOME), *where, "--prefix-dtype", "float8_e4m3fn"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prefixbank: error: prefix_dtype: found float8_e4m3fn, wanted int8 or auto: cpu cannot read")
