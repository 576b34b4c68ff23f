"""Parse: TOML and overrides to a recipe, and what is wrong with them in one sentence.

It refuses to know what the fields mean.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from prefixbank.model_store.errors import InvalidRecipe
from prefixbank.trainer.recipe.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are `section.field=value` with TOML values (bare words are strings).

    Raises:
        InvalidRecipe: unreadable, not TOML, or a field is unknown, missing or out of range.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidRecipe(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRecipe(f"{path}: found no TOML: {error}") from error
    for override in overrides:
        apply_override(table, override)
    return parse(table, str(path))


def parse(table: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a recipe given as a table; `where` begins the message of a refusal."""
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        lines = "; ".join(_sentence(dict(fault)) for fault in error.errors(include_url=False))
        raise InvalidRecipe(f"{where}: {lines}") from error


def apply_override(table: dict[str, Any], override: str) -> None:
    """Set a field of a recipe's table: `section.field=value`, with a TOML value or a bare word.

    Raises:
        InvalidRecipe: it is not of this form.
    """
    key, equals, value = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not all([*sections, name]):
        raise InvalidRecipe(f"override: found {override!r}, wanted section.field=value")
    for section in sections:
        inner = table.setdefault(section, {})
        if section in _SPLITS and isinstance(inner, str):
            inner = table[section] = {"path": inner}  # a plain string is a source's path
        if not isinstance(inner, dict):
            raise InvalidRecipe(f"override {override!r}: {section} is a value, wanted a section")
        table = inner
    table[name] = _toml_value(value.strip())


def _sentence(fault: dict[str, Any]) -> str:
    field = ".".join(_path(fault["loc"])) or "recipe"
    if fault["type"] == "missing":
        return f"{field}: found nothing, wanted a value"
    if fault["type"] == "extra_forbidden":
        return f"{field}: found an unknown field, wanted none of this name"
    wanted = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = "" if isinstance(fault["input"], dict | BaseModel) else f"found {fault['input']!r}, "
    return f"{field}: {found}wanted {wanted}"


def _path(location: Iterable[str | int]) -> list[str]:
    """Field names only: pydantic adds the branch of a union, which no recipe contains."""
    return [str(part) for part in location if not (isinstance(part, str) and _is_branch(part))]


def _is_branch(part: str) -> bool:
    """`literal['all']`, `tuple[...]` and the names of sections; fields and data sets begin in lower case."""
    return "[" in part or part in ("int", "float", "bool", "str", "constrained-float") or part.endswith("Interval")


_SPLITS = ("train", "validation", "test")


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
