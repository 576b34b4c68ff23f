"""Predictor: the serving path for programs that have no event loop: the CLI, the trainer's last check, notebooks.

The same Service that a replica runs, on an event loop thread of its own. It refuses to know Ray and HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prefixbank.model_store import artifact
from prefixbank.model_store.address import LIVE
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.store import PromptStore
from prefixbank.serving.encoding import Encoding
from prefixbank.serving.loaded_prompt import prepare
from prefixbank.serving.memory_store import MemoryStore
from prefixbank.serving.service import Service

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from prefixbank.model_store.address import Address
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.serving.catalog import PromptSource
    from prefixbank.serving.encoding import EncodingLimits
    from prefixbank.serving.limits import Limits
    from prefixbank.serving.service import Answer


class Predictor:
    """Answers from a backbone and prompts in this process. Close it, or use it as a context manager.

    Args:
        backbone: a loaded one, or what `load_backbone` takes.
        prompts: a store, its folder, or the prompts themselves by address.
        prefix_dtype: int8 or float8_e4m3fn to hold prefixes quantised; None for the backbone's dtype.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        prompts: PromptSource | Path | Mapping[Address, TaskPrompt],
        limits: Limits | None = None,
        encoding: EncodingLimits | None = None,
        *,
        prefix_dtype: torch.dtype | None = None,
    ) -> None:
        self._backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
        self._prefix_dtype = prefix_dtype
        self.service = Service(self._backbone, _source_of(prompts), limits, encoding, prefix_dtype=prefix_dtype)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="predictor", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what was submitted and end all threads."""
        self.service.close()
        asyncio.run_coroutine_threadsafe(_finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def answer(
        self, address: Address, inputs: object, parameters: Mapping[str, object] | None = None, *, alias: str = LIVE
    ) -> Answer:
        """Answer one request; raises what `Service.answer` raises."""
        return self.submit(address, inputs, parameters, alias=alias).result()

    def submit(
        self, address: Address, inputs: object, parameters: Mapping[str, object] | None = None, *, alias: str = LIVE
    ) -> Future[Answer]:
        """Begin to answer one request; what is submitted together is computed together."""
        answer = self.service.answer(address, inputs, parameters, alias=alias)
        return asyncio.run_coroutine_threadsafe(answer, self._loop)

    def logits(self, prompt: TaskPrompt, rows: Sequence[Features]) -> list[NDArray[np.float32]]:
        """The logits of encoded rows as the server computes them, [C] or [T, C] each.

        Raises:
            PrefixbankError: the prompt does not fit, or a row failed.
        """
        loaded = prepare(prompt, artifact.seal(prompt).digest, self._backbone, self._prefix_dtype)
        return self.service.logits(loaded, [Encoding(features) for features in rows])


async def _finish() -> None:
    """Let every coroutine of this loop come to its end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


def _source_of(prompts: PromptSource | Path | Mapping[Address, TaskPrompt]) -> PromptSource:
    if isinstance(prompts, Path):
        return PromptStore.existing(prompts)
    return MemoryStore(prompts) if isinstance(prompts, Mapping) else prompts
