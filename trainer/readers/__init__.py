"""Readers: files to examples; a bad row is named by file and line, and left out up to a share of the rows.

This module reads what a recipe names; `squad`, `propositions` and `choices` read their formats by path. A reader
refuses to know tokens, label numbers and backbones.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import InvalidData
from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.trainer.readers.columns import blocks_of
from prefixbank.trainer.readers.examples import Example, TextExample, WordsExample
from prefixbank.trainer.readers.faults import Fault, Reading, Tolerance, built, settle
from prefixbank.trainer.readers.tables import FORMATS, table_rows
from prefixbank.trainer.readers.tags import iob2
from prefixbank.trainer.readers.texts import text_example
from prefixbank.trainer.readers.words import column_words, listed_words, of_equal_width

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefixbank.trainer.recipe import DataSection, Recipe, Source

__all__ = [
    "Example",
    "Reading",
    "Splits",
    "TextExample",
    "WordsExample",
    "iob2",
    "read",
    "read_splits",
]


@dataclass(frozen=True, slots=True)
class Splits:
    """What a run learns from, chooses on and reports on."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    """Empty when the recipe names none: then the validation rows are reported."""
    files: dict[str, str]
    """What the recipe names, and the SHA-256 of what was found there."""
    skipped: dict[str, list[str]]
    """Bad rows that were left out, by split: where, and what was wrong. Carved rows are counted as training rows."""


def read_splits(recipe: Recipe, root: Path) -> Splits:
    """Read the splits of a recipe for one data set, whose paths are relative to `root`.

    Raises:
        InvalidData: a file cannot be read, has no rows, or has more bad rows than `data.tolerance`.
    """
    data = _data(recipe)
    readings = {name: read(recipe, source, root) for name, source in data.sources.items()}
    rows = {name: reading.rows for name, reading in readings.items()}
    if "validation" not in rows:
        rows["train"], rows["validation"] = _carve(rows["train"], data.carve, recipe.seed, where=data.train.name)
    return Splits(
        rows["train"],
        rows["validation"],
        rows.get("test", []),
        files=_digests(data, root),
        skipped={name: [str(fault) for fault in reading.skipped] for name, reading in readings.items()},
    )


def read(recipe: Recipe, source: Source, root: Path) -> Reading[Example]:
    """Read one split: all rows of the file, then its slice, then its limit. Bad rows keep their place in the slice.

    Raises:
        InvalidData: the file cannot be read, has no rows, or has more bad rows than `data.tolerance`.
    """
    path = root / source.name
    examples, part = _examples(path, recipe), ""
    if source.rows is not None:
        examples, part = islice(examples, *source.rows), f" in {list(source.rows)}"
    reading: Reading[Example] = settle(examples, path, Tolerance(_data(recipe).tolerance), part)
    if source.limit is not None and source.limit < len(reading.rows):
        drawn = random.Random(f"limit {recipe.seed}").sample(reading.rows, source.limit)
        return reading._replace(rows=drawn)
    return reading


def _digests(data: DataSection, root: Path) -> dict[str, str]:
    """SHA-256 of every file the recipe names, by its path in the recipe."""
    paths = sorted({source.name for source in data.sources.values()})
    return {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in paths}


def _examples(path: Path, recipe: Recipe) -> Iterator[Example | Fault]:
    data = _data(recipe)
    form = FORMATS.get(path.suffix, "conll") if data.format == "auto" else data.format
    if recipe.family == TaskFamily.TOKEN_CLASSIFICATION:
        return _sentences(path, data, form)
    if form == "conll":
        raise InvalidData(f"{path}: would be read as CoNLL columns, wanted data.format tsv, jsonl or json for texts")
    rows = table_rows(path, form, (*data.text, data.label))
    return built(rows, lambda row: text_example(row, data.text, data.label, data.rename, data.labels))


def _data(recipe: Recipe) -> DataSection:
    assert recipe.data is not None, "a recipe of several data sets is read part by part. This is a bug."
    return recipe.data


def _sentences(path: Path, data: DataSection, form: str) -> Iterator[Example | Fault]:
    if form == "conll":
        blocks = of_equal_width(blocks_of(path))
        return built(blocks, lambda block: column_words(block, data))
    rows = table_rows(path, form, (*data.text, data.label))
    return built(rows, lambda row: listed_words(row, data))


def _carve(rows: list[Example], share: float, seed: int, where: str) -> tuple[list[Example], list[Example]]:
    count = round(share * len(rows)) if share < 1 else round(share)
    if not 0 < count < len(rows):
        raise InvalidData(f"{where}: cannot carve {count} validation rows from {len(rows)} training rows")
    chosen = set(random.Random(f"carve {seed}").sample(range(len(rows)), count))
    kept = [row for index, row in enumerate(rows) if index not in chosen]
    return kept, [rows[index] for index in sorted(chosen)]
