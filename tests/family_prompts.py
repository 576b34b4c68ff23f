"""Tasks and inputs of the families that make several rows of one input: what their tests share.

It refuses to know pytest.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.address import Address
from prefixbank.model_store.task_prompt import AnsweringSpec, Pooler, Preprocessing, RolesSpec, TaskFamily
from tests.serving_cases import random_prompt
from tests.shallow_cases import shallow

if TYPE_CHECKING:
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

QUESTIONS, CHOICES, ROLES = TaskFamily.QUESTION_ANSWERING, TaskFamily.MULTIPLE_CHOICE, TaskFamily.SEMANTIC_ROLES
ROLE_LABELS = ("O", "B-V", "B-A0", "I-A0", "B-A1", "I-A1", "B-C-A1", "B-R-A0")
WINDOW = 40
"""Longest row of the question tasks: a text of a few sentences is several windows."""


def family_prompt(
    backbone: Backbone, family: TaskFamily, length: int, *, seed: int, pooler: Pooler = Pooler.NONE, **prep: Any
) -> TaskPrompt:
    """A prompt of one of the three families, whose every number differs from any other seed's."""
    labels = {QUESTIONS: ("start", "end"), CHOICES: ("score",), ROLES: ROLE_LABELS}[family]
    prompt = random_prompt(backbone, length, seed=seed, pooler=pooler, num_labels=len(labels))
    settings = {"max_tokens": WINDOW if family is QUESTIONS else 96, "pair": family is not ROLES, **prep}
    return dataclasses.replace(prompt, family=family, labels=labels, preprocessing=Preprocessing(**settings))


def family_tasks(backbone: Backbone) -> dict[Address, TaskPrompt]:
    """Nine tasks of three families, deep and shallow: settings given and left out, all poolers, lengths that hurt."""
    plain, words = AnsweringSpec(stride=8, num_best=5), RolesSpec(separator="|")
    strict = AnsweringSpec(stride=4, max_answer_tokens=6, null_threshold=0.5)
    backbones = Pooler.BACKBONE if backbone.has_pooler else Pooler.NONE
    tasks = {
        "squad": family_prompt(backbone, QUESTIONS, 17, seed=31, answering=plain),
        "squad2": family_prompt(backbone, QUESTIONS, 5, seed=32, answering=strict),
        "copa": family_prompt(backbone, CHOICES, 16, seed=33, pooler=backbones),
        "stories": family_prompt(backbone, CHOICES, 0, seed=34, pooler=Pooler.OWN),
        "srl": family_prompt(backbone, ROLES, 33, seed=35),
        "frames": family_prompt(backbone, ROLES, 1, seed=36, roles=words, add_prefix_space=True),
        "squad-shallow": shallow(family_prompt(backbone, QUESTIONS, 0, seed=37), 7),
        "copa-shallow": shallow(family_prompt(backbone, CHOICES, 0, seed=38, pooler=Pooler.OWN), 16, offset=0),
        "srl-shallow": shallow(family_prompt(backbone, ROLES, 0, seed=39), 5),
    }
    return {Address("families", name): prompt for name, prompt in tasks.items()}


def family_input(prompt: TaskPrompt, text: str) -> object:
    """The input that a text becomes for the prompt's family; the text itself for the families of single texts."""
    words = [*text.split(), *(["nobody", "knows", "why"] if len(text.split()) < 4 else [])]
    if prompt.family is QUESTIONS:
        return {"question": f"who is {words[0]}?", "context": " ".join(words)}
    if prompt.family is CHOICES:
        choices = [" ".join(words[:6]), " ".join(words[::-1][:9]), words[-1]]
        return {"premise": " ".join(words[:12]), "choices": choices, "question": "cause"}
    if prompt.family is ROLES:
        return {"words": words[:24], "predicates": sorted({0, len(words[:24]) // 2})}
    return text


def same(found: Any, wanted: Any) -> bool:
    """Equal, but for rounding."""
    if isinstance(found, float):
        return abs(found - wanted) <= 1e-5
    if isinstance(found, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(found, dict):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in found)
    return bool(found == wanted)
