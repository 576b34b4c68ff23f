"""Who may ask for what, and how many may ask at once: the two checks at the door.

Keys are kept as SHA-256 of random strings, never in the clear. It refuses to know HTTP, tasks and the engine.

A keys file:

    [[keys]]
    name = "acme-production"
    sha256 = "9f86d0...  of `printf %s "$KEY" | sha256sum`"
    tenants = ["acme"]            # ["*"] sees every tenant
"""

from __future__ import annotations

import hashlib
import hmac
import time
import tomllib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefixbank.model_store.complaint import all_complaints
from prefixbank.model_store.errors import InvalidConfig, Overloaded, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EVERY_TENANT = "*"


class Caller(BaseModel):
    """Somebody who asks, and the tenants whose tasks exist for them."""

    model_config = ConfigDict(frozen=True)

    name: str | None
    """Name of the key; None for an anonymous caller."""
    tenants: frozenset[str]

    def sees(self, tenant: str) -> bool:
        """Whether this tenant's tasks exist for the caller."""
        return EVERY_TENANT in self.tenants or tenant in self.tenants

    @property
    def sees_everything(self) -> bool:
        """Whether the caller may read what concerns all tenants, as the metrics do."""
        return EVERY_TENANT in self.tenants


NOBODY = Caller(name=None, tenants=frozenset())
EVERYBODY = Caller(name=None, tenants=frozenset({EVERY_TENANT}))


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenants: Annotated[frozenset[str], Field(min_length=1)]


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: Annotated[tuple[_Key, ...], Field(min_length=1)]


class Access:
    """Turns an Authorization header into a Caller."""

    def __init__(self, keys: tuple[_Key, ...] | None) -> None:
        self._keys = keys

    @classmethod
    def open(cls) -> Access:
        """No keys: everybody sees every task."""
        return cls(None)

    @classmethod
    def from_file(cls, file: Path) -> Access:
        """The keys of a TOML file.

        Raises:
            InvalidConfig: the file is unreadable or breaks the form above.
        """
        try:
            return cls(_KeysFile.model_validate(tomllib.loads(file.read_text(encoding="utf-8"))).keys)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidConfig(f"keys file {file}: {error}") from None
        except ValidationError as error:
            raise InvalidConfig(f"keys file {file}: {all_complaints(error)}") from None

    def identify(self, authorization: bytes | None) -> Caller:
        """The caller that the header names.

        Raises:
            Unauthorized: keys are in use, and this is none of them.
        """
        if self._keys is None:
            return EVERYBODY
        scheme, _, token = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise Unauthorized("an API key is needed: send `Authorization: Bearer KEY`")
        return self._caller(hashlib.sha256(token.strip()).hexdigest())

    def identify_or_nobody(self, authorization: bytes | None) -> Caller:
        """As `identify`, for what a stranger may ask too: a stranger sees no tenant."""
        try:
            return self.identify(authorization)
        except Unauthorized:
            return NOBODY

    def _caller(self, presented: str) -> Caller:
        found: _Key | None = None
        for key in self._keys or ():  # all of them, always: the time taken says nothing about which one matched
            if hmac.compare_digest(key.sha256, presented):
                found = key
        if found is None:
            raise Unauthorized("the API key is not known here")
        return Caller(name=found.name, tenants=found.tenants)


class Admission:
    """Bounds the requests in flight. A refusal says after how long a place has probably become free."""

    _SMOOTHING = 0.1
    """Weight of the newest request in the running mean of durations."""

    def __init__(self, max_in_flight: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._mean_s = 0.1
        self.in_flight = 0

    @contextmanager
    def permit(self) -> Iterator[None]:
        """A held place.

        Raises:
            Overloaded: every place is taken.
        """
        if self.in_flight >= self._max_in_flight:
            raise Overloaded(f"{self.in_flight} requests are in flight, the most this server takes", self._mean_s)
        self.in_flight += 1
        started = self._clock()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._mean_s += self._SMOOTHING * (self._clock() - started - self._mean_s)
