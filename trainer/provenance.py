"""When and with what something was made: it stands in artifacts, reports and sweeps. It loads without torch."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("prefixbank", "torch", "transformers", "tokenizers", "numpy")


def software() -> dict[str, str]:
    """Package name to version."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
