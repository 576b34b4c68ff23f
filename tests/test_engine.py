"""The engine: one batch packed while one runs, failures that stay in their batch, an orderly end."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import NonFiniteLogits, ShuttingDown, StepFailed
from prefixbank.model_store.tasks.features import Features
from prefixbank.serving import engine as engine_module
from prefixbank.serving.encoding import Encoding
from prefixbank.serving.engine import BatchReport, Engine
from prefixbank.serving.loaded_prompt import LoadedPrompt, prepare
from prefixbank.serving.prompt_pool import PromptPool
from prefixbank.serving.scheduler import Entry, Scheduler
from tests.conftest import DEVICE
from tests.serving_cases import random_prompt
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.model_store.backbones.backbone import Backbone


class Bench:
    """An engine with what it is made of."""

    def __init__(self, backbone: Backbone, pool_bytes: int = 2**20, token_budget: int = 1000) -> None:
        self.backbone = backbone
        self.pool = PromptPool(backbone.ref, pool_bytes, dtype=backbone.dtype, device=backbone.device)
        self.scheduler = Scheduler(token_budget, 100, 10**6, time.monotonic)
        self.reports: list[BatchReport] = []
        self.engine = Engine(
            backbone,
            self.pool,
            self.scheduler,
            clock=time.monotonic,
            on_batch=lambda report: self.reports.append(report),
        )

    def prompt(self, seed: int, length: int = 5) -> LoadedPrompt:
        return prepare(random_prompt(self.backbone, length, seed=seed), f"revision {seed}", self.backbone)

    def submit(self, prompt: LoadedPrompt, tokens: int = 6, timeout_s: float = 60.0) -> Future[Any]:
        ids = np.arange(10, 10 + tokens, dtype=np.int64)
        encoding = Encoding(Features(ids, np.zeros_like(ids)))
        future: Future[Any] = Future()
        now = time.monotonic()
        self.scheduler.submit(Entry(encoding, prompt, future, "tenant", now + timeout_s, now))
        return future


@pytest.fixture
def bench(backbone: Backbone) -> Iterator[Bench]:
    bench = Bench(backbone)
    bench.engine.start()
    yield bench
    bench.engine.close(10.0)
    bench.pool.check_integrity()
    bench.scheduler.check_integrity()


def test_rows_that_wait_together_are_computed_together(backbone: Backbone) -> None:
    bench = Bench(backbone)
    futures = [bench.submit(bench.prompt(seed)) for seed in range(5)]
    bench.engine.start()
    assert [future.result(30).shape for future in futures] == [(3,)] * 5
    bench.engine.close(10.0)
    assert [len(report.pipelines) for report in bench.reports] == [5]
    assert bench.reports[0].num_tasks == 5
    assert bench.reports[0].num_tokens == 30


def test_one_batch_is_packed_while_one_runs(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    running, proceed, packed = threading.Event(), threading.Event(), []
    compute, pack = engine_module.compute_logits, engine_module.Batch.pack

    def slow(*given: Any) -> Any:
        running.set()
        assert proceed.wait(30)
        return compute(*given)

    def seen(*given: Any) -> Any:
        packed.append(running.is_set() and not proceed.is_set())
        return pack(*given)

    monkeypatch.setattr(engine_module, "compute_logits", slow)
    monkeypatch.setattr(engine_module.Batch, "pack", seen)
    bench = Bench(backbone, token_budget=6)
    futures = [bench.submit(bench.prompt(1)) for _ in range(4)]
    bench.engine.start()
    assert running.wait(30)
    while len(packed) < 2:
        time.sleep(0.001)
    assert packed[1]
    proceed.set()
    assert all(future.result(30) is not None for future in futures)
    bench.engine.close(10.0)


def test_a_prompt_that_gives_nan_fails_its_own_rows_only(bench: Bench) -> None:
    bad, good = bench.prompt(1), bench.prompt(2)
    alone = bench.submit(good).result(30)
    bad.task.kv_N2HPD[:] = float("nan")
    bad.task.head.weight_CM[:] = float("nan")
    futures = [(prompt, bench.submit(prompt)) for prompt in (bad, good, bad, good, good)]
    for prompt, future in futures:
        if prompt is bad:
            with pytest.raises(NonFiniteLogits, match="revision 1"):
                future.result(30)
        else:
            np.testing.assert_allclose(future.result(30), alone, atol=1e-5)
    assert sum(report.num_failed for report in bench.reports) == 2


def test_an_exception_in_the_forward_fails_that_batch_and_not_the_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("the device is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "compute_logits", broken)
        with pytest.raises(StepFailed, match="RuntimeError"):
            bench.submit(bench.prompt(1)).result(30)
    assert bench.submit(bench.prompt(1)).result(30).shape == (3,)
    assert bench.engine.num_failed_steps == 1
    assert "the device is on fire" in caplog.text


def test_an_exception_while_packing_fails_that_batch_and_releases_its_leases(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StepFailed, match="InputTooLong"):
        bench.submit(bench.prompt(1), tokens=600).result(30)
    assert bench.pool.drop("revision 1")
    assert bench.submit(bench.prompt(1)).result(30).shape == (3,)


def test_a_listener_that_fails_costs_no_answer(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(backbone)
    bench.engine._on_batch = lambda report: 1 / 0
    bench.engine.start()
    for _ in range(3):
        assert bench.submit(bench.prompt(1)).result(30).shape == (3,)
    bench.engine.close(10.0)
    assert "ZeroDivisionError" in caplog.text


def test_a_slot_that_changed_hands_under_a_batch_gives_no_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compute = engine_module.compute_logits

    def robbed(batch: Any, backbone: Any, pool: PromptPool) -> Any:
        (slot,) = pool._slots.values()
        pool._evict(slot, "room")
        return compute(batch, backbone, pool)

    monkeypatch.setattr(engine_module, "compute_logits", robbed)
    with pytest.raises(StepFailed, match="AssertionError"):
        bench.submit(bench.prompt(1)).result(30)
    assert "given away" in caplog.text


def test_a_pool_smaller_than_a_batch_serves_it_in_turns(backbone: Backbone) -> None:
    one_prompt = 3 * 16 * 2 * backbone.ref.width * 4
    bench = Bench(backbone, pool_bytes=int(2.5 * one_prompt / 0.75))
    prompts = [bench.prompt(seed) for seed in range(9)]
    wide = Bench(backbone)
    wide.engine.start()
    wanted = [wide.submit(prompt).result(30) for prompt in prompts]
    wide.engine.close(10.0)
    futures = [bench.submit(prompt) for prompt in prompts * 3]
    bench.engine.start()
    for future, logits in zip(futures, wanted * 3, strict=True):
        np.testing.assert_allclose(future.result(30), logits, atol=1e-5)
    bench.engine.close(10.0)
    bench.pool.check_integrity()
    assert max(report.num_tasks for report in bench.reports) <= 2
    assert bench.pool.state().evictions["room"] > 0


def test_closing_finishes_what_is_queued(backbone: Backbone) -> None:
    bench = Bench(backbone)
    futures = [bench.submit(bench.prompt(seed)) for seed in range(3)]
    bench.engine.start()
    bench.engine.close(30.0)
    assert all(future.result(0).shape == (3,) for future in futures)
    with pytest.raises(ShuttingDown):
        bench.submit(bench.prompt(1))
    assert not bench.engine.is_alive


def test_closing_without_time_refuses_what_is_queued(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    proceed, compute = threading.Event(), engine_module.compute_logits

    def slow(*given: Any) -> Any:
        assert proceed.wait(30)
        return compute(*given)

    monkeypatch.setattr(engine_module, "compute_logits", slow)
    bench = Bench(backbone, token_budget=6)
    futures = [bench.submit(bench.prompt(1)) for _ in range(6)]
    bench.engine.start()
    threading.Timer(0.3, proceed.set).start()
    bench.engine.close(0.05)
    outcomes = [type(future.exception(10)) for future in futures]
    assert outcomes[0] is type(None)
    assert outcomes[-1] is ShuttingDown


def test_a_forgotten_revision_leaves_the_pool_when_the_engine_is_idle(bench: Bench) -> None:
    bench.submit(bench.prompt(1)).result(30)
    bench.engine.forget("revision 1")
    bench.submit(bench.prompt(2)).result(30)
    deadline = time.monotonic() + 10
    while "revision 1" in bench.pool and time.monotonic() < deadline:
        time.sleep(0.001)
    assert "revision 1" not in bench.pool


def test_answers_in_bf16_stay_near_those_in_fp32(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> None:
    folder = tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")
    half = Bench(load_backbone(str(folder), dtype=torch.bfloat16, device=DEVICE))
    full = Bench(backbone)
    for bench in (half, full):
        bench.engine.start()
    half_logits, full_logits = (bench.submit(bench.prompt(1)).result(30) for bench in (half, full))
    for bench in (half, full):
        bench.engine.close(10.0)
    assert half_logits.dtype == full_logits.dtype == np.float32
    assert np.abs(half_logits - full_logits).max() < 0.05 * np.abs(full_logits).max() + 0.3
