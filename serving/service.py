"""Service: one replica's whole answer path, without Ray and HTTP.

Address -> revision -> prompt -> encoding -> queue -> engine -> answer. It owns the threads of its parts and ends them.
It refuses to know keys, routes, status codes and processes.
"""

from __future__ import annotations

import asyncio
import math
import platform
import time
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

import prefixbank
from prefixbank.kernels.attention import route_of
from prefixbank.model_store.address import LIVE
from prefixbank.model_store.errors import CapacityError, DeadlineExceeded, NoSuchRevision, UnknownTask
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.serving import answers
from prefixbank.serving.catalog import Catalog, Events, PromptSource, TaskStatus
from prefixbank.serving.encoding import Encoder, EncodingLimits
from prefixbank.serving.engine import Engine
from prefixbank.serving.limits import Limits
from prefixbank.serving.mailbox import Mailbox
from prefixbank.serving.metrics import Metrics, Sources
from prefixbank.serving.prompt_pool import PromptPool
from prefixbank.serving.scheduler import Entry, Scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from prefixbank.model_store.address import Address
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.serving.encoding import EncodedRequest, Encoding
    from prefixbank.serving.loaded_prompt import LoadedPrompt


STUCK_AFTER_TIMEOUTS = 2.0
"""Entries leave the queue at their deadline whenever a batch is formed: an older one means that none is."""
CHECK_TENANT = "check"
"""Who asks in `Service.logits`."""
CHECK_ROWS = 256
"""Rows that `Service.logits` keeps in the queue at once."""


class Answer(NamedTuple):
    """An answer, and what gave it."""

    value: Any
    """In the Hugging Face inference format, ready for JSON."""
    revision: str
    tokens: int
    """Tokens computed: special tokens included, prefix excluded."""
    num_truncated: int
    """Inputs of which the end or the start was cut, because the request allowed it."""


class Health(NamedTuple):
    """Whether this replica answers."""

    status: str
    """"ok", "draining" or "failed"."""
    attention: str
    """The implementation of prefix attention in use."""
    failed_steps: int
    """Batches that failed since the start: more than none is a bug."""
    queued_rows: int


class ServiceInfo(NamedTuple):
    """What runs here."""

    version: str
    backbone: str
    architecture: str
    fingerprint: str
    dtype: str
    prefix_dtype: str
    """What prefixes are stored in; the backbone's dtype unless they are quantised."""
    device: str
    attention: str
    num_tasks: int
    num_resident: int
    """Prompts in device memory."""
    token_budget: int
    max_rows: int
    max_positions: int


