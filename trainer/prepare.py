"""Prepare: the data sets of a recipe read, labelled and tokenised, exactly as the server will tokenise requests.

It refuses to know parameters, steps and metrics.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefixbank.model_store import artifact
from prefixbank.model_store.errors import TrainingError
from prefixbank.model_store.manifest import MAX_LABEL_CHARS
from prefixbank.model_store.task_prompt import MAX_LABELS
from prefixbank.trainer.families import family_for
from prefixbank.trainer.readers import read_splits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import Preprocessing
    from prefixbank.trainer.families import Family, Item
    from prefixbank.trainer.readers.faults import Fault
    from prefixbank.trainer.recipe import Recipe

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class PreparedPart:
    """One data set, ready for the backbone."""

    family: Family
    labels: tuple[str, ...]
    prep: Preprocessing
    items: dict[str, list[Item]]
    """By split; those of "train" are units of training, the others whole examples."""
    files: dict[str, str]
    """What the recipe names, and the SHA-256 of what was found there."""
    skipped: dict[str, Sequence[Fault]]
    """Bad rows that were left out, by split."""

    @property
    def reported(self) -> str:
        return "test" if self.items["test"] else "validation"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The data sets of a recipe, by name; a single one is called ""."""

    parts: dict[str, PreparedPart]
    fingerprint: str
    """Of the backbone that they are for."""

    def identity(self, recipe: Recipe, root: Path) -> str:
        """Digest of recipe, data, backbone, and the artifact that the prompt begins from.

        Raises:
            ArtifactError: there is none where the recipe names one.
        """
        files = {name: part.files for name, part in self.parts.items()}
        facts = [recipe.model_dump(mode="json"), files, self.fingerprint]
        facts += [] if recipe.start is None else [artifact.digest(root / recipe.start)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def prepare(recipe: Recipe, root: Path, backbone: Backbone) -> Prepared:
    """Read and tokenise all splits of all data sets.

    Raises:
        InvalidData: a file cannot be read, or has too many bad rows.
        TrainingError: there is nothing to tell apart, or rows do not fit the backbone.
    """
    parts = {name: _prepare(part, root, backbone) for name, part in recipe.parts.items()}
    return Prepared(parts, backbone.ref.fingerprint)


def _prepare(recipe: Recipe, root: Path, backbone: Backbone) -> PreparedPart:
    assert recipe.data is not None, "a part without data. This is a bug."
    check_length(recipe, backbone)
    splits = read_splits(recipe, root)
    family = family_for(recipe, backbone, splits.train)
    labels = _storable(family.labels(splits.labelling, recipe.data.labels))
    prep = family.preprocessing(labels)
    items = {
        name: family.items(getattr(splits, name), labels, backbone.tokenizer, prep, training=name == "train")
        for name in SPLITS
    }
    _tell_what_is_cut(items, recipe.max_tokens)
    return PreparedPart(family, labels, prep, items, splits.files, splits.skipped)


def _storable(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse before training what no artifact could hold."""
    if len(labels) > MAX_LABELS:
        raise TrainingError(f"data.labels: found {len(labels):,} labels, wanted at most {MAX_LABELS:,}")
    long = next((label for label in labels if len(label) > MAX_LABEL_CHARS), None)
    if long is not None:
        found = f"a label of {len(long):,} characters, {long[:40]!r}..."
        raise TrainingError(f"data.labels: found {found}, wanted at most {MAX_LABEL_CHARS:,}")
    return labels


def _tell_what_is_cut(items: Mapping[str, Sequence[Item]], max_tokens: int) -> None:
    for split, found in items.items():
        cut = sum(item.truncated for item in found)
        if cut:
            logger.warning(
                "%s: cut %s of %s rows, which are longer than max_tokens = %s", split, cut, len(found), max_tokens
            )


def check_length(recipe: Recipe, backbone: Backbone) -> None:
    """Refuse rows or prompts longer than the backbone reads.

    Raises:
        TrainingError: they are.
    """
    most = backbone.max_tokens(recipe.position_offset)
    if recipe.max_tokens > most:
        raise TrainingError(f"max_tokens: found {recipe.max_tokens}, wanted at most {most} on this backbone")
    if recipe.method == "shallow" and recipe.prompt.length > backbone.max_positions:
        found = recipe.prompt.length
        raise TrainingError(f"prompt.length: found {found}, wanted at most {backbone.max_positions} on this backbone")
