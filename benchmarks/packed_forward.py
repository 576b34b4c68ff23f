"""How fast one packed forward of many tasks is, against three ways to answer the same rows with transformers.

    python -m benchmarks.packed_forward [--mix uniform|zipf|identical|distinct] [--turns N] [--json FILE]

The packaged MiniLM, rows of 8 to 72 tokens, deep prompts of 20 tokens. It refuses to print a speed before the numbers
agree: packed rows with transformers' own cache holding the prompt, PEFT with packed rows, the padded model with packed
rows without prompt. Routes take turns, so that a slow moment of the machine hits all alike; a ratio is the median of
the turns' ratios. It refuses to know heads, HTTP and queues.

Shape letters: T packed tokens, L layers, H heads, P prefix tokens, D head dim, M model width.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003 - typer reads annotations
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import transformers
import typer
from transformers import AutoModel, DynamicCache

from benchmarks.environment import commit, hardware
from prefixbank.kernels.attention import route_of
from prefixbank.kernels.plan import LayerPrefix
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.backbones.sources import locate
from tests.tiny import prompt_pools, random_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from prefixbank.model_store.backbones.backbone import Backbone

    Answer = Callable[[], list[Tensor]]

NUM_ROWS, SHORTEST, LONGEST, PREFIX = 32, 8, 72, 20
NUM_TASKS = {"identical": 1, "uniform": 8, "zipf": 8, "distinct": NUM_ROWS}
OURS, PLAIN, PEFT_ROWS, PEFT_TASKS, COPIES = (
    "packed, all tasks at once",
    "(a) padded, no prompt",
    "(b) PEFT, row by row",
    "(b') PEFT, batched per task",
    "(c) a model per task",
)
FAR = {torch.float32: 5e-5, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest difference between two hidden states that the gate lets pass; they are of order 1."""

Mix = Literal["uniform", "zipf", "identical", "distinct"]


class Row(NamedTuple):
    task: int
    token_ids: list[int]


@dataclass(frozen=True)
class Bench:
    """The rows, the prompts, and the one plain model that the baselines share."""

    backbone: Backbone
    plain: nn.Module
    rows: list[Row]
    prompts: list[dict[int, Tensor]]
    """Per task: layer to keys and values [2, H, P, D]."""

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def by_task(self) -> dict[int, list[int]]:
        """Task to the numbers of its rows."""
        numbers: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            numbers[row.task].append(number)
        return dict(numbers)

    @property
    def gflop(self) -> float:
        """Multiplications and additions of the packed forward's matrix products."""
        config, ref = self.plain.config, self.backbone.ref
        lengths = [len(row.token_ids) for row in self.rows]
        linear = 2 * sum(lengths) * ref.width * (4 * ref.width + 2 * config.intermediate_size)
        attention = 4 * ref.width * sum(own * (own + PREFIX) for own in lengths)
        return ref.num_layers * (linear + attention) / 1e9


def make_bench(mix: Mix, dtype: torch.dtype, device: torch.device) -> Bench:
    backbone = load_backbone("minilm", dtype=dtype, device=device)
    ref = backbone.ref
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    plain = AutoModel.from_pretrained(locate("minilm"), dtype=dtype).to(device).eval()
    chance = np.random.default_rng(0)
    tasks, lengths = tasks_of_rows(mix, chance), chance.integers(SHORTEST, LONGEST + 1, NUM_ROWS)
    rows = [Row(task, chance.integers(1000, 20000, n).tolist()) for task, n in zip(tasks, lengths, strict=True)]
    sizes = {"heads": ref.num_heads, "dim": ref.head_dim}
    prompts = [random_prompt(range(ref.num_layers), PREFIX, seed=task, **sizes) for task in range(NUM_TASKS[mix])]
    return Bench(backbone, plain, rows, prompts)


def tasks_of_rows(mix: Mix, chance: np.random.Generator) -> list[int]:
    """The task of each row, ascending; every task has a row."""
    num_tasks = NUM_TASKS[mix]
    if mix != "zipf":
        return sorted(number % num_tasks for number in range(NUM_ROWS))
    shares = np.arange(1, num_tasks + 1) ** -1.5
    more = chance.choice(num_tasks, NUM_ROWS - num_tasks, p=shares / shares.sum())
    return sorted([*range(num_tasks), *more.tolist()])


