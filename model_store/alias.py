"""Alias records: where an alias points, and where it pointed before. Values only; no files, no locks.

The history is one list in order of time. An entry is struck out when a rollback leaves it; the alias points at the
last entry that is not struck out, so that two rollbacks go back two steps and nothing that happened is forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefixbank.model_store.complaint import first_complaint
from prefixbank.model_store.errors import NothingToRollBack, StoreCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

MAX_HISTORY = 200
"""Older entries are dropped: a rollback cannot reach further back."""

Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AliasEntry(_Record):
    """One promotion."""

    revision: Revision
    promoted: str
    """ISO 8601 time, UTC."""
    rolled_back: str | None = None
    """When a rollback struck this entry out."""


class AliasRecord(_Record):
    """`aliases/<alias>.json`."""

    revision: Revision
    history: Annotated[tuple[AliasEntry, ...], Field(min_length=1, max_length=MAX_HISTORY)]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        current = next((entry for entry in reversed(self.history) if not entry.rolled_back), None)
        if current is None or current.revision != self.revision:
            raise ValueError("revision is not that of the last history entry in force")
        return self

    @classmethod
    def parse(cls, raw: bytes, where: str) -> AliasRecord:
        """The record spelled by `raw`; raises `StoreCorrupt` naming `where`."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise StoreCorrupt(f"{where} is not an alias record: {first_complaint(error)}") from error

    def to_bytes(self) -> bytes:
        """The record as JSON."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def promoted(record: AliasRecord | None, revision: str, time: str) -> AliasRecord:
    """The record after a promotion to `revision`: the same one when the alias points there already."""
    if record is not None and record.revision == revision:
        return record
    earlier = record.history if record is not None else ()
    history = (*earlier, AliasEntry(revision=revision, promoted=time))
    return AliasRecord(revision=revision, history=history[-MAX_HISTORY:])


def rolled_back(record: AliasRecord, time: str, exists: Callable[[str], bool]) -> AliasRecord:
    """The record after a rollback to the last other revision in force that still `exists`.

    Raises:
        NothingToRollBack: there is none.
    """
    history = list(record.history)
    for index in range(len(history) - 1, -1, -1):
        entry = history[index]
        if not entry.rolled_back and entry.revision != record.revision and exists(entry.revision):
            return AliasRecord(revision=entry.revision, history=tuple(history))
        history[index] = entry if entry.rolled_back else entry.model_copy(update={"rolled_back": time})
    raise NothingToRollBack(f"no revision before {record.revision[:12]} that still exists")
