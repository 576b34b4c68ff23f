"""JSON lines through the engine: many in flight, so that they share batches; answers in the order of the lines.

It refuses to know files and options.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from prefixbank.model_store.address import LIVE, Address
from prefixbank.model_store.backbones.devices import device_named
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import InvalidRequest, PrefixbankError
from prefixbank.model_store.store import PromptStore
from prefixbank.serving.config import ServeConfig
from prefixbank.serving.predict import Predictor
from prefixbank.serving.staging import prefix_dtype_of

if TYPE_CHECKING:
    from prefixbank.serving.service import Answer

IN_FLIGHT = 256
"""Lines submitted ahead of the one that is written: a few batches' worth."""


def answer_lines(config: ServeConfig, task: str, lines: Iterable[str]) -> Iterator[str]:
    """The answer of each line that is not blank, as JSON.

    Raises:
        PrefixbankError: a line is no request, or was refused; the message names it.
    """
    spelled, _, alias = task.partition("@")
    address = Address.parse(spelled)
    prompts = PromptStore.existing(config.store)
    backbone = load_backbone(config.backbone, dtype=getattr(torch, config.dtype), device=device_named(config.device))
    prefix_dtype = prefix_dtype_of(config.prefix_dtype)
    with Predictor(backbone, prompts, config.limits, prefix_dtype=prefix_dtype) as predictor:
        submitted = (
            (number, _submit(predictor, address, alias or LIVE, line))
            for number, line in enumerate(lines, 1)
            if line.strip()
        )
        pending = deque(islice(submitted, IN_FLIGHT))
        while pending:
            yield _answer(*pending.popleft())
            pending.extend(islice(submitted, 1))


def _submit(predictor: Predictor, address: Address, alias: str, line: str) -> "Future[Answer]":
    """A line that is no request fails when its turn comes, after the answers before it."""
    try:
        inputs, parameters = _request(line)
    except InvalidRequest as error:
        failed: Future[Answer] = Future()
        failed.set_exception(error)
        return failed
    return predictor.submit(address, inputs, parameters, alias=alias)


def _request(line: str) -> tuple[Any, dict[str, Any]]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidRequest(f"not JSON: {error}") from None
    if isinstance(value, dict) and "inputs" in value:
        return value["inputs"], value.get("parameters") or {}
    return value, {}


def _answer(number: int, future: "Future[Answer]") -> str:
    try:
        return json.dumps(future.result().value, ensure_ascii=False)
    except PrefixbankError as error:
        raise InvalidRequest(f"line {number}: {error}") from error