def packed(bench: Bench, prefix: int = PREFIX) -> Answer:
    """Everything a serving step does with the rows: pack, forward. The prompts are in the pool."""
    backbone = bench.backbone
    made = prompt_pools(bench.prompts, backbone.ref.num_layers, backbone.dtype)
    pools = [LayerPrefix(*(tensor.to(bench.device) for tensor in layer)) for layer in made]
    rows = []
    for row in bench.rows:
        ids = np.array(row.token_ids, dtype=np.int32)
        rows.append(PackRow(ids, np.zeros_like(ids), slot=row.task + 1 if prefix else 0, position_offset=prefix))
    lengths = [len(row.token_ids) for row in bench.rows]
    return lambda: list(backbone.forward(backbone.pack(rows), pools).split(lengths))


def padded_forward(
    bench: Bench, model: nn.Module, numbers: Sequence[int], num_cached: int = 0, **given: Any
) -> list[Tensor]:
    """Run some rows as one padded batch; return each row's own hidden states."""
    rows = [bench.rows[number].token_ids for number in numbers]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=bench.device)
    seen = [[1] * (num_cached + len(row)) + [0] * (longest - len(row)) for row in rows]
    mask = torch.tensor(seen, device=bench.device)
    hidden = model(input_ids=ids, attention_mask=mask, **given).last_hidden_state
    return [hidden[i, : len(row)] for i, row in enumerate(rows)]


def plain(bench: Bench) -> Answer:
    return lambda: padded_forward(bench, bench.plain, range(NUM_ROWS))


def model_per_task(bench: Bench) -> Answer:
    """One copy of the model for each task, its rows as one padded batch."""
    copies = {task: copy.deepcopy(bench.plain) for task in bench.by_task}
    batches = list(bench.by_task.items())
    return lambda: [row for task, numbers in batches for row in padded_forward(bench, copies[task], numbers)]


def peft_routes(bench: Bench) -> dict[str, Answer]:
    """PEFT prefix tuning with the same prompts: one adapter of one model is active at a time."""
    import peft

    model = copy.deepcopy(bench.plain)
    config = peft.PrefixTuningConfig(task_type=peft.TaskType.FEATURE_EXTRACTION, num_virtual_tokens=PREFIX)
    tuned = peft.get_peft_model(model, config, adapter_name="0")
    for task in range(1, len(bench.prompts)):
        tuned.add_adapter(str(task), copy.deepcopy(config))
    for task, prompt in enumerate(bench.prompts):
        kv_LKHPD = torch.stack(list(prompt.values()))
        weight = tuned.prompt_encoder[str(task)].embedding.weight
        weight.data = kv_LKHPD.permute(3, 0, 1, 2, 4).reshape(PREFIX, -1).to(bench.device, bench.backbone.dtype)
    tuned.eval()
    batches = list(bench.by_task.items())

    def run(size: int) -> list[Tensor]:
        answers = []
        for task, numbers in batches:
            tuned.set_adapter(str(task))
            for at in range(0, len(numbers), size):
                answers += padded_forward(bench, tuned, numbers[at : at + size])
        return answers

    return {PEFT_ROWS: lambda: run(1), PEFT_TASKS: lambda: run(NUM_ROWS)}


def cached_rows(bench: Bench) -> list[Tensor]:
    """The definition: each row alone through transformers, its cache holding the prompt."""
    answers = []
    for number, row in enumerate(bench.rows):
        layers = [kv.to(bench.device, bench.backbone.dtype)[:, None] for kv in bench.prompts[row.task].values()]
        cache = DynamicCache([(k, v) for k, v in layers])
        answers += padded_forward(bench, bench.plain, [number], PREFIX, past_key_values=cache)
    return answers


def check(name: str, got: list[Tensor], wanted: list[Tensor], limit: float) -> float:
    """Return the largest difference between two answers.

    Raises:
        SystemExit: when it is too large.
    """
    found = max(float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True))
    if not found <= limit:
        raise SystemExit(f"{name} is {found:.1e} off; no speeds are printed")
    return found


def gate(bench: Bench, routes: dict[str, Answer]) -> dict[str, float]:
    """Compare every route that should agree with another one."""
    limit = FAR[bench.backbone.dtype]
    definition = cached_rows(bench)
    found = {OURS: check(OURS, routes[OURS](), definition, limit)}
    found[PLAIN] = check(PLAIN, routes[PLAIN](), packed(bench, prefix=0)(), limit)
    for name in (PEFT_ROWS, PEFT_TASKS):
        if name in routes:
            found[name] = check(name, routes[name](), definition, limit)
    return found


