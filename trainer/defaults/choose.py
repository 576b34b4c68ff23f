"""Choosing: rows without a recipe become a recipe with a search that fits into a time.

What was guessed and planned is written down, so that nothing is hidden: the plan can be read, changed and swept again.
It composes the other modules and refuses to know how a search is run.
"""

from __future__ import annotations

import math
import os
import shutil
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from prefixbank.model_store.errors import TrainingError
from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.trainer.build import build
from prefixbank.trainer.defaults.guess import guess
from prefixbank.trainer.defaults.plan import MOST_ROWS, Facts, Plan, plan
from prefixbank.trainer.families import family_for
from prefixbank.trainer.prepare import prepare
from prefixbank.trainer.progress import LogDisplay
from prefixbank.trainer.readers import read
from prefixbank.trainer.recipe import SENTENCE_FAMILIES, WORDLESS_FAMILIES, Recipe, load, parse
from prefixbank.trainer.recipe.parse import apply_override
from prefixbank.trainer.recipe.write import write
from prefixbank.trainer.report import is_finished
from prefixbank.trainer.sweep.default_space import default_space
from prefixbank.trainer.sweep.search import IDENTITY_FILE, TRIALS_FOLDER
from prefixbank.trainer.sweep.speed import Speed, fit_threads, measure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.sweep import TimeLimit

RECIPE_FILE, PLAN_FILE = "recipe.toml", "search.toml"
FIRST = {
    True: ({"length": 16}, {"prompt_rate": 3e-2, "head_rate": 1.5e-2}),
    False: ({"length": 64}, {"prompt_rate": 4e-2, "head_rate": 1e-2}),
}
"""What is tried first, for sentences and for hard sequence tasks; the prompt's rate is for MOST_ROWS a step."""
PERCENTILE = 99
MOST_TOKENS = {TaskFamily.QUESTION_ANSWERING: 384}
USUAL_MOST_TOKENS = 512
SAMPLE = 1000
"""Examples whose lengths are looked at."""
PROBE_ROWS, PROBE_BATCH, PROBE_TOGETHER = 160, 8, 4


class Request(NamedTuple):
    """What someone says instead of a recipe."""

    train: Path
    validation: Path | None = None
    test: Path | None = None
    family: TaskFamily | None = None
    backbone: str = "minilm"
    overrides: Sequence[str] = ()
    """`section.field=value`: what is said here is neither guessed nor searched."""


class Choice(NamedTuple):
    """What to search, and what is known of it."""

    recipe: Recipe
    """With a search; its paths are relative to the folder of all of it."""
    limit: TimeLimit
    speed: Speed | None
    """None where an interrupted search goes on: it is measured again then."""
    remarks: tuple[str, ...] = ()
    """What was found and planned, for people."""


def begin(request: Request, out: Path) -> Recipe:
    """The first recipe of a request, in a folder that is free for it.

    Raises:
        InvalidData: the file means nothing that is known, or could mean several things.
        InvalidRecipe: an override does not fit.
        TrainingError: the folder holds a search that was interrupted.
    """
    recipe = first_recipe(request, out)
    finished = is_finished(out)
    if (out / IDENTITY_FILE).exists() and not finished:
        raise TrainingError(f"{out}: found an interrupted search, wanted --resume to continue it or another --out")
    if finished:
        shutil.rmtree(out / TRIALS_FOLDER, ignore_errors=True)
        (out / IDENTITY_FILE).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    return recipe


def resumed(out: Path, limit: TimeLimit) -> Choice:
    """The search that was interrupted.

    Raises:
        TrainingError: there is none.
    """
    if not (out / PLAN_FILE).exists() or not (out / IDENTITY_FILE).exists():
        raise TrainingError(f"{out}: found no search, wanted one to resume")
    return Choice(load(out / PLAN_FILE), limit, None)


def first_recipe(request: Request, out: Path) -> Recipe:
    """The recipe of what was guessed, before lengths, rows and times are known; its paths are relative to `out`.

    Raises:
        InvalidData: the file means nothing that is known, or could mean several things.
        InvalidRecipe: an override does not fit.
    """
    said: dict[str, Any] = {}
    for override in request.overrides:
        apply_override(said, override)
    table = guess(request.train, request.family, said.get("data", {}))
    files = {"train": request.train, "validation": request.validation, "test": request.test}
    sources = {name: os.path.relpath(path.resolve(), out.resolve()) for name, path in files.items() if path is not None}
    table["data"] = sources | table["data"]
    table["backbone"] = request.backbone
    return _with(table, request)


