"""Recipes: every fact a training run depends on, read from TOML once and frozen.

`sections` has the fields with their advice, `recipe` what must agree, `parse` the way from a file.
"""

from prefixbank.trainer.recipe.parse import load, parse
from prefixbank.trainer.recipe.recipe import METRICS, SENTENCE_FAMILIES, WORDLESS_FAMILIES, Recipe
from prefixbank.trainer.recipe.sections import (
    AnsweringSection,
    DataSection,
    HeadSection,
    LayerInterval,
    OptimiserSection,
    PromptSection,
    ReportSection,
    RolesSection,
    SelectionSection,
    Source,
    TaskSection,
)
from prefixbank.trainer.recipe.sweep import SearchInterval, SweepSection

__all__ = [
    "METRICS",
    "SENTENCE_FAMILIES",
    "WORDLESS_FAMILIES",
    "AnsweringSection",
    "DataSection",
    "HeadSection",
    "LayerInterval",
    "OptimiserSection",
    "PromptSection",
    "Recipe",
    "ReportSection",
    "RolesSection",
    "SearchInterval",
    "SelectionSection",
    "Source",
    "SweepSection",
    "TaskSection",
    "load",
    "parse",
]
