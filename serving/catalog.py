"""Catalog: which revision answers for an address now, and its prompt in host memory.

`resolve` is exact at the moment of the call. Loading happens once per revision on threads of its own. A follower
watches the store's generation, loads what was promoted before somebody asks, and lets go of what was deleted. A
broken artifact is remembered, reported once, and hurts no other task.
It refuses to know the pool, the queue and requests.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prefixbank.model_store.errors import (
    ArtifactError,
    BackboneError,
    CapacityError,
    InvalidName,
    NoSuchAlias,
    NoSuchRevision,
    NoSuchTask,
    PrefixbankError,
    StoreError,
    UnknownTask,
)
from prefixbank.model_store.tasks import task_settings
from prefixbank.serving.host_cache import HostCache
from prefixbank.serving.loaded_prompt import LoadedPrompt, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from prefixbank.model_store.address import Address
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.serving.tier import TierState

logger = logging.getLogger(__name__)

BROKEN_FOR_S = 30.0
"""How long a broken revision is refused without another look: its bytes name it, so only a repair can mend it."""

NUM_LOADERS = 2


class PromptSource(Protocol):
    """What the catalog needs of a store."""

    def resolve(self, address: Address, alias: str = ...) -> str:
        """The revision an alias points at now."""

    def load(self, address: Address, revision: str) -> TaskPrompt:
        """A revision, checked."""

    def find_revision(self, address: Address, prefix: str) -> str:
        """Raises NoSuchTask or NoSuchRevision when there is none."""

    def list(self) -> tuple[Address, ...]:
        """Every task."""

    def generation(self) -> int:
        """Grows after every change."""


class TaskFacts(NamedTuple):
    """What a served revision is, without its tensors."""

    family: str
    labels: tuple[str, ...]
    prefix_length: int
    """Keys and values of a deep prompt, per layer."""
    shallow_length: int
    """Vectors of a shallow prompt, which every row is longer by."""
    max_tokens: int
    is_pair: bool
    created: str
    settings: dict[str, Any]
    """What only the task's family has."""


class TaskStatus(NamedTuple):
    """One task that is in service."""

    address: Address
    revision: str
    facts: TaskFacts | None
    """None until it was loaded for the first time, and when it is broken."""
    error: str | None
    """Why it cannot be loaded."""


class Events(NamedTuple):
    """Who is told what, on the catalog's threads."""

    loaded: Callable[[str, float], None] = lambda result, seconds: None
    gone: Callable[[str], None] = lambda revision: None
    followed: Callable[[tuple[TaskStatus, ...]], None] = lambda tasks: None


class _Broken(NamedTuple):
    error: PrefixbankError
    until: float


