"""What prefixes of one byte per number cost in answers and save in memory, on the real tasks of the shipped prompts.

    python -m benchmarks.prefix_dtypes [--limit ROWS] [--json FILE]

Each prompt of `examples/prompts` answers the rows that its own recipe reports on, through the serving engine, with its
prefix stored in several ways. Differences are to the fp32 backbone with the prefix as given; beside them stand those
of the bf16 backbone, whose own rounding is what a loss by storage is to be measured against. Prompts whose data set is
not beside the checkout are left out, and those that answer questions or name roles. It refuses to print a figure when
the fp32 answers do not reach the metric that the prompt's trainer reported, or when a quantised pool answers otherwise
than its values written out.

Shape letters: N prompted layers, H heads, P prefix tokens, D head dim.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import torch
import typer

from benchmarks.environment import commit, hardware
from prefixbank.kernels.attention import route_of
from prefixbank.kernels.quantise import dequantise, quantise
from prefixbank.model_store import artifact
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.task_prompt import BackboneRef, Head, HeadSpec, Pooler, TaskFamily
from prefixbank.model_store.tasks.token_classification import word_tags
from prefixbank.serving.limits import MIB, Limits
from prefixbank.serving.pool_bytes import PoolBytes, Sizes
from prefixbank.serving.predict import Predictor
from prefixbank.serving.staging import stage
from prefixbank.trainer.families import family_for
from prefixbank.trainer.outcome import METRIC_TOLERANCE
from prefixbank.trainer.readers import TextExample, read
from prefixbank.trainer.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.trainer.families import Family, Item

    Logits = list[NDArray[np.float32]]

ROOT = Path(__file__).resolve().parent.parent
PROMPTS, RECIPES = ROOT / "examples" / "prompts", ROOT / "examples" / "recipes"
FAMILIES = (TaskFamily.TEXT_CLASSIFICATION, TaskFamily.TOKEN_CLASSIFICATION)
"""An answer is a row's label, or the classes of its words."""
CPU = torch.device("cpu")
POOL = Limits(pool_bytes=16 * MIB)
GIB = 1024 * MIB
GATE_ROWS, GATE_DISTANCE = 32, 1e-3
"""How far a logit may lie from the one of the values written out: they are of order 1 to 10."""


class Way(NamedTuple):
    """How a prefix is stored, and what computes with it."""

    name: str
    dtype: torch.dtype
    """The backbone's."""
    prefix_dtype: torch.dtype | None = None
    values: Callable[[Tensor], Tensor] | None = None
    """What is done to the prefix beforehand, in an experiment that no pool stores."""


def written_out(kv_N2HPD: Tensor, stored: torch.dtype) -> Tensor:
    """The values that a pool of `stored` stands for."""
    return dequantise(*quantise(kv_N2HPD, stored))


def by_channel(kv_N2HPD: Tensor, stored: torch.dtype) -> Tensor:
    """The values if each channel of a head had a scale of its own."""
    return written_out(kv_N2HPD.mT[..., None], stored)[..., 0].mT


INT8, FP8 = torch.int8, torch.float8_e4m3fn
AS_GIVEN = Way("fp32 backbone, as given", torch.float32)
BF16, BF16_INT8 = Way("bf16 backbone, as given", torch.bfloat16), Way("bf16 backbone, int8", torch.bfloat16, INT8)
WAYS = (
    AS_GIVEN,
    Way("fp32 backbone, values rounded to bf16", torch.float32, values=lambda kv: kv.to(torch.bfloat16)),
    Way("fp32 backbone, int8", torch.float32, INT8),
    Way(
        "fp32 backbone, values of int8 with a scale per channel", torch.float32, values=partial(by_channel, stored=INT8)
    ),
    Way("fp32 backbone, fp8 e4m3", torch.float32, FP8),
    Way("fp32 backbone, values of fp8 with a scale per channel", torch.float32, values=partial(by_channel, stored=FP8)),
    BF16,
    BF16_INT8,
    Way("bf16 backbone, fp8 e4m3", torch.bfloat16, FP8),
)


@dataclass(frozen=True)
class Task:
    """A shipped prompt and the rows that it is judged on."""

    name: str
    prompt: TaskPrompt
    family: Family
    rows: list[Item]
    """One row of tokens each."""

    @property
    def metric(self) -> str:
        return self.family.metric

    @property
    def reported(self) -> float:
        return self.prompt.metrics[f"test_{self.metric}"]

    def score(self, found: Logits) -> float:
        by_item = [[logits] for logits in found]
        return self.family.score(by_item, self.rows, self.prompt.labels).metrics[self.metric]


