"""Checkpoint: the state of an unfinished run as one safetensors file, put in place in one step.

Randomness is a function of seed and step, so a checkpoint holds no generator. Nothing in it is unpickled.
It refuses to know what the tensors mean and when to write them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors
import safetensors.torch
from safetensors import SafetensorError

from prefixbank.model_store.durable import clear_staging, replace_file, sync_folder
from prefixbank.model_store.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

FILE = "checkpoint.safetensors"
_KEY = "prefixbank"


class Checkpoint(NamedTuple):
    """What `save` was given."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """JSON values; floats come back bit for bit."""


def save(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the folder's checkpoint; a crash at any moment leaves the old or the new one whole.

    Raises:
        TrainingError: it cannot be written; an older one is still whole.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(whole, {_KEY: json.dumps(state)})
    try:
        replace_file(folder / FILE, [content], staging=folder)
        sync_folder(folder)
    except OSError as error:
        left = "--resume continues from the one before" if is_in(folder) else "there is none before it"
        problem = f"found no way to write {len(content):,} bytes ({error.strerror})"
        raise TrainingError(f"{folder / FILE}: {problem}, wanted a checkpoint: {left}") from error


def is_in(folder: Path) -> bool:
    """Whether the folder holds a checkpoint."""
    return (folder / FILE).exists()


def load(folder: Path) -> Checkpoint:
    """Read the folder's checkpoint to go on from it; what a killed process left half written beside it goes.

    Raises:
        TrainingError: there is none, or it is not one of ours.
    """
    clear_staging(folder)
    return _read(folder, with_tensors=True)


def state_in(folder: Path) -> dict[str, Any]:
    """The state alone, of the folder's checkpoint; raises as `load` does."""
    return _read(folder, with_tensors=False).state


def _read(folder: Path, *, with_tensors: bool) -> Checkpoint:
    path = folder / FILE
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys() if with_tensors else ()
            tensors = {name: file.get_tensor(name) for name in names}
            return Checkpoint(tensors, json.loads((file.metadata() or {})[_KEY]))
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: found no checkpoint, wanted one to resume from") from error
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path}: found no checkpoint of this program: {error}") from error


def remove(folder: Path) -> None:
    """Remove the checkpoint of a finished run, and those that a killed process did not finish."""
    (folder / FILE).unlink(missing_ok=True)
    clear_staging(folder)
