"""Names: the grammar of tenants, tasks, aliases and revisions. It refuses to know folders.

A name that passed here is safe as a folder name, in a log line and as a metric label.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from prefixbank.model_store.errors import InvalidName

LIVE = "live"
"""The alias that is served when none is named."""

MAX_NAME_CHARS = 64
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{64}", re.ASCII)
_REVISION_PREFIX = re.compile(r"[0-9a-f]{4,64}", re.ASCII)


class _Names(NamedTuple):
    tenant: str
    name: str


class Address(_Names):
    """A task's address `tenant/name`. Holding one means that both names are within the grammar."""

    __slots__ = ()

    def __new__(cls, tenant: str, name: str) -> Self:
        """Raises `InvalidName` for a name outside the grammar."""
        return super().__new__(cls, check_name("tenant", tenant), check_name("task", name))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The address spelled `tenant/name`; raises `InvalidName`."""
        tenant, slash, name = text.partition("/")
        if not slash:
            raise InvalidName(f"{text[:MAX_NAME_CHARS]!r} is not of the form tenant/task")
        return cls(tenant, name)

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"


def is_name(text: str) -> bool:
    """Whether `text` is a name of the grammar."""
    return _NAME.fullmatch(text) is not None


def check_name(what: str, text: str) -> str:
    """`text`, when it is a name; raises `InvalidName` and calls it a `what` otherwise."""
    if not is_name(text):
        raise InvalidName(
            f"the {what} name {text[: MAX_NAME_CHARS + 1]!r} is not 1 to {MAX_NAME_CHARS} of a-z 0-9 . _ - "
            "starting with a letter or digit"
        )
    return text


def is_revision(text: str) -> bool:
    """Whether `text` is a whole revision: 64 lower-case hexadecimal digits."""
    return _REVISION.fullmatch(text) is not None


def is_revision_prefix(text: str) -> bool:
    """Whether `text` may stand for a revision at the command line: its first 4 or more digits."""
    return _REVISION_PREFIX.fullmatch(text) is not None
