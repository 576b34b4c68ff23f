"""What a benchmark has found so far, kept in a file after each step: should it be ended, that much is left."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path


class HasJson(Protocol):
    """A report."""

    def as_json(self) -> dict[str, Any]: ...


def keep(report: HasJson, file: Path | None) -> None:
    """Write what there is, where a file was asked for."""
    if file:
        file.write_text(json.dumps(report.as_json(), indent=1))
