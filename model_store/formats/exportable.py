"""What a prompt must be to be said in another tool's format: a prefix for every layer, or vectors before the text.

It refuses to know the formats' files.

Shape letters: P prefix tokens, or vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.errors import NotRepresentable
from prefixbank.model_store.task_prompt import TaskFamily

if TYPE_CHECKING:
    from prefixbank.model_store.task_prompt import TaskPrompt


def check_head(prompt: TaskPrompt, tool: str) -> None:
    """Refuse a head that reads words at masks: no tool has one."""
    if prompt.preprocessing.verbalizer is not None:
        raise NotRepresentable(f"the head scores words at masks; {tool} has no such head")


def check_deep(prompt: TaskPrompt, tool: str) -> None:
    """Refuse what `tool` would answer otherwise than we do.

    Raises:
        NotRepresentable: some layers have no prefix, or positions do not begin at P.
    """
    if not prompt.layers:
        raise NotRepresentable(f"the prompt is a head alone; {tool} has no form without a prompt")
    if prompt.layers != tuple(range(prompt.backbone.num_layers)):
        raise NotRepresentable(
            f"{len(prompt.layers)} of {prompt.backbone.num_layers} layers are prompted; {tool} prompts every one, "
            f"and a prefix of zeros is not none"
        )
    _check_offset(prompt.position_offset, prompt.prefix_length, tool)


def check_shallow(prompt: TaskPrompt, tool: str) -> None:
    """Refuse what `tool` would answer otherwise than we do, of a shallow prompt.

    Raises:
        NotRepresentable: positions do not begin at P, or the head does not read virtual token 0.
    """
    _check_offset(prompt.position_offset, prompt.shallow_length, tool)
    if prompt.family is TaskFamily.TEXT_CLASSIFICATION and prompt.head.spec.pools != "prompt":
        raise NotRepresentable(
            f"the head reads the text's first token, and {tool} the prompt's: its answers would be others"
        )


def _check_offset(found: int, length: int, tool: str) -> None:
    if found != length:
        raise NotRepresentable(
            f"the position offset is {found}, and {tool} shifts positions by P, {length} here: its answers would be "
            f'others (train with prompt.position_offset = "length")'
        )
