"""Needs: what a recipe asks for that this machine has not, in one line.

It looks on the disk first and asks the network once. It refuses to know rows and scores, and downloads nothing.
"""

from __future__ import annotations

import importlib.util
import urllib.request
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prefixbank.model_store.backbones.sources import locate
from prefixbank.model_store.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.trainer.recipe import Recipe, Source

ANSWER_WITHIN_S = 5.0
NOWHERE = "not found locally and no network"


class Hub(Protocol):
    """Hugging Face's hub as this machine sees it."""

    @property
    def answers(self) -> bool:
        """It can be asked for files."""

    @property
    def reads_data_sets(self) -> bool:
        """The library that loads data sets is installed."""

    def keeps_backbone(self, name: str) -> bool:
        """A backbone's files were fetched before."""

    def keeps_data_set(self, name: str) -> bool:
        """A data set was fetched before."""


class RealHub:
    """The caches of huggingface_hub and datasets, and the hub itself."""

    @cached_property
    def answers(self) -> bool:
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return False
        question = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(question, timeout=ANSWER_WITHIN_S):
                return True
        except OSError:  # no name, no route, no answer, or a refusal
            return False

    @property
    def reads_data_sets(self) -> bool:
        return importlib.util.find_spec("datasets") is not None

    def keeps_backbone(self, name: str) -> bool:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        name, _, revision = name.partition("@")
        try:
            folder = snapshot_download(name, revision=revision or None, local_files_only=True)
        except (HFValidationError, LocalEntryNotFoundError):
            return False
        return any(Path(folder).glob("*.safetensors"))

    def keeps_data_set(self, name: str) -> bool:
        from huggingface_hub import constants

        name = name.partition("@")[0]
        prepared = Path(constants.HF_HOME) / "datasets" / name.replace("/", "___")
        fetched = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
        return prepared.is_dir() or fetched.is_dir()


def lacking(recipe: Recipe, root: Path, hub: Hub) -> str | None:
    """What a recipe with paths relative to `root` would not find; None when it can be tried."""
    return next(_lacking(recipe, root, hub), None)


def _lacking(recipe: Recipe, root: Path, hub: Hub) -> Iterator[str]:
    if not _is_at_hand(recipe.backbone, hub):
        yield f"needs {recipe.backbone}: {NOWHERE}"
    assert recipe.data is not None, "the paper's recipes have one data set each"
    for source in recipe.data.sources.values():
        yield from _lacking_source(source, root, hub)


def _is_at_hand(backbone: str, hub: Hub) -> bool:
    if "/" in backbone and not Path(backbone).expanduser().is_dir():
        return hub.keeps_backbone(backbone) or hub.answers
    try:
        return locate(backbone).is_dir()
    except BackboneError:
        return False


def _lacking_source(source: Source, root: Path, hub: Hub) -> Iterator[str]:
    if source.hub is None:
        if not (root / source.name).is_file():
            yield f"needs {source.name}: no such file in {root}"
    elif Path(source.hub).is_dir():
        return
    elif not (hub.keeps_data_set(source.hub) or hub.answers):
        yield f"needs {source.hub}: {NOWHERE}"
    elif not hub.reads_data_sets:
        yield f"needs the datasets library for {source.hub}: pip install prefixbank[hub]"