class Memory(NamedTuple):
    """What one prompt takes of a pool, and how many fit."""

    prompt_bytes: int
    tasks_per_gib: int


@dataclass(frozen=True)
class Result:
    """One task answered in one way."""

    way: str
    score: float
    changed: float
    """Share of rows with another answer: another label, or another class for any word."""
    largest: float
    mean: float
    """Of the differences of logits."""
    prefix: float
    """Relative L2 distance of the prefix that is read from the one given."""
    memory: Memory | None
    """None where the way is an experiment on values, not a pool."""


def shipped_tasks(backbone: Backbone, limit: int | None) -> Iterator[Task]:
    """Yield the shipped prompts whose rows are at hand; say which are not."""
    for manifest in sorted(PROMPTS.glob("*/*/manifest.json")):
        prompt, name = artifact.read(manifest.parent), "/".join(manifest.parts[-3:-1])
        if prompt.family not in FAMILIES:
            typer.echo(f"{name}: left out, answers of {prompt.family} are not compared here", err=True)
            continue
        recipe = Recipe.model_validate(prompt.provenance.recipe)
        source = None if recipe.data is None else recipe.data.test
        if source is None or not (RECIPES / source.name).exists():
            typer.echo(f"{name}: left out, its data set is not here", err=True)
            continue
        examples = read(recipe, source, RECIPES).rows[:limit]
        family = family_for(recipe, backbone, examples)
        rows = family.items(examples, prompt.labels, backbone.tokenizer, prompt.preprocessing, training=False)
        yield Task(name, prompt, family, rows)


def answers_in(way: Way, task: Task, backbone: Backbone, rows: Sequence[Item]) -> Logits:
    """The logits of rows, as a server that stores prefixes this way computes them."""
    prompt = task.prompt
    if way.values is not None:
        prompt = replace(prompt, kv_N2HPD=way.values(prompt.kv_N2HPD))
    with Predictor(backbone, {}, POOL, prefix_dtype=way.prefix_dtype) as predictor:
        return predictor.logits(prompt, [row.rows[0] for row in rows])


def gate(task: Task, backbone: Backbone, stored: torch.dtype) -> None:
    """Compare a quantised pool with the values that it stands for.

    Raises:
        SystemExit: they answer differently.
    """
    rows = task.rows[:GATE_ROWS]
    found = answers_in(Way("", torch.float32, stored), task, backbone, rows)
    wanted = answers_in(Way("", torch.float32, values=partial(written_out, stored=stored)), task, backbone, rows)
    if not (distance := np.abs(_flat(found) - _flat(wanted)).max()) <= GATE_DISTANCE:
        raise SystemExit(f"{task.name}: a pool of {stored} is {distance:.1e} off its values; no figures are printed")


def measure(task: Task, backbones: dict[torch.dtype, Backbone], *, is_whole: bool) -> list[Result]:
    """Answer a task's rows in every way."""
    for stored in (INT8, FP8):
        gate(task, backbones[torch.float32], stored)
    logits = {way: answers_in(way, task, backbones[way.dtype], task.rows) for way in WAYS}
    results = [compare(task, way, found, logits[AS_GIVEN]) for way, found in logits.items()]
    if is_whole and abs(results[0].score - task.reported) > METRIC_TOLERANCE:
        raise SystemExit(f"{task.name}: {task.metric} {results[0].score:.3f}, reported {task.reported:.3f}; no figures")
    return results


def compare(task: Task, way: Way, found: Logits, wanted: Logits) -> Result:
    off = np.abs(_flat(found) - _flat(wanted))
    labels = task.prompt.labels
    answers = [
        [_answer(row, one, labels) for row, one in zip(task.rows, logits, strict=True)] for logits in (found, wanted)
    ]
    changed = sum(one != other for one, other in zip(*answers, strict=True)) / len(task.rows)
    memory = None if way.values else memory_of(task.prompt, way)
    return Result(
        way.name, task.score(found), changed, float(off.max()), float(off.mean()), prefix_distance(task, way), memory
    )


def prefix_distance(task: Task, way: Way) -> float:
    given = task.prompt.kv_N2HPD.float()
    read = given.to(way.dtype) if way.prefix_dtype is None else written_out(given, way.prefix_dtype)
    read = way.values(given) if way.values else read
    return float((read.float() - given).norm() / given.norm())


