"""Answers: logits to what the caller reads, in the Hugging Face inference format.

It refuses to know how logits came about, and everything about HTTP but the shape of the JSON.

Shape letters: T tokens of a row, C classes of the task.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from prefixbank.model_store.errors import NonFiniteLogits
from prefixbank.model_store.tasks import family_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.serving.encoding import EncodedRequest


def answer(
    prompt: TaskPrompt, request: EncodedRequest, logits: Sequence[NDArray[np.floating[Any]]]
) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
    """The JSON-ready answer of a request.

    A batch gives a list with one answer per input. A single text gives the same list of one for text
    classification, which is what Hugging Face's clients unpack, and the bare answer for token classification.

    Args:
        prompt: the revision that answered.
        request: as encoded.
        logits: one array per row of the request: [C], or [T, C] where token-level. Columns beyond the task's own
            classes are dropped.

    Raises:
        NonFiniteLogits: a logit is NaN or infinite.
    """
    module = family_of(prompt.family)
    assert len(logits) == len(request.rows), f"{len(logits)} logits for {len(request.rows)} rows. This is a bug."
    own = [_own_columns(row, module.num_outputs(prompt.labels)) for row in logits]
    features = [row.features for row in request.rows]
    ends = list(itertools.accumulate(request.num_rows_of_input, initial=0))
    answers = [
        module.decode(own[start:end], features[start:end], prompt.labels, request.parameters)
        for start, end in itertools.pairwise(ends)
    ]
    return answers if request.batched or not module.is_token_level else answers[0]


def _own_columns(logits: NDArray[np.floating[Any]], num_classes: int) -> NDArray[np.float32]:
    """The task's own classes as fp32; rows share one array that is as wide as the widest task of a batch."""
    assert logits.shape[-1] >= num_classes, f"{logits.shape[-1]} columns for {num_classes} classes. This is a bug."
    own = np.asarray(logits[..., :num_classes], dtype=np.float32)
    if not np.isfinite(own).all():
        raise NonFiniteLogits("the forward gave NaN or infinity for this task: no answer")
    return own
