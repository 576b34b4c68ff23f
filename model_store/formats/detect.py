"""Which format a folder is of, by the names of its files and the keys in them.

It refuses to check more than that: the readers do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.errors import NotRepresentable, UnknownFormat
from prefixbank.model_store.formats import adapters, peft, ptuning_v2
from prefixbank.model_store.formats.foreign import Format
from prefixbank.model_store.formats.source_files import find_tensors, read_json, read_names

if TYPE_CHECKING:
    from pathlib import Path

CHATGLM = "transformer.prefix_encoder."
GLM = "transformer.layers.0.attention.query_key_value.weight"


def detect(folder: Path) -> Format:
    """The format of a folder.

    Raises:
        UnknownFormat: it is none that is read here; its sub-folders that are, are named.
        SourceUnreadable, SourceInvalid: its files cannot be read.
        NotRepresentable: it is a format that cannot be served.
    """
    if not folder.is_dir():
        raise UnknownFormat(f"{folder} is no folder; a source is one, downloaded if it is on the hub")
    if (folder / peft.CONFIG).exists():
        return _by_adapter_config(folder)
    if find_tensors(folder, ptuning_v2.WEIGHTS):
        return _by_keys(folder)
    below = [child.name for child in sorted(folder.iterdir()) if child.is_dir() and _looks_like_a_source(child)]
    if below:
        raise UnknownFormat(
            f"{folder} holds several sources, none of its own: name one of {', '.join(below[:8])} in it"
        )
    wanted = ", ".join((peft.CONFIG, *ptuning_v2.WEIGHTS))
    raise UnknownFormat(f"{folder} holds none of {wanted}: it is of no format that is read here")


def _looks_like_a_source(folder: Path) -> bool:
    return (folder / peft.CONFIG).exists() or find_tensors(folder, ptuning_v2.WEIGHTS) is not None


def _by_adapter_config(folder: Path) -> Format:
    """PEFT and adapters call their file the same."""
    fields = read_json(folder / peft.CONFIG)
    if "peft_type" in fields:
        return Format.PEFT
    if isinstance(fields.get("config"), dict) or find_tensors(folder, adapters.WEIGHTS):
        return Format.ADAPTERS
    raise UnknownFormat(f"{folder / peft.CONFIG} has neither PEFT's peft_type nor an adapter's config")


def _by_keys(folder: Path) -> Format:
    names = read_names(folder, ptuning_v2.WEIGHTS)
    if any(name.startswith(CHATGLM) for name in names):
        raise NotRepresentable(f"{folder} is of ChatGLM, a decoder; only encoders are served")
    if any(name.endswith(GLM) for name in names):
        return Format.GLM
    if any(name.startswith("prefix_encoder.") for name in names):
        return Format.PTUNING_V2
    raise UnknownFormat(f"{folder} holds a model without prefix_encoder.*: it has no prompt")