class Service:
    """Serves the prompts of a store from one backbone. Close it, or use it as a context manager.

    Args:
        prefix_dtype: int8 or float8_e4m3fn to store prefixes quantised; None for the backbone's dtype.

    Raises:
        InvalidConfig: when the device cannot read prefixes of `prefix_dtype`.
    """

    def __init__(
        self,
        backbone: Backbone,
        store: PromptSource,
        limits: Limits | None = None,
        encoding: EncodingLimits | None = None,
        *,
        prefix_dtype: torch.dtype | None = None,
    ) -> None:
        limits = limits or Limits()
        self._backbone, self._limits = backbone, limits
        self._clock = time.monotonic
        self._mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()
        self._scheduler = Scheduler(limits.token_budget, limits.max_rows, limits.max_queued_tokens, self._clock)
        self._pool = PromptPool(
            backbone.ref,
            limits.pool_bytes,
            dtype=backbone.dtype,
            device=backbone.device,
            prefix_dtype=prefix_dtype,
            head_share=limits.head_share,
        )
        self._catalog = Catalog(
            store,
            backbone,
            host_cache_bytes=limits.host_cache_bytes,
            follow_interval_s=limits.follow_interval_s,
            prefix_dtype=prefix_dtype,
            accept=lambda prompt: self._pool.check_fits(prompt.staged),
            events=Events(self._on_load, self._on_gone, self._on_followed),
            clock=self._clock,
        )
        tiers = {"device": self._pool.state, "host": self._catalog.state}
        build = _build(backbone, self._pool.prefix_dtype)
        self.metrics = Metrics(Sources(self._scheduler.state, tiers), build, limits.max_task_labels)
        self._encoder = Encoder(TextTokenizer(backbone.tokenizer), backbone.max_tokens, encoding)
        self._engine = Engine(
            backbone, self._pool, self._scheduler, clock=self._clock, on_batch=self.metrics.observe_batch
        )
        self._engine.start()
        self._catalog.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self, timeout_s: float = 10.0) -> None:
        """Refuse what comes, finish what is queued within the timeout, and end all threads. Twice is once."""
        self._engine.close(timeout_s)
        self._encoder.close()
        self._catalog.close()

    async def answer(
        self,
        address: Address,
        inputs: object,
        parameters: Mapping[str, object] | None = None,
        *,
        alias: str = LIVE,
        tenant: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Answer for the revision that the alias names now. Cancelling it drops the rows that do not run yet.

        Raises:
            PrefixbankError: the subclass that says whose fault it is.
        """
        timeout_s = self._limits.timeout_s if timeout_s is None else timeout_s
        deadline = self._clock() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                prompt = await self._prompt_of(address, alias)
                self.metrics.register_task(str(address), prompt.task.family)
                request = await self._encode(prompt, inputs, parameters)
                entries = self._entries(request.rows, prompt, tenant or address.tenant, deadline)
                logits = await self._compute(entries)
        except TimeoutError as error:
            self.metrics.count_rejection(DeadlineExceeded.__name__)
            raise DeadlineExceeded(f"no answer within {timeout_s} s") from error
        except CapacityError as error:
            self.metrics.count_rejection(type(error).__name__)
            raise
        began = self._clock()
        value = answers.answer(prompt.task, request, logits)
        self.metrics.observe_stage(prompt.task.family, "post", self._clock() - began)
        return Answer(value, prompt.revision, request.num_tokens, request.num_truncated)

    def logits(self, prompt: LoadedPrompt, rows: Sequence[Encoding]) -> list[NDArray[np.float32]]:
        """The logits of encoded rows, without decoding: what a check compares. Blocks; raises the first row's error."""
        self._pool.check_fits(prompt.staged)
        logits: list[NDArray[np.float32]] = []
        for start in range(0, len(rows), CHECK_ROWS):
            entries = self._entries(rows[start : start + CHECK_ROWS], prompt, CHECK_TENANT, math.inf)
            self._scheduler.submit(*entries)
            logits += [entry.future.result() for entry in entries]
        return logits

    def health(self) -> Health:
        queue = self._scheduler.state()
        is_stuck = queue.oldest_age_s > STUCK_AFTER_TIMEOUTS * self._limits.timeout_s
        status = "draining" if self._scheduler.closed else "failed" if is_stuck or not self._engine.is_alive else "ok"
        return Health(status, route_of(self._backbone.device).value, self._engine.num_failed_steps, queue.depth)

    def info(self) -> ServiceInfo:
        ref = self._backbone.ref
        return ServiceInfo(
            prefixbank.__version__,
            ref.name,
            ref.architecture,
            ref.fingerprint,
            _name(self._backbone.dtype),
            _name(self._pool.prefix_dtype),
            str(self._backbone.device),
            route_of(self._backbone.device).value,
            len(self._catalog.tasks()),
            self._pool.state().num_prompts,
            self._limits.token_budget,
            self._limits.max_rows,
            self._backbone.max_positions,
        )

    def tasks(self) -> tuple[TaskStatus, ...]:
        """The live tasks, as the store stood a moment ago."""
        return self._catalog.tasks()

    def exposition(self) -> bytes:
        """The metrics of this replica in Prometheus' text format."""
        return self.metrics.exposition()

    def check_integrity(self) -> None:
        """Raise AssertionError when any book is wrong. Only while no request is on its way."""
        self._scheduler.check_integrity()
        self._pool.check_integrity()
        self._catalog.check_integrity()

    def _entries(self, rows: Sequence[Encoding], prompt: LoadedPrompt, tenant: str, deadline: float) -> list[Entry]:
        now = self._clock()
        return [Entry(row, prompt, Future(), tenant, deadline, now) for row in rows]

    async def _prompt_of(self, address: Address, alias: str) -> LoadedPrompt:
        """The prompt that answers now: when its revision is deleted while it loads, the one that took its place."""
        gone: str | None = None
        while True:
            revision = self._catalog.resolve(address, alias)
            prompt = self._catalog.find(revision)
            if prompt is not None:
                return prompt
            if revision == gone:
                raise UnknownTask(f"the {alias} revision of {address} is gone")
            try:
                return await self._mailbox().result(self._catalog.load(address, revision))
            except NoSuchRevision:
                gone = revision

    async def _encode(
        self, prompt: LoadedPrompt, inputs: object, parameters: Mapping[str, object] | None
    ) -> EncodedRequest:
        began = self._clock()
        future = self._encoder.submit(prompt.task, inputs, parameters)
        try:
            return await self._mailbox().result(future)
        finally:
            future.cancel()
            self.metrics.observe_stage(prompt.task.family, "tokenize", self._clock() - began)

    async def _compute(self, entries: Sequence[Entry]) -> list[NDArray[np.float32]]:
        """The logits of all rows, or the first row's error; rows that nobody waits for any more are cancelled."""
        mailbox = self._mailbox()
        self._scheduler.submit(*entries)
        try:
            return [await mailbox.result(entry.future) for entry in entries]
        finally:
            for entry in entries:
                entry.future.cancel()

    def _mailbox(self) -> Mailbox:
        loop = asyncio.get_running_loop()
        mailbox = self._mailboxes.get(loop)
        if mailbox is None:
            mailbox = self._mailboxes[loop] = Mailbox(loop)
        return mailbox

    def _on_load(self, result: str, seconds: float) -> None:
        self.metrics.count_load(result, seconds)

    def _on_gone(self, revision: str) -> None:
        self._engine.forget(revision)

    def _on_followed(self, tasks: tuple[TaskStatus, ...]) -> None:
        self.metrics.retain_tasks(str(task.address) for task in tasks)
        for task in tasks:
            if task.facts is not None:
                self.metrics.register_task(str(task.address), task.facts.family)


def _build(backbone: Backbone, prefix_dtype: torch.dtype) -> dict[str, str]:
    return {
        "version": prefixbank.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "backbone": backbone.ref.name or backbone.ref.architecture,
        "fingerprint": backbone.fingerprint,
        "dtype": _name(backbone.dtype),
        "prefix_dtype": _name(prefix_dtype),
        "device": str(backbone.device),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
