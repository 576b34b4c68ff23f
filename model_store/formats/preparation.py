"""How the inputs of an imported prompt become tokens: as the user says, else its sidecar, else as it was published.

It refuses to know tensors, and formats but for what their authors' scripts did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable
from prefixbank.model_store.task_prompt import AnsweringSpec, Preprocessing, RolesSpec, TaskFamily
from prefixbank.model_store.tasks.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.formats.importer import Choices

PUBLISHED_WINDOW = 384
"""Tokens of a window of a text that is asked about, in P-tuning-v2's and in Hugging Face's scripts."""
PUBLISHED_ANSWERING = AnsweringSpec(stride=128, num_best=20, max_answer_tokens=30)
"""The rest of them. Whether there are questions without an answer, only the user knows."""

_QUESTIONS, _CHOICES = TaskFamily.QUESTION_ANSWERING, TaskFamily.MULTIPLE_CHOICE
_WORDS, _ROLES = TaskFamily.TOKEN_CLASSIFICATION, TaskFamily.SEMANTIC_ROLES
_TEXT_FIELDS = {_QUESTIONS: ("question", "context"), _CHOICES: ("premise", "choice")}
"""Families that always take two texts."""


def preprocessing_for(
    family: TaskFamily, position_offset: int, told: Preprocessing | None, backbone: Backbone, choices: Choices
) -> Preprocessing:
    """The preprocessing of an imported prompt.

    Args:
        told: what the sidecar says.

    Raises:
        BackboneMismatch: the positions that the prefix leaves are fewer than wanted.
        NotRepresentable: the user says one text for a family of two.
    """
    longest = backbone.max_tokens(position_offset)
    least = _fewest(family, backbone, choices)
    wanted = choices.max_tokens or (told.max_tokens if told else least)
    if wanted < least:
        raise BackboneMismatch(f"rows of up to {wanted} tokens are wanted; the shortest input of {family} has {least}")
    if longest < wanted:
        raise BackboneMismatch(
            f"{position_offset} of {backbone.max_positions} positions go to the prefix; "
            f"{longest} are left, and {wanted} are wanted"
        )
    prep = told or _published(family, longest)
    return prep.model_copy(update=_chosen(family, prep, choices))


def _fewest(family: TaskFamily, backbone: Backbone, choices: Choices) -> int:
    """Tokens of the shortest input: special ones, and one of each text."""
    is_pair = family in _TEXT_FIELDS or bool(choices.pair)
    return TextTokenizer(backbone.tokenizer).num_special_tokens(pair=is_pair) + 1 + is_pair


def _published(family: TaskFamily, longest: int) -> Preprocessing:
    match family:
        case TaskFamily.QUESTION_ANSWERING:
            window = min(PUBLISHED_WINDOW, longest)
            prep = Preprocessing(max_tokens=window, answering=PUBLISHED_ANSWERING)
        case TaskFamily.SEMANTIC_ROLES:
            prep = Preprocessing(max_tokens=longest, roles=RolesSpec())
        case _:
            prep = Preprocessing(max_tokens=longest)
    texts = {"pair": True, "text_fields": _TEXT_FIELDS[family]} if family in _TEXT_FIELDS else {}
    return prep.model_copy(update={"add_prefix_space": family in (_WORDS, _ROLES), **texts})


def _chosen(family: TaskFamily, prep: Preprocessing, choices: Choices) -> dict[str, Any]:
    """The fields that the user has said."""
    chosen: dict[str, Any] = {"max_tokens": choices.max_tokens, "add_prefix_space": choices.add_prefix_space}
    if choices.pair is False and family in _TEXT_FIELDS:
        raise NotRepresentable(f"{family} takes two texts, and one was said")
    if choices.pair is not None and family not in _TEXT_FIELDS:
        chosen |= {"pair": choices.pair, "text_fields": ("text", "text_pair") if choices.pair else ("text",)}
    if choices.null_threshold is not None:
        answering = prep.answering or PUBLISHED_ANSWERING
        chosen["answering"] = answering.model_copy(update={"null_threshold": choices.null_threshold})
    return {name: value for name, value in chosen.items() if value is not None}
