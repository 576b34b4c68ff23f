"""Inputs that show what a family takes: in the OpenAPI document, and at the start of a server.

Plain JSON values. It refuses to know what a task makes of them.
"""

from __future__ import annotations

from typing import NamedTuple

from prefixbank.model_store.task_prompt import TaskFamily


class Samples(NamedTuple):
    """What a request's `inputs` may be."""

    single: object
    """For a task of one text, or of a family that has one form."""
    pair: object | None = None
    """For a task that takes two texts."""


SAMPLES: dict[TaskFamily, Samples] = {
    TaskFamily.TEXT_CLASSIFICATION: Samples(
        "The parcel should have been here on Monday. Where is it?",
        {"text": "is the sky blue", "text_pair": "The sky looks blue because air scatters blue light more than red."},
    ),
    TaskFamily.TOKEN_CLASSIFICATION: Samples("Maria Lopez of Acme flew from Madrid to Oslo on Monday."),
    TaskFamily.QUESTION_ANSWERING: Samples(
        {"question": "Where did Maria fly?", "context": "On Monday Maria Lopez of Acme flew from Madrid to Oslo."}
    ),
    TaskFamily.MULTIPLE_CHOICE: Samples(
        {
            "premise": "The parcel arrived a week late.",
            "question": "effect",
            "choices": ["The customer asked for a refund.", "The customer moved to Oslo."],
        }
    ),
    TaskFamily.SEMANTIC_ROLES: Samples(
        {"words": ["Maria", "Lopez", "flew", "from", "Madrid", "to", "Oslo", "on", "Monday", "."], "predicates": [2]}
    ),
}


def sample_for(family: str, *, is_pair: bool) -> object | None:
    """An input for a task; None for a family of another version."""
    if family not in SAMPLES:
        return None
    samples = SAMPLES[TaskFamily(family)]
    return samples.pair if is_pair and samples.pair is not None else samples.single
