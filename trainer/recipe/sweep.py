"""The sweep section: which settings are tried, how many of them, and how they are chosen.

It refuses to know what the fields mean: values of the space are checked where the sweep begins, against the recipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from prefixbank.trainer.recipe.sections import Count, Section

if TYPE_CHECKING:
    from collections.abc import Iterator


class SearchInterval(Section):
    """Numbers from `low` to `high`, both included."""

    low: int | float
    """The least that is tried."""
    high: int | float
    """The most that is tried."""
    log: bool = False
    """Even over orders of magnitude. Right for every rate."""
    step: Annotated[int | float, Field(gt=0)] | None = None
    """Only every so many; a grid needs it. Not beside `log`: list the values instead."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low < high, not {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low above 0 beside log, not {self.low}")
        if self.log and self.step is not None:
            raise ValueError("step or log, not both")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))


def _kind(found: Any) -> str:
    """Named as the parser of recipes leaves out of messages."""
    return "SearchInterval" if isinstance(found, dict | SearchInterval) else "tuple[]"


Tried = Annotated[
    Annotated[SearchInterval, Tag("SearchInterval")] | Annotated[tuple[Any, ...], Tag("tuple[]")],
    Discriminator(_kind),
]


class SweepSection(Section):
    """`prefixbank sweep`: what is tried. `prefixbank train` leaves it aside."""

    space: dict[str, Tried] = Field(default_factory=dict)
    """Field of the recipe by its dotted name to the values to try, `"prompt.length" = [8, 32]`, or to an interval,
    `"optimiser.prompt_rate" = { low = 3e-3, high = 1e-1, log = true }`. A value may be a table, such as layers
    `{ from = "top", count = 3 }` or a whole `head`. Empty: length, rates and start of the recipe's method."""
    trials: Count = 16
    """Settings to try. With --budget and no --trials, time decides instead."""
    together: Count = 8
    """Trials that share every step. More of them use a GPU better and hold more memory."""
    seeds: Count = 3
    """Runs of the best settings, a seed each: the result is their mean and deviation."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are chosen: by what has done well so far (Optuna's TPE; the first ones spread evenly), by chance, or
    all combinations in turn."""
    pruner: Literal["median", "halving", "none"] = "median"
    """Which trials end early, by their validation rows: those below the median of all that came as far, after a quarter
    of the epochs; or the lower half after an eighth, a quarter and a half of them, cheaper and rasher."""

    @field_validator("space", mode="before")
    @classmethod
    def _by_dotted_name(cls, found: Any) -> Any:
        """TOML makes tables of dotted names without quotes."""
        if not isinstance(found, dict):
            return found
        space = dict(_flat(found))
        odd = next((name for name, tried in space.items() if not _is_tried(tried)), None)
        if odd is not None:
            raise ValueError(f"a list of values or {{ low, high }} for {odd}, not {space[odd]!r}")
        return space


def _is_tried(found: Any) -> bool:
    return isinstance(found, dict | SearchInterval) or (isinstance(found, list | tuple) and bool(found))


def _flat(table: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, found in table.items():
        if isinstance(found, dict) and not set(found) & set(SearchInterval.model_fields):
            yield from _flat(found, f"{above}{name}.")
        else:
            yield f"{above}{name}", found
