"""Answers: logits to what the caller reads, in the Hugging Face inference format.

It refuses to know how logits came about, and everything about HTTP but the shape of the JSON.

Shape letters: K positions of a row that the head reads, C outputs of the task's head.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.tasks import read_positions, task_module

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.model_store.tasks import TaskModule
    from prefixbank.model_store.tasks.features import Features
    from prefixbank.serving.encoding import EncodedRequest


def answer(prompt: TaskPrompt, request: EncodedRequest, logits: Sequence[NDArray[np.float32]]) -> Any:
    """The JSON-ready answer of a request, in its family's shape.

    Args:
        prompt: the revision that answered.
        request: as encoded.
        logits: what the engine gave for each row of the request: [C], or [K, C] where token-level.
    """
    module = task_module(prompt.family, prompt.preprocessing)
    features = [row.features for row in request.rows]
    _check_shapes(logits, [_shape(module, row, module.num_outputs(prompt.labels)) for row in features])
    ends = itertools.accumulate(request.num_rows_of_input, initial=0)
    answers = [
        module.decode(logits[start:end], features[start:end], prompt.labels, request.parameters)
        for start, end in itertools.pairwise(ends)
    ]
    return module.arrange(answers, request.parameters, batched=request.batched)


def _shape(module: TaskModule, row: Features, num_outputs: int) -> tuple[int, ...]:
    return (len(read_positions(module, row)), num_outputs) if module.is_token_level else (num_outputs,)


def _check_shapes(logits: Sequence[NDArray[np.float32]], wanted: Sequence[tuple[int, ...]]) -> None:
    """Logits of another row or another task must never become an answer."""
    found = [row.shape for row in logits]
    assert found == wanted, f"logits {found} for rows {wanted}. This is a bug."
