"""Every way in which the fields of a manifest may contradict each other, and its error.

It refuses to know how a manifest is spelled, and the tensors.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import (
    LabelsMismatch,
    LayersMismatch,
    PoolerMismatch,
    PromptMismatch,
    SettingsMismatch,
    VerbalizerMismatch,
)
from prefixbank.model_store.task_prompt import Pooler, Preprocessing, TaskFamily, VerbalizerSpec

if TYPE_CHECKING:
    from prefixbank.model_store.manifest import Manifest

_FIXED_NUM_LABELS = {TaskFamily.QUESTION_ANSWERING: 2, TaskFamily.MULTIPLE_CHOICE: 1}
"""Start and end of a span; one score per choice. Other families take any number of labels."""
_POOLED_FAMILIES = {TaskFamily.TEXT_CLASSIFICATION, TaskFamily.MULTIPLE_CHOICE}
_SETTINGS = {
    "answering": TaskFamily.QUESTION_ANSWERING,
    "roles": TaskFamily.SEMANTIC_ROLES,
    "verbalizer": TaskFamily.TEXT_CLASSIFICATION,
}
"""Fields of the preprocessing that belong to one family."""
_VERBALIZER_POOLERS = {Pooler.NONE, Pooler.LM}


def check_agreement(manifest: Manifest) -> None:
    """Refuse fields that are each well-formed and together a lie.

    Raises:
        ManifestInvalid: the subclass that names the contradiction.
    """
    _check_labels(manifest)
    _check_layers(manifest)
    _check_prompt(manifest)
    _check_settings(manifest)
    _check_pooler(manifest)
    _check_pooled_token(manifest)
    if manifest.preprocessing.verbalizer is not None:
        _check_verbalizer(manifest, manifest.preprocessing.verbalizer)


def _check_labels(manifest: Manifest) -> None:
    labels = manifest.labels
    if len(set(labels)) != len(labels):
        [(twice, count)] = Counter(labels).most_common(1)
        raise LabelsMismatch(f"the label {twice[:80]!r} occurs {count} times")
    wanted = _FIXED_NUM_LABELS.get(manifest.family, len(labels))
    if len(labels) != wanted:
        raise LabelsMismatch(f"{manifest.family} takes {wanted} labels, not {len(labels)}")


def _check_layers(manifest: Manifest) -> None:
    layers, num_layers = manifest.layers, manifest.backbone.num_layers
    if any(low >= high for low, high in pairwise(layers)):
        raise LayersMismatch("the prompted layers are not strictly ascending")
    if layers and layers[-1] >= num_layers:
        raise LayersMismatch(f"layer {layers[-1]} is prompted; the backbone has layers 0 to {num_layers - 1}")
    if bool(layers) != bool(manifest.prefix_length):
        raise LayersMismatch(f"{len(layers)} prompted layers with a prefix of {manifest.prefix_length} tokens")


def _check_prompt(manifest: Manifest) -> None:
    if manifest.layers and manifest.shallow_length:
        raise PromptMismatch(
            f"{len(manifest.layers)} prompted layers and a shallow prompt of {manifest.shallow_length} vectors: "
            "a prompt is deep or shallow"
        )


def _check_settings(manifest: Manifest) -> None:
    for name, family in _SETTINGS.items():
        if getattr(manifest.preprocessing, name) is not None and manifest.family is not family:
            raise SettingsMismatch(f"preprocessing.{name} belongs to {family}, not to {manifest.family}")


def _check_pooler(manifest: Manifest) -> None:
    head, is_verbalizer = manifest.head, manifest.preprocessing.verbalizer is not None
    if (head.pooler is Pooler.OWN) != (head.activation is not None):
        raise PoolerMismatch(f"pooler {head.pooler.value!r} with activation {head.activation!r}")
    if (head.pooler is Pooler.LM) != (head.lm_digest is not None):
        found = "a" if head.lm_digest else "no"
        raise PoolerMismatch(f"pooler {head.pooler.value!r} with {found} digest of a transform, lm_digest")
    if head.pooler is not Pooler.NONE and manifest.family not in _POOLED_FAMILIES:
        raise PoolerMismatch(f"{manifest.family} reads every token and takes no pooler, not {head.pooler.value!r}")
    if is_verbalizer and head.pooler not in _VERBALIZER_POOLERS:
        raise PoolerMismatch(f"a verbalizer reads masks and takes no pooler but 'lm', not {head.pooler.value!r}")
    if not is_verbalizer and head.pooler is Pooler.LM:
        raise PoolerMismatch("pooler 'lm' without a verbalizer")


def _check_pooled_token(manifest: Manifest) -> None:
    if manifest.head.pools == "text":
        return
    if not manifest.shallow_length:
        raise PoolerMismatch("head.pools is 'prompt', and there is no shallow prompt")
    if manifest.family not in _POOLED_FAMILIES or manifest.preprocessing.verbalizer is not None:
        raise PoolerMismatch("head.pools is 'prompt', and the head reads more than one token")


def _check_verbalizer(manifest: Manifest, verbalizer: VerbalizerSpec) -> None:
    _check_template(manifest.preprocessing, verbalizer)
    found = {"words": len(verbalizer.words), "token_ids": len(verbalizer.token_ids)}
    for name, count in found.items():
        if count != len(manifest.labels):
            raise VerbalizerMismatch(f"verbalizer.{name} has {count} entries for {len(manifest.labels)} labels")
    if len(set(verbalizer.token_ids)) != len(verbalizer.token_ids):
        raise VerbalizerMismatch("verbalizer.token_ids: two labels have the same tokens")
    if verbalizer.num_masks >= manifest.preprocessing.max_tokens:
        raise VerbalizerMismatch(
            f"a row of {manifest.preprocessing.max_tokens} tokens cannot hold {verbalizer.num_masks} masks and a text"
        )


def _check_template(preprocessing: Preprocessing, verbalizer: VerbalizerSpec) -> None:
    wanted = ["{mask}", "{text}", "{text_pair}"] if preprocessing.pair else ["{mask}", "{text}"]
    placeholders = [piece for piece in verbalizer.pieces if piece in ("{mask}", "{text}", "{text_pair}")]
    if Counter(placeholders) != Counter(wanted):
        raise VerbalizerMismatch(f"verbalizer.template: found {_said(placeholders)}, wanted {_said(wanted)}, each once")
    literal = "".join(piece for piece in verbalizer.pieces if piece not in wanted)
    if "{" in literal or "}" in literal:
        raise VerbalizerMismatch("verbalizer.template has a brace that belongs to no placeholder")


def _said(placeholders: list[str]) -> str:
    return ", ".join(placeholders[:5]) or "no placeholder"