class Catalog:
    """Addresses to loaded prompts, for one backbone.

    Args:
        prefix_dtype: what the pool quantises prefixes to, if it does.
        accept: raises CapacityError for a prompt that this server could never hold.
    """

    def __init__(
        self,
        source: PromptSource,
        backbone: Backbone,
        *,
        host_cache_bytes: int,
        follow_interval_s: float,
        prefix_dtype: torch.dtype | None = None,
        accept: Callable[[LoadedPrompt], None] = lambda prompt: None,
        events: Events | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._backbone, self._prefix_dtype = backbone, prefix_dtype
        self._accept = accept
        self._events = events or Events()
        self._clock = clock
        self._interval_s = follow_interval_s
        self._cache = HostCache(host_cache_bytes)
        self._lock = threading.Lock()
        self._loading: dict[str, Future[LoadedPrompt]] = {}
        self._broken: dict[str, _Broken] = {}
        self._facts: dict[str, TaskFacts] = {}
        self._origin: dict[str, Address] = {}  # of each revision in the cache, one address that has it
        self._live: Mapping[Address, str] = {}
        self._generation: int | None = None
        self._loaders = ThreadPoolExecutor(NUM_LOADERS, thread_name_prefix="loader")
        self._closed = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        self._follower.start()

    def close(self) -> None:
        self._closed.set()
        if self._follower.is_alive():
            self._follower.join()
        self._loaders.shutdown(cancel_futures=True)

    def resolve(self, address: Address, alias: str) -> str:
        """The revision that answers for `address` at this moment; raises UnknownTask."""
        try:
            return self._source.resolve(address, alias)
        except (NoSuchTask, NoSuchAlias, InvalidName) as error:
            raise UnknownTask(f"there is no task {address} with a {alias} revision") from error
        except OSError as error:
            raise StoreError(f"the {alias} alias of {address} cannot be read now: {error}") from error

    def find(self, revision: str) -> LoadedPrompt | None:
        """The prompt of a revision if it is in memory."""
        return self._cache.find(revision)

    def load(self, address: Address, revision: str) -> Future[LoadedPrompt]:
        """The prompt of a revision, loaded once however many ask; the future may be shared.

        It holds NoSuchRevision when the revision was deleted meanwhile, and the ArtifactError, BackboneError or
        CapacityError that names what is wrong with it.
        """
        with self._lock:
            future = self._loading.get(revision)
            if future is None:
                future = self._loading[revision] = self._loaders.submit(self._load, address, revision)
                future.add_done_callback(lambda _: self._loading.pop(revision, None))
            return future

    def tasks(self) -> tuple[TaskStatus, ...]:
        """Every live task, as the follower saw the store last."""
        return tuple(
            TaskStatus(address, revision, self._facts.get(revision), self._error_of(revision))
            for address, revision in sorted(self._live.items())
        )

    def state(self) -> TierState:
        return self._cache.state()

    def check_integrity(self) -> None:
        self._cache.check_integrity()

    def _load(self, address: Address, revision: str) -> LoadedPrompt:
        broken = self._broken.get(revision)
        if broken is not None and self._clock() < broken.until:
            raise _anew(broken.error)
        began = self._clock()
        try:
            prompt = prepare(self._source.load(address, revision), revision, self._backbone, self._prefix_dtype)
            self._accept(prompt)
        except (ArtifactError, BackboneError, CapacityError) as error:
            self._remember_broken(address, revision, error)
            self._events.loaded(type(error).__name__, self._clock() - began)
            raise
        except OSError as error:
            self._events.loaded("unreadable", self._clock() - began)
            raise StoreError(f"{address} revision {revision} cannot be read now: {error}") from error
        self._broken.pop(revision, None)
        self._facts[revision] = _facts_of(prompt)
        self._origin[revision] = address
        self._cache.put(prompt)
        self._events.loaded("ok", self._clock() - began)
        logger.info("loaded %s revision %s", address, revision)
        return prompt

    def _remember_broken(self, address: Address, revision: str, error: PrefixbankError) -> None:
        known = self._broken.get(revision)
        if known is None or str(known.error) != str(error):
            logger.error("%s revision %s cannot be served: %s: %s", address, revision, type(error).__name__, error)
        self._broken[revision] = _Broken(_anew(error), self._clock() + BROKEN_FOR_S)

    def _error_of(self, revision: str) -> str | None:
        broken = self._broken.get(revision)
        return None if broken is None else f"{type(broken.error).__name__}: {broken.error}"

    def _follow(self) -> None:
        """Look at the generation until closed; a store that cannot be read now may be readable later."""
        while True:
            try:
                self.follow_once()
            except (StoreError, OSError) as error:
                logger.warning("the store cannot be followed now: %s: %s", type(error).__name__, error)
            except Exception:
                logger.exception("following the store failed. This is a bug.")
            if self._closed.wait(self._interval_s):
                return

    def follow_once(self) -> None:
        """Bring live tasks, caches and listeners up to the store's generation, if it has grown."""
        generation = self._source.generation()
        if generation == self._generation:
            return
        before, self._live = self._live, self._read_live()
        self._let_go()
        self._events.followed(self.tasks())
        missing = [(address, revision) for address, revision in self._live.items() if revision not in self._facts]
        missing.sort(key=lambda task: task[0] not in before)  # a new revision of a served task first
        for address, revision in missing:
            if self._closed.is_set() or self._source.generation() != generation:
                return  # and begin again: what changed just now is wanted sooner
            self._preload(address, revision)
        self._events.followed(self.tasks())
        self._generation = generation

    def _read_live(self) -> dict[Address, str]:
        live = {}
        for address in self._source.list():
            try:
                live[address] = self._source.resolve(address)
            except StoreError:
                continue  # without a live alias it is not in service; a damaged one is named at the request
        return live

    def _preload(self, address: Address, revision: str) -> None:
        with suppress(PrefixbankError):  # reported by the load, and to whoever asks for it
            self.load(address, revision).result()

    def _let_go(self) -> None:
        """Drop what was deleted from the store. What is merely not live may come back by a rollback."""
        wanted, held = set(self._live.values()), set(self._cache.revisions)
        for revision in [revision for revision in list(self._origin) if revision not in wanted]:
            if revision in held and self._exists(revision):
                continue
            del self._origin[revision]
            self._facts.pop(revision, None)
            self._cache.drop(revision)
            self._events.gone(revision)
        for revision in [revision for revision in list(self._broken) if revision not in wanted]:
            self._broken.pop(revision, None)

    def _exists(self, revision: str) -> bool:
        try:
            self._source.find_revision(self._origin[revision], revision)
        except (NoSuchTask, NoSuchRevision):
            return False
        return True


def _anew(error: PrefixbankError) -> PrefixbankError:
    """The same error without its traceback, which would grow with each raise and keep what was loaded alive."""
    return type(error)(*error.args)


def _facts_of(prompt: LoadedPrompt) -> TaskFacts:
    task = prompt.task
    return TaskFacts(
        task.family.value,
        task.labels,
        prompt.staged.prefix_length,
        prompt.staged.num_virtual,
        prompt.max_tokens,
        task.preprocessing.pair,
        task.provenance.created,
        task_settings(task.family, task.preprocessing),
    )