def memory_of(prompt: TaskPrompt, way: Way) -> Memory:
    """What a prompt takes, and how many like it a pool of a GiB with the default share for heads holds."""
    stored = way.prefix_dtype or way.dtype
    each = PoolBytes.of(prompt.backbone, stored, is_quantised=way.prefix_dtype is not None)
    staged = stage(prompt, way.dtype, CPU, way.prefix_dtype)
    taken, pool = Sizes(staged.num_tokens, staged.num_rows, 1), each.sizes(GIB, Limits().head_share)
    fit = min(pool.num_tokens // taken.num_tokens, pool.num_rows // taken.num_rows, pool.num_slots - 1)
    return Memory(each.total(taken), fit)


def large_prompt(like: TaskPrompt, length: int) -> TaskPrompt:
    """A prompt of zeros in all layers of RoBERTa-large, with a linear head of two classes."""
    ref = BackboneRef(
        fingerprint="0" * 64, architecture="roberta", num_layers=24, num_heads=16, head_dim=64, width=1024
    )
    head = Head(HeadSpec(pooler=Pooler.NONE), torch.zeros(2, ref.width), torch.zeros(2))
    kv_N2HPD = torch.zeros(ref.num_layers, 2, ref.num_heads, length, ref.head_dim)
    return replace(like, layers=tuple(range(ref.num_layers)), kv_N2HPD=kv_N2HPD, head=head, backbone=ref)


def _answer(row: Item, logits: NDArray[np.float32], labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(row.example, TextExample):
        return (labels[int(logits.argmax())],)
    return tuple(word_tags(logits, row.rows[0], labels)[0])


def _flat(logits: Logits) -> NDArray[np.float32]:
    return np.concatenate([one.ravel() for one in logits])


def show(task: Task, results: Sequence[Result]) -> None:
    typer.echo(f"\n{task.name}: {len(task.rows)} rows, P={task.prompt.prefix_length}, {len(task.prompt.labels)} labels")
    columns = (
        task.metric,
        "answers changed",
        "logits: largest, mean",
        "prefix off",
        "bytes per prompt",
        "tasks per GiB",
    )
    typer.echo(f"| prefix | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for one in results:
        held = f"{one.memory.prompt_bytes:,} | {one.memory.tasks_per_gib:,}" if one.memory else "| "
        logits = f"{one.largest:.2g}, {one.mean:.2g}"
        typer.echo(f"| {one.way} | {one.score:.4f} | {one.changed:.2%} | {logits} | {one.prefix:.2%} | {held} |")


def show_large(like: TaskPrompt) -> dict[str, Memory]:
    """Memory alone, at the sizes of a backbone that is not here."""
    typer.echo("\nRoBERTa-large's sizes (24 layers of 16 heads of 64), bf16 backbone, memory alone")
    typer.echo("| prefix | bytes per prompt | tasks per GiB |\n|---|---|---|")
    found = {}
    for length in (20, 128):
        for way in (BF16, BF16_INT8):
            memory = memory_of(large_prompt(like, length), way)
            found[f"P={length}, {way.prefix_dtype or way.dtype}".replace("torch.", "")] = memory
    for name, memory in found.items():
        typer.echo(f"| {name} | {memory.prompt_bytes:,} | {memory.tasks_per_gib:,} |")
    return found


def main(
    limit: Annotated[int | None, typer.Option(help="rows of each task; all by default")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the figures here")] = None,
) -> None:
    """Measure what storing prefixes in one byte per number changes."""
    route = route_of(CPU).value
    about = f"{hardware()}; torch {torch.__version__}; attention {route}; commit {commit()}"
    typer.echo(about)
    backbones = {dtype: load_backbone("minilm", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    tasks = list(shipped_tasks(backbones[torch.float32], limit))
    if not tasks:
        raise SystemExit("no shipped prompt has its data set here")
    found: dict[str, list[Result]] = {}
    for task in tasks:
        found[task.name] = measure(task, backbones, is_whole=limit is None)
        show(task, found[task.name])
    large = {name: memory._asdict() for name, memory in show_large(tasks[0].prompt).items()}
    if json_file:
        said = {name: [asdict(one) for one in results] for name, results in found.items()}
        json_file.write_text(json.dumps({"about": about, "tasks": said, "roberta_large": large}, indent=1))


if __name__ == "__main__":
    typer.run(main)
