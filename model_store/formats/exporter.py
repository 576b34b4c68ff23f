"""From a TaskPrompt to a folder of another tool, written whole or not at all.

It refuses to know stores and the layouts of the formats.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from typing import TYPE_CHECKING

from prefixbank.model_store import durable
from prefixbank.model_store.errors import NotRepresentable
from prefixbank.model_store.formats import peft_export, ptuning_v2_export
from prefixbank.model_store.formats.foreign import Format

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from prefixbank.model_store.task_prompt import TaskPrompt

_WRITERS = {Format.PEFT: peft_export.files_of, Format.PTUNING_V2: ptuning_v2_export.files_of}


def export_prompt(prompt: TaskPrompt, target: Format, folder: Path) -> None:
    """Write `prompt` into `folder`, which is absent or empty.

    Raises:
        NotRepresentable: the other tool would answer otherwise.
        FileExistsError: there is something in the folder.
    """
    if target not in _WRITERS:
        raise NotRepresentable(f"no prompt is written as {target}; known: {', '.join(_WRITERS)}")
    _write(_WRITERS[target](prompt), folder)


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    """Aside first, then renamed to its place: a crash or a full disk leaves no half of it there."""
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or os.listdir(folder)):
        raise FileExistsError(
            errno.EEXIST, "a prompt is exported into a new or empty folder, and this is neither", str(folder)
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside.mkdir()
    try:
        for name, content in files.items():
            durable.write_file(aside / name, [content])
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
