"""One module per family of tasks: rows and targets of examples, the loss, the metrics, what a report shows.

`family` says what all of them do. They refuse to know files, backbones' insides and how parameters move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefixbank.model_store.task_prompt import AnsweringSpec, TaskFamily
from prefixbank.trainer.families.answers import PUBLISHED_THRESHOLD, Answers
from prefixbank.trainer.families.choices import ChoiceAnswers
from prefixbank.trainer.families.classification import Classification
from prefixbank.trainer.families.family import Family, Item, Logits, Scores
from prefixbank.trainer.families.roles import Roles
from prefixbank.trainer.families.verbalizer import VerbalizedLabels, spelled
from prefixbank.trainer.families.words import WordLabels
from prefixbank.trainer.readers.examples import QuestionExample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.readers.examples import Example
    from prefixbank.trainer.recipe import AnsweringSection, DataSection, Recipe

__all__ = ["Family", "Item", "Logits", "Scores", "family_for"]


def family_for(recipe: Recipe, backbone: Backbone, examples: Sequence[Example]) -> Family:
    """What a recipe for one data set asks of its family.

    Args:
        examples: the training examples: they tell whether questions may have no answer.

    Raises:
        InvalidRecipe: the recipe and the backbone's vocabulary do not fit.
    """
    assert recipe.data is not None, "a recipe of several data sets has a family for each. This is a bug."
    most, metric, mistakes = recipe.max_tokens, recipe.metric, recipe.report.mistakes
    match recipe.family:
        case TaskFamily.TEXT_CLASSIFICATION:
            return _labels(recipe, recipe.data, backbone)
        case TaskFamily.TOKEN_CLASSIFICATION:
            return WordLabels(most, recipe.data.text, metric, mistakes)
        case TaskFamily.QUESTION_ANSWERING:
            return Answers(most, _answering(recipe.answering, examples), metric, mistakes)
        case TaskFamily.SEMANTIC_ROLES:
            return Roles(most, metric, recipe.roles.separator, mistakes)
        case TaskFamily.MULTIPLE_CHOICE:
            return ChoiceAnswers(most, recipe.data.text, metric, mistakes)


def _labels(recipe: Recipe, data: DataSection, backbone: Backbone) -> Family:
    most, metric, mistakes = recipe.max_tokens, recipe.metric, recipe.report.mistakes
    head = recipe.head
    if head.kind == "linear" or head.template is None:
        return Classification(most, data.text, metric, mistakes)
    names = data.labels or tuple(head.words)
    spec = spelled(head.template, {name: head.words[name] for name in names}, backbone.tokenizer)
    return VerbalizedLabels(most, names, spec, data.text, metric, mistakes)


def _answering(section: AnsweringSection, examples: Sequence[Example]) -> AnsweringSpec:
    """Settings of a task: its null threshold is there where a question may have no answer."""
    unanswerable = section.unanswerable
    if unanswerable == "auto":
        unanswerable = any(isinstance(one, QuestionExample) and not one.answers for one in examples)
    threshold = PUBLISHED_THRESHOLD if unanswerable else None
    return AnsweringSpec(null_threshold=threshold, **section.model_dump(exclude={"unanswerable"}))
