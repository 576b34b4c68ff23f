"""Devices by name: what `auto` means, which names mean nothing, and what this machine has."""

from __future__ import annotations

import torch

from prefixbank.model_store.errors import BackboneError


def device_named(name: str) -> torch.device:
    """The device a setting names; `auto` is a GPU if there is one. It may be another machine's.

    Raises:
        BackboneError: torch knows none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise BackboneError(f"device: found {name!r}, wanted auto, cpu, cuda, or cuda:1 and so on") from error


def check_present(device: torch.device) -> None:
    """Refuse a GPU that this machine lacks.

    Raises:
        BackboneError: how many there are.
    """
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        wanted = f"wanted one that is here: torch {torch.__version__} sees {count} GPUs"
        raise BackboneError(f"device: found {device}, {wanted}")