def products(bench: Bench) -> dict[str, tuple[float, Callable[[], object]]]:
    """Matrix products that tell what the machine can do: squares, and the shapes of the model's own layers."""
    tokens = sum(len(row.token_ids) for row in bench.rows)
    width, inner = bench.backbone.ref.width, bench.plain.config.intermediate_size
    shapes = [(tokens, width, width), (tokens, width, inner), (tokens, inner, width)]
    shapes += [(n, n, n) for n in (512, 1024, 2048)]
    made: dict[str, tuple[float, Callable[[], object]]] = {}
    for m, k, n in shapes:
        x = torch.randn(m, k, dtype=bench.backbone.dtype, device=bench.device)
        weight = torch.randn(n, k, dtype=bench.backbone.dtype, device=bench.device)
        made[f"{m}x{k}x{n}"] = (2 * m * k * n / 1e9, lambda x=x, weight=weight: torch.nn.functional.linear(x, weight))
    return made


def take_turns(runs: dict[str, Callable[[], object]], turns: int, device: torch.device) -> dict[str, list[float]]:
    """Time all runs in each turn, after one turn that is not timed; seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


@dataclass(frozen=True)
class Report:
    dtype: str
    mix: str
    rows: int
    tasks: int
    tokens: int
    prefix: int
    differences: dict[str, float]
    median_ms: dict[str, float]
    ratio: dict[str, float]
    """Median over the turns of the route's time over ours."""
    gflop: float
    gflop_per_s: float
    """Of the packed forward's best turn."""
    matrix_gflop_per_s: dict[str, float]
    """Best turn of each bare product."""
    share_of_matrix_rate: float


def measure(mix: Mix, dtype: torch.dtype, device: torch.device, turns: int) -> Report:
    bench = make_bench(mix, dtype, device)
    routes = {OURS: packed(bench), PLAIN: plain(bench), COPIES: model_per_task(bench)}
    if importlib.util.find_spec("peft"):
        routes |= peft_routes(bench)
    else:
        typer.echo("PEFT is not installed: its routes are left out")
    differences = gate(bench, routes)
    bare = products(bench)
    seconds = take_turns({**routes, **{name: run for name, (_, run) in bare.items()}}, turns, device)
    ours = seconds[OURS]
    rates = {name: gflop / min(seconds[name]) for name, (gflop, _) in bare.items()}
    rate = bench.gflop / min(ours)
    return Report(
        dtype=str(dtype),
        mix=mix,
        rows=NUM_ROWS,
        tasks=len(bench.by_task),
        tokens=sum(len(row.token_ids) for row in bench.rows),
        prefix=PREFIX,
        differences=differences,
        median_ms={name: 1e3 * median(seconds[name]) for name in routes},
        ratio={name: median(s / o for s, o in zip(seconds[name], ours, strict=True)) for name in routes},
        gflop=bench.gflop,
        gflop_per_s=rate,
        matrix_gflop_per_s=rates,
        share_of_matrix_rate=rate / max(rates.values()),
    )


def show(report: Report) -> None:
    typer.echo(
        f"\n{report.dtype}: {report.rows} rows, {report.tokens} tokens, {report.tasks} tasks ({report.mix}), "
        f"P={report.prefix}; {report.gflop:.1f} GFLOP packed"
    )
    for name, ms in report.median_ms.items():
        checked = f"differs by {report.differences[name]:.1e}" if name in report.differences else "not comparable"
        typer.echo(f"  {name:28} {ms:9.1f} ms  {report.ratio[name]:6.2f} x ours   {checked}")
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in report.matrix_gflop_per_s.items())
    typer.echo(f"  bare products, GFLOP/s: {rates}")
    typer.echo(
        f"  packed forward: {report.gflop_per_s:.0f} GFLOP/s, {report.share_of_matrix_rate:.0%} of the best of them"
    )


def main(
    mix: Annotated[Mix, typer.Option(help="how the rows spread over the tasks")] = "uniform",
    turns: Annotated[int, typer.Option(help="turns that each route takes")] = 11,
    threads: Annotated[int | None, typer.Option(help="threads of one operator; torch's own choice by default")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the figures here")] = None,
) -> None:
    """Measure one packed forward of many tasks against its alternatives, in fp32 and bf16."""
    if threads:
        torch.set_num_threads(threads)
    machine = torch.cuda.get_device_name() if device.startswith("cuda") else hardware()
    route = route_of(torch.device(device)).value
    about = f"{machine}; {torch.get_num_threads()} threads; torch {torch.__version__}; "
    about += f"transformers {transformers.__version__}; attention {route}; commit {commit()}"
    typer.echo(about)
    reports = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.inference_mode():
            reports.append(measure(mix, dtype, torch.device(device), turns))
        show(reports[-1])
    if json_file:
        json_file.write_text(json.dumps({"about": about, "reports": [asdict(report) for report in reports]}, indent=1))


if __name__ == "__main__":
    typer.run(main)
