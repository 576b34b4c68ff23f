"""Writing: a recipe as a TOML file that reads back equal, wherever the file lies.

It refuses to know what the fields mean.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from prefixbank.model_store.durable import replace_file
from prefixbank.trainer.recipe.parse import parse

if TYPE_CHECKING:
    from prefixbank.trainer.recipe.recipe import Recipe

PATHS = ("path", "words")
"""Fields of a source that are relative to the recipe's folder."""


def table_of(recipe: Recipe) -> dict[str, Any]:
    """The fields that were set, as a TOML table; parsed, it is the recipe again."""
    return recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)


def moved(recipe: Recipe, root: Path, folder: Path) -> Recipe:
    """The recipe with its paths, which are relative to `root`, relative to `folder`."""
    table = table_of(recipe)
    for source in _sources(table):
        for name in PATHS:
            if name in source:
                source[name] = _relative(source[name], root, folder)
    if "start" in table.get("prompt", {}):
        table["prompt"]["start"] = _relative(table["prompt"]["start"], root, folder)
    return parse(table)


def write(recipe: Recipe, path: Path, comment: str = "") -> None:
    """Put a recipe's TOML file in place in one step, below a comment of one or more lines."""
    lines = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    replace_file(path, [f"{lines}{tomli_w.dumps(_short(table_of(recipe)))}".encode()], staging=path.parent)


def _sources(table: dict[str, Any]) -> list[dict[str, Any]]:
    sections = [table["data"]] if "data" in table else [task["data"] for task in table["tasks"].values()]
    return [section[split] for section in sections for split in ("train", "validation", "test") if split in section]


def _relative(path: str, root: Path, folder: Path) -> str:
    return path if Path(path).is_absolute() else os.path.relpath((root / path).resolve(), folder.resolve())


def _short(table: dict[str, Any]) -> dict[str, Any]:
    """Sources that are a path and nothing else as people write them; tables after values, as TOML wants them."""
    if set(table) == {"path"}:
        return table
    found = {name: _short(value) if isinstance(value, dict) else value for name, value in table.items()}
    return {
        name: value["path"] if isinstance(value, dict) and set(value) == {"path"} else value
        for name, value in found.items()
    }
