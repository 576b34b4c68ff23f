"""The store's generation: a counter that tells followers that something changed. It refuses to know what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store import durable
from prefixbank.model_store.errors import StoreCorrupt
from prefixbank.model_store.plain_file import read_small

if TYPE_CHECKING:
    from prefixbank.model_store.layout import StoreLayout

_MAX_DIGITS = 18


def current(layout: StoreLayout) -> int:
    """The generation; 0 before the first change. Raises `StoreCorrupt`."""
    try:
        raw = read_small(layout.generation)
    except FileNotFoundError:
        return 0
    digits = raw.strip()
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise StoreCorrupt(f"{layout.generation} holds {raw[:40]!r}, not a number")
    return int(digits)


def bump(layout: StoreLayout) -> None:
    """Call it after a change can be seen: whoever sees the new number sees the change."""
    with layout.lock_generation():
        line = f"{current(layout) + 1}\n".encode()
        durable.replace_file(layout.generation, [line], staging=layout.staging)
