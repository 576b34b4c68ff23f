"""Space: the fields that a sweep varies, the values they may take, and the recipe that some values make.

A setting is a field's dotted name and its value. It refuses to know how settings are chosen.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.errors import InvalidRecipe
from prefixbank.trainer.recipe import SearchInterval, parse
from prefixbank.trainer.recipe.write import table_of
from prefixbank.trainer.sweep.default_space import default_space

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefixbank.trainer.recipe import Recipe

SHARED = (
    "backbone",
    "dtype",
    "family",
    "sweep",
    "tasks",
    "selection.metric",
    "data.seed",
    "data.test",
    "data.carve_test",
)
"""Fields that all trials of a sweep have in common: one backbone in one arithmetic serves them all, one metric ranks
them, and the rows that are reported chose none of them."""
DRAWN_FIRST = ("data.train.limit", "data.train.rows")
"""Fields that move the rows that `data.carve_test` takes."""
DIGITS = 3
"""Significant digits of a number between two ends: more say nothing, and nobody can read them."""
MOST_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Dimension:
    """One field and what it may be: values by their place, or an interval."""

    name: str
    values: tuple[Any, ...] = ()
    """Ascending where all are numbers."""
    interval: SearchInterval | None = None

    @property
    def is_ordered(self) -> bool:
        """Whether neighbouring places are like each other."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    def value(self, found: float) -> Any:
        """The field's value at a place, or the number itself, rounded."""
        if self.interval is None:
            return self.values[int(found)]
        if self.interval.is_whole:
            return round(found)
        return min(max(_rounded(found), self.interval.low), self.interval.high)

    def place(self, value: Any) -> float:
        """The place of a value, or the nearest to it."""
        if self.interval is not None:
            low, high = self.interval.low, self.interval.high
            return self._stepped(min(max(value, low), high)) if _is_number(value) else low
        exact = next((place for place, one in enumerate(self.values) if _same(one, value)), None)
        if exact is not None:
            return exact
        if not self.is_ordered or not _is_number(value):
            return 0
        return min(range(len(self.values)), key=lambda place: abs(self.values[place] - value))

    def at(self, share: float) -> float:
        """The place below which a share of the dimension lies."""
        if self.interval is None:
            return min(int(share * len(self.values)), len(self.values) - 1)
        low, high = self.interval.low, self.interval.high
        if self.interval.log:
            return self._stepped(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
        return self._stepped(low + share * (high - low))

    def places(self) -> list[float]:
        """All of them, for a grid.

        Raises:
            InvalidRecipe: an interval without a step has no end of them.
        """
        if self.interval is None:
            return list(range(len(self.values)))
        if self.interval.step is None:
            raise InvalidRecipe(
                f"sweep.space.{self.name}: found an interval without step, wanted one or a list: a grid"
            )
        count = _steps_of(self.interval, self.interval.step) + 1
        if count > MOST_STEPS:
            raise InvalidRecipe(f"sweep.space.{self.name}: found {count} steps, wanted at most {MOST_STEPS}")
        return [self.interval.low + number * self.interval.step for number in range(count)]

    def _stepped(self, number: float) -> float:
        interval = self.interval
        assert interval is not None, "places are whole already. This is a bug."
        if interval.step is not None:
            place = round((number - interval.low) / interval.step - 1e-9)
            return interval.low + min(place, _steps_of(interval, interval.step)) * interval.step
        return round(number) if interval.is_whole else number


@dataclass(frozen=True, slots=True)
class Space:
    """Some fields of a recipe, and what they may be."""

    base: Recipe
    """What the settings change; it has no sweep section itself, and its rows are drawn whatever the seed."""
    dimensions: tuple[Dimension, ...]

    def recipe(self, settings: Mapping[str, Any]) -> Recipe:
        """The base with some settings.

        Raises:
            InvalidRecipe: they do not go together.
        """
        table = table_of(self.base)
        for name, value in settings.items():
            _set(table, name, value)
        return parse(table, "sweep.space")

    def settings(self, places: Mapping[str, float]) -> dict[str, Any]:
        """Values of places, one for each dimension."""
        return {one.name: one.value(places[one.name]) for one in self.dimensions}

    def own(self) -> dict[str, float]:
        """Places of what the base says itself, or nearest to it."""
        return {one.name: one.place(_get(self.base, one.name)) for one in self.dimensions}


def space_of(recipe: Recipe) -> Space:
    """The space of a recipe's sweep section, or the default of its method.

    Raises:
        InvalidRecipe: a name is no field, a value is none that the field takes, or trials could not share a backbone.
    """
    base = recipe.model_copy(update={"sweep": None}).drawn
    asked = recipe.sweep.space if recipe.sweep is not None and recipe.sweep.space else default_space(base)
    space = Space(base, tuple(_dimension(name, tried) for name, tried in asked.items()))
    for dimension in space.dimensions:
        _check(space, dimension)
    return space


def _dimension(name: str, tried: SearchInterval | tuple[Any, ...]) -> Dimension:
    if isinstance(tried, SearchInterval):
        return Dimension(name, interval=tried)
    unlike = tuple(value for place, value in enumerate(tried) if not any(_same(value, one) for one in tried[:place]))
    dimension = Dimension(name, unlike)
    return Dimension(name, tuple(sorted(unlike))) if dimension.is_ordered else dimension


def _check(space: Space, dimension: Dimension) -> None:
    where = f"sweep.space.{dimension.name}"
    carves = space.base.data is not None and space.base.data.test is None and space.base.data.carve_test
    shared = (*SHARED, *DRAWN_FIRST) if carves else SHARED
    if any(_overlap(dimension.name, name) for name in shared):
        raise InvalidRecipe(f"{where}: found a field that trials share, wanted none of {', '.join(shared)}")
    if dimension.name == "method" and "full" in dimension.values:
        raise InvalidRecipe(f'{where}: found "full" among others, wanted a recipe of its own: it moves the backbone')
    for value in _tried(dimension):
        try:
            space.recipe({dimension.name: value})
        except InvalidRecipe as error:
            problem = str(error).removeprefix("sweep.space: ")
            raise InvalidRecipe(f"{where}, value {json.dumps(value)}: {problem}") from error


def _overlap(one: str, other: str) -> bool:
    """Whether one field is the other, or a part of it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _tried(dimension: Dimension) -> tuple[Any, ...]:
    interval = dimension.interval
    return dimension.values if interval is None else (interval.low, interval.high)


def _get(recipe: Recipe, name: str) -> Any:
    """A field by its dotted name, as JSON; None where a section is absent."""
    found: Any = recipe.model_dump(mode="json")
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _set(table: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        inner = table.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InvalidRecipe(f"sweep.space.{name}: found a value at {section}, wanted a section")
        table = inner
    table[last] = value


def _steps_of(interval: SearchInterval, step: float) -> int:
    """How many whole steps lie between the two ends."""
    return math.floor((interval.high - interval.low) / step + 1e-9)


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