def choose(request: Request, recipe: Recipe, out: Path, backbone: Backbone, limit: TimeLimit) -> Choice:
    """Plan a search within a time and write it to `out`.

    Args:
        recipe: the first one.

    Raises:
        InvalidData: the rows cannot be read.
        TrainingError: the time is over before there is a plan.
    """
    family = recipe.family
    table = recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    most = min(MOST_TOKENS.get(family, USUAL_MOST_TOKENS), backbone.max_tokens(0))
    lengths, facts, labels = _look(parse(table | {"max_tokens": most}), out, backbone)
    table["max_tokens"] = min(most, max(16, 8 * -(-int(np.percentile(lengths, PERCENTILE)) // 8)))
    if family == TaskFamily.QUESTION_ANSWERING:
        table["max_tokens"] = max(table["max_tokens"], 128)
    length, rates = FIRST[family in SENTENCE_FAMILIES]
    table |= {"prompt": dict(length), "optimiser": dict(rates)}
    speed = _speed(_with(table, request), out, backbone, facts, labels)
    if limit.left <= 0:
        taken = f"{limit.seconds:g} s, and reading and measuring took {limit.seconds - limit.left:.0f} s"
        raise TrainingError(f"--budget: found {taken}: wanted more")
    planned = plan(facts, speed, limit.left)
    found = _with(_planned(table, planned), request)
    found = _with(table | {"sweep": _search(found, planned, request)}, request)
    write(found, out / PLAN_FILE, _comment(planned))
    return Choice(found, limit, speed, (_measured(facts, speed), f"planned: {_sentence(planned)}"))


def _with(table: dict[str, Any], request: Request) -> Recipe:
    """The table's recipe, with what was said."""
    for override in request.overrides:
        apply_override(table, override)
    return parse(table)


def _look(recipe: Recipe, root: Path, backbone: Backbone) -> tuple[list[int], Facts, tuple[str, ...]]:
    """Tokens of rows of some training examples, what the data set is, and its labels."""
    assert recipe.data is not None, "a guessed recipe has one data set. This is a bug."
    examples = read(recipe, recipe.data.train, root).rows
    counts = {
        name: len(read(recipe, source, root).rows) for name, source in recipe.data.sources.items() if name != "train"
    }
    some = Random("lengths").sample(examples, min(SAMPLE, len(examples)))
    family = family_for(recipe, backbone, examples)
    labels = family.labels(examples, recipe.data.labels)
    items = family.items(some, labels, backbone.tokenizer, family.preprocessing(labels), training=True)
    lengths = [row.num_tokens for item in items for row in item.rows]
    tokens = sum(lengths) / len(some)
    facts = Facts(len(examples), counts.get("validation"), counts.get("test"), tokens, len(lengths) / len(some))
    return lengths, facts, labels


def _speed(recipe: Recipe, root: Path, backbone: Backbone, facts: Facts, labels: tuple[str, ...]) -> Speed:
    """Measured on a few rows, in packs like those of the search, with as many threads as are of use."""
    table = recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    data = {name: value for name, value in table["data"].items() if name not in ("validation", "test")}
    rows = min(PROBE_ROWS, facts.train)
    table["data"] = data | {"train": data["train"] | {"limit": rows}, "carve": max(rows // 4, 1), "carve_test": 0}
    if recipe.family not in WORDLESS_FAMILIES:
        table["data"]["labels"] = list(labels)  # those few rows may lack some
    table["optimiser"] = table["optimiser"] | {"batch_rows": PROBE_BATCH}
    probe = parse(table)
    prepared = prepare(probe, root, backbone)
    trial, pack = build(probe, backbone, prepared, root=root, folder=None, display=LogDisplay())
    fit_threads(pack, trial)
    return measure(pack, trial, 1 if probe.method == "full" else PROBE_TOGETHER)


def _planned(table: dict[str, Any], planned: Plan) -> dict[str, Any]:
    data = table["data"]
    for split, limit in planned.limits.items():
        data[split] = data[split] | {"limit": limit}
    given = {"carve": planned.carve, "carve_test": planned.carve_test}
    data |= {name: value for name, value in given.items() if value is not None}
    given = {"epochs": planned.epochs, "epoch_rows": planned.epoch_rows, "batch_rows": planned.batch_rows}
    table["optimiser"] |= {name: value for name, value in given.items() if value is not None}
    table["optimiser"]["prompt_rate"] = _rate_for(table["optimiser"]["prompt_rate"], planned.batch_rows)
    return table


def _rate_for(rate: float, batch_rows: int) -> float:
    """A rate for MOST_ROWS a step as fewer bear it: Adam's goes with their square root (Malladi et al., 2022)."""
    return float(f"{rate * math.sqrt(batch_rows / MOST_ROWS):.2g}")


def _search(recipe: Recipe, planned: Plan, request: Request) -> dict[str, Any]:
    """The sweep section: the default space without what was said."""
    said = {override.partition("=")[0].strip() for override in request.overrides}
    space = {
        name: tried if isinstance(tried, tuple) else tried.model_dump(exclude_unset=True)
        for name, tried in default_space(recipe).items()
        if name not in said
    }
    sizes = {"trials": planned.trials, "together": planned.together, "seeds": 1, "pruner": "halving"}
    return {"space": space} | sizes


def _measured(facts: Facts, speed: Speed) -> str:
    return (
        f"{facts.train:,} training rows of {facts.tokens:.0f} tokens; {1 / speed.train:,.0f} tokens trained and "
        f"{1 / speed.evaluate:,.0f} evaluated a second on {torch.get_num_threads()} threads"
    )


def _sentence(planned: Plan) -> str:
    epochs = f"{planned.epochs} epochs" + (f" of {planned.epoch_rows:,} rows" if planned.epoch_rows else "")
    if planned.together == 1:
        return f"one trial, for there is no time to tell several apart, {epochs} ({planned.passes:.2g} passes)"
    return (
        f"{planned.together} trials at once and up to {planned.trials} in all, {epochs} ({planned.passes:.2g} passes); "
        "half of them end after an eighth, a quarter and a half"
    )


def _comment(planned: Plan) -> str:
    return (
        "What prefixbank train --data guessed and planned; recipe.toml beside it is what it found.\n"
        f"{_sentence(planned)}."
    )
