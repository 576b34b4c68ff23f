"""The space of a sweep whose recipe names none: what decides most, for each method.

It refuses to know recipes' other fields and how settings are chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.trainer.recipe import SearchInterval

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
WORDLESS = (TaskFamily.QUESTION_ANSWERING, TaskFamily.MULTIPLE_CHOICE)
"""Families without labels to begin from."""


def default_space(recipe: Recipe) -> dict[str, Tried]:
    """Fields by dotted name to what to try."""
    if recipe.method == "full":
        return {"optimiser.backbone_rate": _rate(1e-5, 2e-4), "optimiser.head_rate": _rate(5e-5, 5e-3)}
    if recipe.method == "head":
        return {"optimiser.head_rate": _rate(5e-4, 2e-1)}
    return _prompt_space(recipe)


def _prompt_space(recipe: Recipe) -> dict[str, Tried]:
    starts = ("text", "random") if recipe.family in WORDLESS else ("text", "labels", "random")
    is_mlp = recipe.prompt.parameterisation == "mlp"
    space: dict[str, Tried] = {
        "prompt.length": LENGTHS[recipe.family],
        "prompt.init": starts,
        "optimiser.prompt_rate": _rate(2e-4, 1e-2) if is_mlp else _rate(3e-3, 1e-1),
        "optimiser.head_rate": _rate(1e-3, 3e-2),
    }
    if recipe.prompt.init == "stored":  # its length is the stored prompt's
        del space["prompt.length"], space["prompt.init"]
    return space


def _rate(low: float, high: float) -> SearchInterval:
    return SearchInterval(low=low, high=high, log=True)
