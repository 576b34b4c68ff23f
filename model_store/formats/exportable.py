"""What a prompt must be to be said in a format of keys and values for every layer, with positions shifted by P.

It refuses to know the formats' files.

Shape letters: P prefix tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.errors import NotRepresentable

if TYPE_CHECKING:
    from prefixbank.model_store.task_prompt import TaskPrompt


def check_deep(prompt: TaskPrompt, tool: str) -> None:
    """Refuse what `tool` would answer otherwise than we do.

    Raises:
        NotRepresentable: some layers have no prefix, or positions do not begin at P.
    """
    if not prompt.layers:
        raise NotRepresentable(f"the prompt is a head alone; {tool} has no form without a prefix")
    if prompt.layers != tuple(range(prompt.backbone.num_layers)):
        raise NotRepresentable(
            f"{len(prompt.layers)} of {prompt.backbone.num_layers} layers are prompted; {tool} prompts every one, "
            f"and a prefix of zeros is not none"
        )
    if prompt.position_offset != prompt.prefix_length:
        raise NotRepresentable(
            f"the position offset is {prompt.position_offset}, and {tool} shifts positions by P, "
            f'{prompt.prefix_length} here: its answers would be others (train with prompt.position_offset = "length")'
        )
