"""What a recipe must say for a verbalizer head: a template with its places, and a word for every label.

It refuses to know tokens: whether a word is one that the backbone has is found out where the backbone is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefixbank.model_store.task_prompt import TaskFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.trainer.recipe.recipe import Recipe

_PLACE = re.compile(r"\{([^{}]*)\}")


def check_verbalizer(recipe: Recipe) -> Iterator[str]:
    """What is wrong with the head of a recipe for one data set, as the wanted part of a refusal."""
    head = recipe.head
    if head.kind == "linear":
        if head.template is not None or head.words:
            yield 'head.kind = "verbalizer" beside head.template and head.words'
        return
    if recipe.family != TaskFamily.TEXT_CLASSIFICATION:
        yield f'head.kind "linear" for {recipe.family}: a verbalizer\'s mask stands for the label of a text'
    if head.pooler != "auto":
        yield f'head.pooler "auto" for a verbalizer, which reads masks, not "{head.pooler}"'
    if head.template is None:
        yield 'head.template for a verbalizer, such as "{text} It was {mask}."'
    elif recipe.data is not None:
        yield from _template_problems(head.template, pair=len(recipe.data.text) == 2)
    yield from _word_problems(recipe)


def _template_problems(template: str, *, pair: bool) -> Iterator[str]:
    wanted = ["mask", "text", "text_pair"] if pair else ["mask", "text"]
    if sorted(_PLACE.findall(template)) != wanted:
        places = ", ".join(f"{{{name}}}" for name in wanted)
        yield f'head.template with each of {places} once and no other place, not "{template}"'


def _word_problems(recipe: Recipe) -> Iterator[str]:
    words, labels = recipe.head.words, recipe.data.labels if recipe.data is not None else None
    if len(words) < 2:
        yield f"head.words with a word for each label, two or more, not {words}"
    if labels is not None and set(words) != set(labels):
        odd = sorted(set(words) ^ set(labels))
        yield f"head.words for exactly the labels {', '.join(labels)}: {', '.join(odd)} stand in one of them only"
    blank = sorted(label for label, word in words.items() if not word.strip())
    if blank:
        yield f"head.words that are not empty, not so for {', '.join(blank)}"
