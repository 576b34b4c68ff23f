"""Splits: what a run learns from, chooses on and reports on, and what was left out of it.

It refuses to know formats.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

from prefixbank.model_store.errors import InvalidData
from prefixbank.trainer.readers.examples import PropositionExample, QuestionExample
from prefixbank.trainer.readers.faults import Reading, Tolerance, settle
from prefixbank.trainer.readers.sources import examples_of, open_source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefixbank.trainer.readers.examples import Example
    from prefixbank.trainer.readers.faults import Fault
    from prefixbank.trainer.readers.sources import Opened
    from prefixbank.trainer.recipe import DataSection, Recipe, Source


@dataclass(frozen=True, slots=True)
class Splits:
    """The examples of a recipe for one data set."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    """Empty when the recipe names none: then the validation rows are reported."""
    labelling: list[Example]
    """Training rows and those carved from them: a label that only these have is one all the same."""
    files: dict[str, str]
    """What the recipe names, and the SHA-256 of what was found there."""
    skipped: dict[str, Sequence[Fault]]
    """Bad rows that were left out, by split. Carved rows are counted as training rows."""


def read_splits(recipe: Recipe, root: Path) -> Splits:
    """Read the splits of a recipe for one data set, whose paths are relative to `root`.

    Raises:
        InvalidData: a source cannot be read, has no rows, or has more bad rows than `data.tolerance`.
    """
    data = _data(recipe)
    opened = {name: open_source(source, root) for name, source in data.sources.items()}
    readings = {name: _read(recipe, data.sources[name], opened[name]) for name in opened}
    rows = {name: reading.rows for name, reading in readings.items()}
    labelling = rows["train"]
    where, seed = data.train.name, _seed(recipe)
    if "test" not in rows and data.carve_test:
        rows["train"], rows["test"] = _carve(rows["train"], data.carve_test, f"carve test {seed}", where)
    if "validation" not in rows:
        rows["train"], rows["validation"] = _carve(rows["train"], data.carve, f"carve {seed}", where)
    by_name = {data.sources[name].name: one for name, one in opened.items()}
    return Splits(
        rows["train"],
        rows["validation"],
        rows.get("test", []),
        labelling,
        files={name: by_name[name].digest() for name in sorted(by_name)},
        skipped={name: reading.skipped for name, reading in readings.items()},
    )


def read(recipe: Recipe, source: Source, root: Path) -> Reading[Example]:
    """Read one split: all its rows, then its slice, then its limit. Bad rows keep their place in the slice.

    Raises:
        InvalidData: it cannot be read, has no rows, or has more bad rows than `data.tolerance`.
    """
    return _read(recipe, source, open_source(source, root))


def _read(recipe: Recipe, source: Source, opened: Opened) -> Reading[Example]:
    examples, part = examples_of(opened, recipe, source.columns), ""
    if source.rows is not None:
        examples, part = islice(examples, *source.rows), f" in {list(source.rows)}"
    reading: Reading[Example] = settle(examples, opened.name, Tolerance(_data(recipe).tolerance), part)
    if source.limit is not None and source.limit < len(reading.rows):
        drawn = Random(f"limit {_seed(recipe)}").sample(reading.rows, source.limit)
        return reading._replace(rows=drawn)
    return reading


def _data(recipe: Recipe) -> DataSection:
    assert recipe.data is not None, "a recipe of several data sets is read part by part. This is a bug."
    return recipe.data


def _seed(recipe: Recipe) -> int:
    """What draws rows."""
    own = _data(recipe).seed
    return recipe.seed if own is None else own


def _carve(rows: list[Example], share: float, seed: str, where: str) -> tuple[list[Example], list[Example]]:
    """What is left of the training rows, and others taken from them: about as many as are asked for, because
    questions about one text and predicates of one sentence stay together."""
    count = round(share * len(rows)) if share < 1 else round(share)
    if not 0 < count < len(rows):
        raise InvalidData(f"{where}: cannot carve {count} rows from {len(rows)} training rows")
    random = Random(seed)
    groups = list(map(_group, rows))
    if None in groups:
        chosen = set(random.sample(range(len(rows)), count))
    else:
        carved = _some_groups(groups, count, random)
        chosen = {index for index, group in enumerate(groups) if group in carved}
    if len(chosen) == len(rows):
        raise InvalidData(f"{where}: cannot carve rows from {len(rows)} training rows that belong together")
    kept = [row for index, row in enumerate(rows) if index not in chosen]
    return kept, [rows[index] for index in sorted(chosen)]


def _group(row: Example) -> int | None:
    """What a row is no independent draw from; None where it stands for itself."""
    match row:
        case QuestionExample():
            return row.paragraph
        case PropositionExample():
            return row.sentence
        case _:
            return None


def _some_groups(groups: Sequence[int | None], count: int, random: Random) -> set[int | None]:
    """Groups in seeded order until they hold `count` rows."""
    sizes = Counter(groups)
    chosen: set[int | None] = set()
    held = 0
    for group in random.sample(list(sizes), len(sizes)):
        if held >= count:
            break
        chosen.add(group)
        held += sizes[group]
    return chosen
