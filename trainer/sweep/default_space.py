"""The space of a sweep whose recipe names none: what decides most, for each method.

It refuses to know recipes' other fields and how settings are chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.trainer.recipe import WORDLESS_FAMILIES, SearchInterval

if TYPE_CHECKING:
    from prefixbank.trainer.recipe import Recipe

    Tried = SearchInterval | tuple[Any, ...]

LENGTHS = {
    TaskFamily.TEXT_CLASSIFICATION: (8, 16, 32, 64),
    TaskFamily.MULTIPLE_CHOICE: (8, 16, 32, 64),
    TaskFamily.TOKEN_CLASSIFICATION: (16, 32, 64, 128),
    TaskFamily.QUESTION_ANSWERING: (16, 32, 64, 128),
    TaskFamily.SEMANTIC_ROLES: (16, 32, 64, 128),
}
"""Hard sequence tasks want longer prompts (Liu et al., 2022, Figure 3)."""


def default_space(recipe: Recipe) -> dict[str, Tried]:
    """Fields by dotted name to what to try: what the recipe says itself is among it."""
    own = recipe.optimiser
    if recipe.method == "full":
        rates: dict[str, Tried] = {"optimiser.backbone_rate": _rate(1e-5, 2e-4, own.backbone_rate)}
        rates["optimiser.head_rate"] = _rate(5e-5, 5e-3, own.head_rate)
        return rates
    if recipe.method == "head":
        return {"optimiser.head_rate": _rate(5e-4, 2e-1, own.head_rate)}
    return _prompt_space(recipe)


def _prompt_space(recipe: Recipe) -> dict[str, Tried]:
    prompt, own = recipe.prompt, recipe.optimiser
    starts = ("text", "random") if recipe.family in WORDLESS_FAMILIES else ("text", "labels", "random")
    rates = (2e-4, 1e-2) if prompt.parameterisation == "mlp" else (3e-3, 1e-1)
    space: dict[str, Tried] = {
        "prompt.length": tuple(sorted({*LENGTHS[recipe.family], prompt.length})),
        "prompt.init": tuple(dict.fromkeys((*starts, prompt.init))),
        "optimiser.prompt_rate": _rate(*rates, own.prompt_rate),
        "optimiser.head_rate": _rate(1e-3, 3e-2, own.head_rate),
    }
    if prompt.init == "stored":  # its length is the stored prompt's
        del space["prompt.length"], space["prompt.init"]
    return space


def _rate(low: float, high: float, own: float) -> SearchInterval:
    """An interval that holds the recipe's own rate; one of 0 moves nothing and stays out."""
    return SearchInterval(low=min(low, own or low), high=max(high, own), log=True)
