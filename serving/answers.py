"""Answers: logits to what the caller reads, in the Hugging Face inference format.

It refuses to know how logits came about, and everything about HTTP but the shape of the JSON.

Shape letters: T tokens of a row, C classes of the task.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.tasks import family_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.serving.encoding import EncodedRequest


def answer(
    prompt: TaskPrompt, request: EncodedRequest, logits: Sequence[NDArray[np.float32]]
) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
    """The JSON-ready answer of a request.

    A batch gives a list with one answer per input. A single text gives the same list of one for text
    classification, which is what Hugging Face's clients unpack, and the bare answer for token classification.

    Args:
        prompt: the revision that answered.
        request: as encoded.
        logits: what the engine gave for each row of the request: [C], or [T, C] where token-level.
    """
    module = family_of(prompt.family)
    features = [row.features for row in request.rows]
    num_classes = module.num_outputs(prompt.labels)
    _check_shapes(logits, [(f.num_tokens, num_classes) if module.is_token_level else (num_classes,) for f in features])
    ends = list(itertools.accumulate(request.num_rows_of_input, initial=0))
    answers = [
        module.decode(logits[start:end], features[start:end], prompt.labels, request.parameters)
        for start, end in itertools.pairwise(ends)
    ]
    return answers if request.batched or not module.is_token_level else answers[0]


def _check_shapes(logits: Sequence[NDArray[np.float32]], wanted: Sequence[tuple[int, ...]]) -> None:
    """Logits of another row or another task must never become an answer."""
    found = [row.shape for row in logits]
    assert found == wanted, f"logits {found} for rows {wanted}. This is a bug."
