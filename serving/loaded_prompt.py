"""LoadedPrompt: one revision as the engine takes it: facts for encoding and answering, tensors ready to copy.

Holding one means that the prompt fits this backbone and could fit this pool. It refuses to know under which address
it was published, and where in the pool it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import BackboneError, BackboneMismatch
from prefixbank.model_store.task_prompt import Pooler
from prefixbank.model_store.tasks import task_module
from prefixbank.serving.staging import StagedPrompt, as_views, stage

if TYPE_CHECKING:
    import torch

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.model_store.tasks import TaskModule

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
    module: TaskModule
    """How its rows are read and its answers made."""

    @property
    def num_virtual(self) -> int:
        """Vectors of a shallow prompt, which stand before every row."""
        return self.staged.num_virtual


def prepare(
    prompt: TaskPrompt, revision: str, backbone: Backbone, prefix_dtype: torch.dtype | None = None
) -> LoadedPrompt:
    """Check that `prompt` fits `backbone`, and bring its tensors into the pool's form.

    Args:
        prefix_dtype: what the pool quantises prefixes to; None where it holds them in the backbone's dtype.

    Raises:
        BackboneMismatch: when it was made for another backbone, or needs what this one lacks.
        OverflowsHalf: when its values overflow in the backbone's dtype.
    """
    _check_backbone(prompt, backbone)
    _check_shallow(prompt, backbone)
    _check_verbalizer(prompt, backbone)
    module = task_module(prompt.family, prompt.preprocessing)
    staged = stage(prompt, backbone.dtype, backbone.device, prefix_dtype)
    max_tokens = min(prompt.preprocessing.max_tokens, backbone.max_tokens(prompt.position_offset))
    return LoadedPrompt(revision, as_views(prompt, staged), staged, max_tokens, module)


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


def _check_shallow(prompt: TaskPrompt, backbone: Backbone) -> None:
    if not prompt.shallow_length:
        return
    if prompt.shallow_length > backbone.max_positions:
        raise BackboneMismatch(
            f"the shallow prompt has {prompt.shallow_length} vectors, and {backbone.ref.name!r} has "
            f"{backbone.max_positions} positions"
        )
    try:
        _ = backbone.word_embedding_VM
    except BackboneError as error:
        raise BackboneMismatch(f"the prompt is shallow, and {error}") from error


def _check_verbalizer(prompt: TaskPrompt, backbone: Backbone) -> None:
    if prompt.preprocessing.verbalizer is not None and backbone.mask_id is None:
        raise BackboneMismatch(f"the prompt's head reads masks, and {backbone.ref.name!r} has no mask token")
    if prompt.head.spec.pooler is not Pooler.LM:
        return
    wanted = prompt.head.spec.lm_digest or ""
    found = "none" if backbone.lm_head is None else backbone.lm_head.digest
    if found != wanted:
        raise BackboneMismatch(
            f"the prompt's head reads the masked-LM transform {wanted[:SHOWN_DIGITS]}, and {backbone.ref.name!r} has "
            f"{found[:SHOWN_DIGITS]}"
        )
