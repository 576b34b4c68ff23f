"""Encoding: validated token ids. Holding one means that validation has happened.

The Encoder tokenises on its own threads, so that neither the event loop nor the engine waits for text. It refuses
before it tokenises: too many inputs, too many characters, or too many requests at once.
This module refuses to know tenants, queues, devices and the wire.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import BackboneError, InputTooLong, InvalidRequest, Overloaded, ShuttingDown
from prefixbank.model_store.tasks import task_module
from prefixbank.model_store.tasks.features import Truncation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.model_store.tasks.request import RequestInputs, RequestItem, RequestParameters
    from prefixbank.model_store.tasks.tokenizer import TextTokenizer

RETRY_AFTER_S = 1.0
"""Texts wait milliseconds for a thread: a full queue is empty again within this."""


@dataclass(frozen=True, slots=True)
class EncodingLimits:
    """What one request may bring and how many may wait."""

    max_inputs: int = 64
    """Inputs of one request. Clients that send more gain nothing: the engine batches across requests."""
    max_characters: int = 400_000
    """Characters of one request that forbids cutting; where it allows it, those that stand in several rows.

    A thread tokenises about two million in a second.
    """
    max_rows: int = 256
    """Rows of one request: windows of long texts, choices of a premise, predicates of a sentence."""
    max_pending: int = 1024
    """Requests waiting for a thread; beyond it they are refused as overload."""
    num_threads: int = 2
    """Tokenisation threads. Raise it when the tokenize stage in the metrics grows."""


@dataclass(frozen=True, eq=False, slots=True)
class Encoding:
    """One row: the payload of one queue entry. Only the Encoder makes them, after every check."""

    features: Features

    @property
    def num_tokens(self) -> int:
        """What the row costs of a batch's token budget."""
        return self.features.num_tokens


@dataclass(frozen=True, eq=False, slots=True)
class EncodedRequest:
    """All rows of one request, and what the answer needs beside their logits."""

    rows: tuple[Encoding, ...]
    num_rows_of_input: tuple[int, ...]
    """Rows of each input, in order: 1 unless a long text was taken in windows, or the family makes several."""
    parameters: RequestParameters
    batched: bool
    """The request brought a list, so the answer is one."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(row.num_tokens for row in self.rows)

    @property
    def num_truncated(self) -> int:
        """Inputs of which something was cut, because the request allowed it."""
        return sum(any(row.features.truncated for row in rows) for rows in self.rows_of_inputs)

    @property
    def rows_of_inputs(self) -> list[tuple[Encoding, ...]]:
        """The rows of each input, in order."""
        ends = itertools.accumulate(self.num_rows_of_input, initial=0)
        return [self.rows[start:end] for start, end in itertools.pairwise(ends)]


class Encoder:
    """Encodes requests on its own threads. Close it, or use it as a context manager.

    Args:
        tokenizer: the backbone's.
        max_tokens: `Backbone.max_tokens`: the backbone's longest row for a prompt's position offset.
        limits: what a request may bring.
    """

    def __init__(
        self, tokenizer: TextTokenizer, max_tokens: Callable[[int], int], limits: EncodingLimits | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._limits = limits or EncodingLimits()
        self._permits = threading.BoundedSemaphore(self._limits.max_pending)
        self._threads = ThreadPoolExecutor(self._limits.num_threads, thread_name_prefix="encoder")

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what was submitted and end the threads."""
        self._threads.shutdown()

    def submit(
        self, prompt: TaskPrompt, inputs: object, parameters: Mapping[str, object] | None = None
    ) -> Future[EncodedRequest]:
        """Queue a request; the future holds the rows, or the RequestError that names what is wrong.

        Raises:
            Overloaded: too many requests wait.
            ShuttingDown: the encoder is closed.
        """
        if not self._permits.acquire(blocking=False):
            raise Overloaded(f"{self._limits.max_pending} requests wait to be tokenised", RETRY_AFTER_S)
        try:
            future = self._threads.submit(self.encode_now, prompt, inputs, parameters)
        except RuntimeError as error:
            self._permits.release()
            raise ShuttingDown("the encoder is closed") from error
        future.add_done_callback(lambda _: self._permits.release())
        return future

    async def encode(
        self, prompt: TaskPrompt, inputs: object, parameters: Mapping[str, object] | None = None
    ) -> EncodedRequest:
        """`submit` for the event loop; cancelling it drops what has not begun."""
        return await asyncio.wrap_future(self.submit(prompt, inputs, parameters))

    def encode_now(
        self, prompt: TaskPrompt, inputs: object, parameters: Mapping[str, object] | None = None
    ) -> EncodedRequest:
        """Encode on the caller's thread."""
        prep = prompt.preprocessing
        module = task_module(prompt.family, prep)
        options = module.parse_parameters(parameters or {})
        request = module.parse_inputs(inputs, prep, options)
        self._check_size(request, options.when_too_long)
        limit = self._longest_row(prompt)
        rows_of_input = []
        for item in request.items:
            rows_of_input.append(module.encode_rows(self._tokenizer, prep, item, options, max_tokens=limit))
            self._check_rows(sum(map(len, rows_of_input)))
        rows = tuple(Encoding(features) for rows in rows_of_input for features in rows)
        return EncodedRequest(rows, tuple(map(len, rows_of_input)), options, request.batched)

    def _longest_row(self, prompt: TaskPrompt) -> int:
        room = self._max_tokens(prompt.position_offset)
        if room < 1:
            raise BackboneError(f"a position offset of {prompt.position_offset} leaves no position for text")
        return min(prompt.preprocessing.max_tokens, room)

    def _check_size(self, request: RequestInputs[RequestItem], when_too_long: Truncation) -> None:
        found, limit = len(request.items), self._limits.max_inputs
        if not 1 <= found <= limit:
            raise InvalidRequest(f"inputs: found {found} inputs, wanted 1 to {limit}")
        refuses, limit = when_too_long is Truncation.REFUSE, self._limits.max_characters
        characters = sum(item.num_characters if refuses else item.num_repeated_characters for item in request.items)
        if characters > limit:
            repeated = "" if refuses else " that stand in several rows"
            raise InputTooLong(f"inputs: found {characters} characters{repeated}, at most {limit} are taken")

    def _check_rows(self, found: int) -> None:
        if found > self._limits.max_rows:
            raise InvalidRequest(f"inputs: found {found} rows or more, wanted at most {self._limits.max_rows}")
