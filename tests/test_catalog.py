"""The catalog is exact about revisions, loads each once, follows the store, and keeps a broken artifact to itself."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import (
    ArtifactError,
    NoSuchRevision,
    PromptTooLarge,
    StoreError,
    UnknownTask,
)
from prefixbank.model_store.store import PromptStore
from prefixbank.serving import catalog as catalog_module
from prefixbank.serving.catalog import BROKEN_FOR_S, Catalog, Events
from prefixbank.serving.memory_store import MemoryStore
from tests.serving_cases import FakeClock, random_prompt
from tests.shallow_cases import shallow
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.serving.catalog import PromptSource
    from prefixbank.serving.loaded_prompt import LoadedPrompt

A, B = Address("acme", "a"), Address("acme", "b")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")))


class Journal:
    """Remembers what a catalog told."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.gone: list[str] = []

    @property
    def events(self) -> Events:
        return Events(lambda result, seconds: self.loads.append(result), self.gone.append)


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def open_catalog(backbone: Backbone, journal: Journal) -> Iterator[Callable[..., Catalog]]:
    opened: list[Catalog] = []

    def make(source: PromptSource, **options: object) -> Catalog:
        settings = {"host_cache_bytes": 10**8, "follow_interval_s": 0.01, "events": journal.events} | options
        opened.append(Catalog(source, backbone, **settings))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for catalog in opened:
        catalog.close()
        catalog.check_integrity()


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return PromptStore(tmp_path / "store")


def put(store: PromptStore, address: Address, prompt: TaskPrompt) -> str:
    revision = store.publish(address, prompt)
    store.promote(address, revision)
    return revision


