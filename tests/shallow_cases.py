"""Tasks with shallow prompts and with words at masks: what their tests share. It refuses to know pytest."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from prefixbank.model_store.address import Address
from prefixbank.model_store.task_prompt import HeadSpec, Pooler, Preprocessing, TaskFamily
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.model_store.tasks.verbalizer import verbalizer_spec
from tests.serving_cases import random_prompt

if TYPE_CHECKING:
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import Head, TaskPrompt

TEMPLATE, WORDS = "{text} It was {mask}.", ("dull", "New York", "joy")
"""One of the words has two tokens, so that a row has two masks."""


def shallow(prompt: TaskPrompt, length: int, offset: int | None = None, **spec: Any) -> TaskPrompt:
    """The prompt with vectors before the text in place of its prefix; `spec` changes its head's."""
    random = torch.Generator().manual_seed(length)
    ref = prompt.backbone
    return dataclasses.replace(
        prompt,
        layers=(),
        kv_N2HPD=prompt.kv_N2HPD[:0, :, :, :0],
        position_offset=length if offset is None else offset,
        shallow_PM=torch.randn(length, ref.width, generator=random),
        head=dataclasses.replace(prompt.head, spec=prompt.head.spec.model_copy(update=spec)),
    )


def verbalized(backbone: Backbone, prompt: TaskPrompt, pooler: Pooler) -> TaskPrompt:
    """The prompt with a head of words at masks."""
    spec = verbalizer_spec(TextTokenizer(backbone.tokenizer), TEMPLATE, WORDS)
    rows = len(spec.outputs)
    head: Head = random_prompt(backbone, 0, seed=rows, num_labels=rows).head
    digest = backbone.lm_head.digest if backbone.lm_head and pooler is Pooler.LM else None
    return dataclasses.replace(
        prompt,
        labels=("bad", "far", "good"),
        head=dataclasses.replace(head, spec=HeadSpec(pooler=pooler, lm_digest=digest)),
        preprocessing=Preprocessing(max_tokens=64, verbalizer=spec),
    )


def shallow_tasks(backbone: Backbone) -> dict[Address, TaskPrompt]:
    """Shallow prompts and verbalizers of every kind; the backbone has a pooler and a masked-LM head."""
    ner = random_prompt(backbone, 0, seed=44, family=TaskFamily.TOKEN_CLASSIFICATION, num_labels=5)
    deep = random_prompt(backbone, 6, seed=45)
    tasks = {
        "cls": shallow(random_prompt(backbone, 0, seed=41), 5),
        "peft": shallow(random_prompt(backbone, 0, seed=42, pooler=Pooler.BACKBONE), 17, pools="prompt"),
        "own": shallow(random_prompt(backbone, 0, seed=43, pooler=Pooler.OWN), 1, offset=0),
        "own-peft": shallow(random_prompt(backbone, 0, seed=46, pooler=Pooler.OWN), 3, pools="prompt"),
        "ner": shallow(ner, 20),
        "words": verbalized(backbone, deep, Pooler.LM),
        "words-shallow": shallow(verbalized(backbone, deep, Pooler.LM), 9),
        "words-bare": verbalized(backbone, random_prompt(backbone, 0, seed=47), Pooler.NONE),
    }
    return {Address("shallow", name): prompt for name, prompt in tasks.items()}
