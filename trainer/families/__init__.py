"""One module per family of tasks: rows and targets of examples, the loss, the metrics, what a report shows.

`family` says what all of them do. They refuse to know files, backbones' insides and how parameters move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.errors import UnsupportedFamily
from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.trainer.families.classification import Classification
from prefixbank.trainer.families.family import Family, Item, Scores
from prefixbank.trainer.families.words import WordLabels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.readers.examples import Example
    from prefixbank.trainer.recipe import Recipe

__all__ = ["Family", "Item", "Scores", "family_for"]


def family_for(recipe: Recipe, backbone: Backbone, examples: Sequence[Example]) -> Family:
    """What a recipe for one data set asks of its family.

    Args:
        examples: the training examples: they tell whether questions may have no answer.

    Raises:
        InvalidRecipe: the recipe and the backbone's vocabulary do not fit.
    """
    assert recipe.data is not None, "a recipe of several data sets has a family for each. This is a bug."
    if recipe.family == TaskFamily.TEXT_CLASSIFICATION:
        return Classification(recipe.max_tokens, recipe.data.text, recipe.metric)
    if recipe.family == TaskFamily.TOKEN_CLASSIFICATION:
        return WordLabels(recipe.max_tokens, recipe.data.text, recipe.metric)
    raise UnsupportedFamily(f"family: {recipe.family} is not trained yet")