def damage(store: PromptStore, address: Address, revision: str) -> None:
    folder = store.root / "tenants" / address.tenant / address.name / "revisions" / revision
    tensors = folder / "prompt.safetensors"
    tensors.chmod(0o644)
    tensors.write_bytes(tensors.read_bytes()[:-4])


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_a_revision_is_loaded_once_however_many_ask(
    backbone: Backbone, journal: Journal, open_catalog: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, proceed = threading.Event(), threading.Event()
    prepare = catalog_module.prepare

    def slow(*given: object) -> LoadedPrompt:
        started.set()
        assert proceed.wait(20)
        return prepare(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(catalog_module, "prepare", slow)
    catalog = open_catalog(MemoryStore({A: random_prompt(backbone, 5, seed=1)}))
    revision = catalog.resolve(A, "live")
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(catalog.load, A, revision) for _ in range(8)]
        assert started.wait(20)
        futures = [one.result(20) for one in asked]
        proceed.set()
        assert len({future.result(20) for future in futures}) == 1
    assert journal.loads == ["ok"]
    assert catalog.find(revision) is futures[0].result()


def test_an_unknown_address_and_an_unknown_alias_look_alike(
    backbone: Backbone, open_catalog: Callable[..., Catalog]
) -> None:
    catalog = open_catalog(MemoryStore({A: random_prompt(backbone, 5, seed=1)}))
    for address, alias in ((B, "live"), (A, "blue")):
        with pytest.raises(UnknownTask, match="there is no task"):
            catalog.resolve(address, alias)


def test_a_broken_artifact_is_looked_at_once_and_reported_once(
    backbone: Backbone,
    store: PromptStore,
    journal: Journal,
    open_catalog: Callable[..., Catalog],
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, broken, whole = (
        FakeClock(),
        put(store, A, random_prompt(backbone, 5, seed=1)),
        random_prompt(backbone, 5, seed=2),
    )
    damage(store, A, broken)
    catalog = open_catalog(store, clock=clock)
    for _ in range(3):
        with pytest.raises(ArtifactError):
            catalog.load(A, broken).result(20)
    assert len(journal.loads) == 1
    assert caplog.text.count(broken) == 1
    assert catalog.load(B, put(store, B, whole)).result(20).task.labels == whole.labels
    clock.now += BROKEN_FOR_S
    with pytest.raises(ArtifactError):
        catalog.load(A, broken).result(20)
    assert len(journal.loads) == 3
    assert caplog.text.count(broken) == 1


def test_a_repaired_artifact_is_served_again(
    backbone: Backbone, store: PromptStore, open_catalog: Callable[..., Catalog]
) -> None:
    clock, prompt = FakeClock(), random_prompt(backbone, 5, seed=1)
    revision = put(store, A, prompt)
    damage(store, A, revision)
    catalog = open_catalog(store, clock=clock)
    with pytest.raises(ArtifactError):
        catalog.load(A, revision).result(20)
    store.publish(A, prompt)
    clock.now += BROKEN_FOR_S
    assert catalog.load(A, revision).result(20).revision == revision


def test_a_prompt_the_server_could_never_hold_is_refused(
    backbone: Backbone, open_catalog: Callable[..., Catalog]
) -> None:
    def refuse(prompt: LoadedPrompt) -> None:
        raise PromptTooLarge("no room")

    catalog = open_catalog(MemoryStore({A: random_prompt(backbone, 5, seed=1)}), accept=refuse)
    with pytest.raises(PromptTooLarge):
        catalog.load(A, catalog.resolve(A, "live")).result(20)


def test_a_disk_that_fails_is_not_held_against_the_artifact(
    backbone: Backbone, open_catalog: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemoryStore({A: random_prompt(backbone, 5, seed=1)})
    catalog, revision, load = open_catalog(source), source.resolve(A), source.load

    def failing(*_: object) -> TaskPrompt:
        raise OSError("input/output error")

    monkeypatch.setattr(source, "load", failing)
    with pytest.raises(StoreError, match="cannot be read now"):
        catalog.load(A, revision).result(20)
    monkeypatch.setattr(source, "load", load)
    assert catalog.load(A, revision).result(20).revision == revision


def test_what_is_promoted_is_in_memory_before_anybody_asks(
    backbone: Backbone, store: PromptStore, open_catalog: Callable[..., Catalog]
) -> None:
    catalog = open_catalog(store)
    catalog.start()
    first = put(store, A, random_prompt(backbone, 5, seed=1))
    assert eventually(lambda: catalog.find(first) is not None)
    second = put(store, A, random_prompt(backbone, 7, seed=2))
    assert eventually(lambda: catalog.find(second) is not None)
    assert eventually(lambda: [(task.address, task.revision) for task in catalog.tasks()] == [(A, second)])


def test_what_is_deleted_is_let_go_and_what_may_come_back_is_kept(
    backbone: Backbone, store: PromptStore, journal: Journal, open_catalog: Callable[..., Catalog]
) -> None:
    catalog = open_catalog(store)
    first, second = (put(store, A, random_prompt(backbone, 5, seed=seed)) for seed in range(2))
    catalog.load(A, first).result(20)
    catalog.follow_once()
    assert catalog.find(first) is not None
    assert catalog.find(second) is not None
    store.delete(A, first)
    catalog.follow_once()
    assert catalog.find(first) is None
    assert catalog.find(second) is not None
    assert journal.gone == [first]


def test_a_revision_deleted_before_it_was_loaded_is_told(
    backbone: Backbone, store: PromptStore, open_catalog: Callable[..., Catalog]
) -> None:
    catalog = open_catalog(store)
    first, _ = (put(store, A, random_prompt(backbone, 5, seed=seed)) for seed in range(2))
    store.delete(A, first)
    with pytest.raises(NoSuchRevision):
        catalog.load(A, first).result(20)


def test_a_broken_task_is_listed_with_its_error_beside_the_whole_ones(
    backbone: Backbone, store: PromptStore, open_catalog: Callable[..., Catalog]
) -> None:
    broken = put(store, A, random_prompt(backbone, 5, seed=1))
    put(store, B, random_prompt(backbone, 17, seed=2))
    damage(store, A, broken)
    catalog = open_catalog(store)
    catalog.follow_once()
    bad, good = catalog.tasks()
    assert (bad.address, bad.facts) == (A, None)
    assert "TensorFile" in str(bad.error)
    assert (good.address, good.error) == (B, None)
    assert good.facts is not None
    assert (good.facts.prefix_length, good.facts.shallow_length) == (17, 0)


def test_a_task_says_how_many_vectors_stand_before_its_text(
    backbone: Backbone, store: PromptStore, open_catalog: Callable[..., Catalog]
) -> None:
    put(store, A, shallow(random_prompt(backbone, 0, seed=1), 5))
    catalog = open_catalog(store)
    catalog.follow_once()
    [task] = catalog.tasks()
    assert task.facts is not None
    assert (task.facts.prefix_length, task.facts.shallow_length) == (0, 5)


def test_a_store_that_vanishes_for_a_while_does_not_end_the_follower(
    backbone: Backbone, open_catalog: Callable[..., Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemoryStore({A: random_prompt(backbone, 5, seed=1)})
    catalog = open_catalog(source)

    def failing() -> int:
        raise OSError("stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(source, "generation", failing)
        catalog.start()
        time.sleep(0.05)
    assert eventually(lambda: len(catalog.tasks()) == 1)


def test_the_host_cache_keeps_to_its_bytes(backbone: Backbone, open_catalog: Callable[..., Catalog]) -> None:
    prompts = {Address("acme", f"t{seed}"): random_prompt(backbone, 16, seed=seed) for seed in range(6)}
    source = MemoryStore(prompts)
    catalog = open_catalog(source, host_cache_bytes=20_000)
    for address in prompts:
        catalog.load(address, source.resolve(address)).result(20)
    state = catalog.state()
    assert 0 < state.num_bytes <= 20_000
    assert state.evictions["room"] == 6 - state.num_prompts
    assert catalog.find(source.resolve(Address("acme", "t5"))) is not None
    assert catalog.find(source.resolve(Address("acme", "t0"))) is None
