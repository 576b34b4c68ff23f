"""LoadedPrompt: one revision as the engine takes it: facts for encoding and answering, tensors ready to copy.

Holding one means that the prompt fits this backbone and could fit this pool. It refuses to know under which address
it was published, and where in the pool it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import BackboneMismatch
from prefixbank.model_store.task_prompt import Pooler
from prefixbank.model_store.tasks import task_module
from prefixbank.serving.staging import StagedPrompt, as_views, stage

if TYPE_CHECKING:
    import torch

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

SHOWN_DIGITS = 12


@dataclass(frozen=True, eq=False, slots=True)
class LoadedPrompt:
    """A task prompt that this server can answer with."""

    revision: str
    task: TaskPrompt
    """Its tensors are views of `staged`; a quantised prefix cannot be read from it."""
    staged: StagedPrompt
    max_tokens: int
    """Longest row, special tokens included: the task's limit or what the backbone's positions leave."""
    is_token_level: bool
    """Each row's logits are one set per position that the head reads; otherwise one."""


def prepare(
    prompt: TaskPrompt, revision: str, backbone: Backbone, prefix_dtype: torch.dtype | None = None
) -> LoadedPrompt:
    """Check that `prompt` fits `backbone`, and bring its tensors into the pool's form.

    Args:
        prefix_dtype: what the pool quantises prefixes to; None where it holds them in the backbone's dtype.

    Raises:
        BackboneMismatch: when it was made for another backbone, or needs what this one lacks.
        UnsupportedFamily: when this version does not serve its family.
        OverflowsHalf: when its values overflow in the backbone's dtype.
    """
    _check_backbone(prompt, backbone)
    module = task_module(prompt.family, prompt.preprocessing)
    staged = stage(prompt, backbone.dtype, backbone.device, prefix_dtype)
    max_tokens = min(prompt.preprocessing.max_tokens, backbone.max_tokens(prompt.position_offset))
    return LoadedPrompt(revision, as_views(prompt, staged), staged, max_tokens, module.is_token_level)


def _check_backbone(prompt: TaskPrompt, backbone: Backbone) -> None:
    found, wanted = prompt.backbone, backbone.ref
    if found.fingerprint != wanted.fingerprint:
        raise BackboneMismatch(
            f"the prompt was made for {found.name or found.architecture!r} ({found.fingerprint[:SHOWN_DIGITS]}), "
            f"and this server runs {wanted.name or wanted.architecture!r} ({wanted.fingerprint[:SHOWN_DIGITS]})"
        )
    if prompt.head.spec.pooler is Pooler.BACKBONE and not backbone.has_pooler:
        raise BackboneMismatch(f"the prompt's head reads the pooler of {wanted.name!r}, which has none")
    if backbone.max_tokens(prompt.position_offset) < 1:
        raise BackboneMismatch(f"a position offset of {prompt.position_offset} leaves no position for a token")
