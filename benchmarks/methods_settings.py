"""Settings of `benchmarks.methods`: what a method changes in a task's recipe, and to how many rows a task is cut.

Settings of the deep prompt stand in the recipes, as the sweeps of `examples/recipes/tuning` found or left them;
`examples/recipes/ablations` has one over rates of a shallow prompt. Rates of the head alone and of full fine-tuning
were not searched. None was chosen on the rows that are reported.
"""

from __future__ import annotations

METHODS = ("head", "shallow", "prompt", "multitask", "full", "verbalizer")
TASKS = ("sst2", "rte", "boolq", "conll04", "wnut17", "squad1", "squad2", "srl_ewt")
FAMILY_OF_TASKS = {"conll04": "ner_multitask", "wnut17": "ner_multitask"}
"""Recipes that train one prompt over a task and others like it, first."""

CUTS: dict[str, list[str]] = {
    "sst2": ["data.train.limit=6000", "data.carve=1000"],
    "rte": ["max_tokens=128"],
    "boolq": [],
    "conll04": [],
    "wnut17": [],
    "squad1": ["data.train.limit=3000", "data.carve=500", "data.test.limit=1000"],
    "squad2": ["data.carve=400"],
    "srl_ewt": ["data.train.limit=8000", "data.validation.limit=800", "data.test.limit=2000"],
}
"""Rows drawn with the seed; every method gets the same."""
EPOCHS: dict[str, int] = {
    "sst2": 5,
    "rte": 6,
    "boolq": 4,
    "conll04": 16,
    "wnut17": 8,
    "squad1": 3,
    "squad2": 4,
    "srl_ewt": 5,
}
"""Passes of prompts over the rows, deep and shallow the same; the recipes take more where more is better."""
FULL_EPOCHS: dict[str, int] = {
    "sst2": 4,
    "rte": 4,
    "boolq": 3,
    "conll04": 14,
    "wnut17": 6,
    "squad1": 3,
    "squad2": 4,
    "srl_ewt": 4,
}
"""Fine-tuning has learned sooner."""

HEAD = ['method="head"', "optimiser.head_rate=1e-2", "optimiser.epochs=10", "optimiser.batch_rows=32"]
SHALLOW = ['method="shallow"', "prompt.length=20", "optimiser.prompt_rate=2e-2"]
FULL = [
    'method="full"',
    "optimiser.backbone_rate=1e-4",
    "optimiser.head_rate=1e-3",
    "optimiser.backbone_dropout=true",
    "optimiser.batch_rows=32",
]
OWN: dict[tuple[str, str], list[str]] = {
    ("wnut17", "multitask"): ["prompt.length=64"],  # that of the prompt that the family of tasks shares
    ("conll04", "full"): ["optimiser.backbone_rate=2e-4"],
    ("wnut17", "full"): ["optimiser.backbone_rate=2e-4"],
    ("squad1", "full"): ["optimiser.backbone_rate=2e-4"],
    ("squad2", "full"): ["optimiser.backbone_rate=2e-4"],
    ("srl_ewt", "full"): ["optimiser.backbone_rate=2e-4"],
}
"""What one task needs beside that."""
VERBALIZERS: dict[str, list[str]] = {
    "sst2": [
        'head={kind="verbalizer",template="{text} It was {mask}.",words={negative="terrible",positive="great"}}',
    ],
    "rte": [
        'head={kind="verbalizer",template="{text_pair}? {mask}. {text}",words={entailment="yes",not_entailment="no"}}',
    ],
    "boolq": [
        'head={kind="verbalizer",template="{text}? {mask}. {text_pair}",words={yes="yes",no="no"}}',
    ],
}
"""Patterns as in Schick and Schütze, 2021; the words are single pieces of BERT's vocabulary."""
QUICK = [
    "data.train.limit=64",
    "data.test.limit=32",
    "data.carve=0.2",
    "optimiser.epochs=1",
    "optimiser.epoch_rows=32",
]
"""What `--quick` changes beside."""


def settings_of(task: str, method: str) -> list[str] | None:
    """Overrides of the recipe; None where the method is not for the task."""
    epochs = (FULL_EPOCHS if method == "full" else EPOCHS)[task]
    own = [*CUTS[task], f"optimiser.epochs={epochs}", *OWN.get((task, method), [])]
    match method:
        case "head":
            return [*own, *HEAD]
        case "shallow":
            return [*SHALLOW, *own]
        case "full":
            return [*FULL, *own]
        case "multitask":
            return own if task in FAMILY_OF_TASKS else None
        case "verbalizer":
            return [*VERBALIZERS[task], *own] if task in VERBALIZERS else None
        case _:
            return own
