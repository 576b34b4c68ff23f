"""JSON as an artifact may hold it: one reading only, finite, shallow, and sayable in UTF-8.

It refuses to know what the JSON means. Python's own reader accepts NaN, duplicate keys and any depth.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, NoReturn

from prefixbank.model_store.errors import DuplicateKey, ManifestUnreadable, NestedTooDeep

MAX_DEPTH = 32


def parse(raw: bytes, what: str) -> Any:
    """The value of `raw`; `what` names it in errors.

    Raises:
        ManifestUnreadable: not UTF-8, not JSON, NaN or infinity in it, or text that UTF-8 cannot say.
        DuplicateKey: an object names a key twice.
        NestedTooDeep: more than `MAX_DEPTH` levels.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise NestedTooDeep(f"{what} nests deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors, as is an int of 5,000 digits
        raise ManifestUnreadable(f"{what} is not UTF-8 JSON: {error}") from error
    _check_depth_and_text(value, what)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        [(twice, count)] = Counter(name for name, _ in pairs).most_common(1)
        raise DuplicateKey(f"an object names the key {twice[:80]!r} {count} times")
    return members


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is no JSON number")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"the number {literal[:40]} is not finite")
    return number


def _check_depth_and_text(value: Any, what: str) -> None:
    """Walk without recursion: the value is hostile until this returns."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        level = [child for item in level for child in _children(item, what)]
    raise NestedTooDeep(f"{what} nests deeper than {MAX_DEPTH} levels")


def _children(item: Any, what: str) -> list[Any]:
    if isinstance(item, str):
        _check_text(item, what)
    elif isinstance(item, dict):
        return [*item.keys(), *item.values()]
    elif isinstance(item, list):
        return item
    return []


def _check_text(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ManifestUnreadable(f"{what} holds text that UTF-8 cannot say (a lone surrogate)") from error
