"""The engine alone, without HTTP: requests per second and latency, one task against a thousand in the same batches.

    python -m benchmarks.engine [--backbone minilm] [--tasks 1000] [--seconds 5] [--rounds 3] [--json]

It refuses to print a number before answers of a mixture equal those computed alone. Traffic is a closed loop of
clients over prompts with random values; mixes take turns, so that a slow moment of the machine hits all of them alike.
Medians over the rounds count. It refuses to know HTTP, Ray, and whether an answer makes sense.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from benchmarks.environment import commit, hardware
from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.task_prompt import Pooler
from prefixbank.serving.limits import MIB, Limits
from prefixbank.serving.memory_store import MemoryStore
from prefixbank.serving.service import Service
from tests.serving_cases import random_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prefixbank.model_store.backbones.backbone import Backbone

PREFIX_TOKENS = 20
ZIPF_EXPONENT = 1.5
CLIENTS = (1, 64)
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}
GATE_REQUESTS = 100
CUT = {"truncation": True}
WORDS = ("the", "a", "court", "film", "plot", "was", "not", "very", "slow", "bright", "and", "law", "city", "rain")


@dataclass(frozen=True, slots=True)
class Measured:
    """One mix at one number of clients; medians over the rounds."""

    mix: str
    num_tasks: int
    num_clients: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Run:
    """One mix driven once."""

    latencies_s: list[float]
    elapsed_s: float
    """Until the last answer."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies_s) / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Mix:
    """Which task each next request is for."""

    name: str
    num_tasks: int
    weights: tuple[float, ...]

    def picks(self, seed: int) -> Iterator[int]:
        choose = random.Random(seed)
        while True:
            yield from choose.choices(range(self.num_tasks), self.weights, k=1000)


def mixes(num_tasks: int) -> list[Mix]:
    zipf = tuple(1 / (rank + 1) ** ZIPF_EXPONENT for rank in range(num_tasks))
    return [
        Mix("identical", 1, (1.0,)),
        Mix("uniform", num_tasks, (1.0,) * num_tasks),
        Mix(f"zipf:{ZIPF_EXPONENT}", num_tasks, zipf),
    ]


def sentences(seed: int, shortest: int = 6, longest: int = 38) -> Iterator[str]:
    """Texts of 8 to 40 tokens."""
    choose = random.Random(seed)
    while True:
        yield " ".join(choose.choices(WORDS, k=choose.randint(shortest, longest)))


def address_of(number: int) -> Address:
    return Address(f"tenant{number % 50}", f"task{number}")


async def drive(service: Service, mix: Mix, num_clients: int, seconds: float, seed: int) -> Run:
    """Ask for `seconds` with `num_clients` at once, and wait for what was asked."""
    picks, inputs, latencies = mix.picks(seed), sentences(seed), []
    start = time.perf_counter()
    end = start + seconds

    async def client() -> None:
        while (began := time.perf_counter()) < end:
            await service.answer(address_of(next(picks)), next(inputs), CUT)
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return Run(latencies, time.perf_counter() - start)


async def ask_all(service: Service, num_tasks: int) -> list[float]:
    """The best score of each task for one text, all asked at once in waves."""
    inputs = list(itertools.islice(sentences(99), num_tasks))
    scores: list[float] = []
    for start in range(0, num_tasks, GATE_REQUESTS):
        wave = range(start, min(start + GATE_REQUESTS, num_tasks))
        answers = await asyncio.gather(*(service.answer(address_of(n), inputs[n], CUT) for n in wave))
        scores += [answer.value[0][0]["score"] for answer in answers]
    return scores


def gate(make_service: Callable[[Limits], Service], num_tasks: int, tolerance: float) -> None:
    """Compare shared batches with rows computed one at a time.

    Raises:
        SystemExit: when they differ.
    """
    checked = min(num_tasks, GATE_REQUESTS)
    with make_service(Limits()) as shared, make_service(Limits(max_rows=1)) as lonely:
        together, alone = (asyncio.run(ask_all(service, checked)) for service in (shared, lonely))
    worst = max(abs(one - other) for one, other in zip(together, alone, strict=True))
    if worst > tolerance:
        raise SystemExit(f"answers of a mixture are {worst:.1e} from those computed alone; no numbers are printed")


def measure(service: Service, num_tasks: int, seconds: float, rounds: int) -> tuple[list[Measured], dict[str, float]]:
    """Every mix at every number of clients, and each mix's throughput over one task's in the same round."""
    cases = [(mix, clients) for mix in mixes(num_tasks) for clients in CLIENTS]
    turns = [
        [asyncio.run(drive(service, mix, clients, seconds, seed=turn)) for mix, clients in cases]
        for turn in range(rounds)
    ]
    runs_of = {case: [turn[index] for turn in turns] for index, case in enumerate(cases)}
    one, *others = (runs_of[mix, CLIENTS[-1]] for mix in mixes(num_tasks))
    names = [mix.name for mix in mixes(num_tasks)[1:]]
    ratios = {name: _ratio(runs, one) for name, runs in zip(names, others, strict=True)}
    return [_summary(mix, clients, runs) for (mix, clients), runs in runs_of.items()], ratios


def _ratio(runs: Sequence[Run], base: Sequence[Run]) -> float:
    return round(statistics.median(run.rate / other.rate for run, other in zip(runs, base, strict=True)), 3)


def _summary(mix: Mix, clients: int, runs: Sequence[Run]) -> Measured:
    def median_of(share: float) -> float:
        found = [sorted(run.latencies_s)[int(share * (len(run.latencies_s) - 1))] for run in runs]
        return statistics.median(found) * 1e3

    rate = statistics.median(run.rate for run in runs)
    return Measured(
        mix.name, mix.num_tasks, clients, round(rate, 1), round(median_of(0.5), 2), round(median_of(0.99), 2)
    )


def prompts_for(backbone: Backbone, num_tasks: int) -> MemoryStore:
    pooler = Pooler.BACKBONE if backbone.has_pooler else Pooler.NONE
    make = random_prompt
    return MemoryStore({address_of(n): make(backbone, PREFIX_TOKENS, seed=n, pooler=pooler) for n in range(num_tasks)})


def main(
    backbone: Annotated[str, typer.Option(help="folder, hub id or minilm")] = "minilm",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    tasks: Annotated[int, typer.Option(help="tasks of the uniform and zipf mixes")] = 1000,
    seconds: Annotated[float, typer.Option(help="length of one run")] = 5.0,
    rounds: Annotated[int, typer.Option(help="runs of each mix")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
) -> None:
    """Measure the engine alone."""
    loaded = load_backbone(backbone, dtype=getattr(torch, dtype), device=device)
    store = prompts_for(loaded, tasks)
    gate(lambda limits: Service(loaded, store, limits), tasks, TOLERANCE[dtype])
    roomy = Limits(pool_bytes=2048 * MIB, host_cache_bytes=4096 * MIB)
    with Service(loaded, store, roomy) as service:
        asyncio.run(ask_all(service, tasks))
        measured, ratios = measure(service, tasks, seconds, rounds)
        service.check_integrity()
    name = torch.cuda.get_device_name() if device == "cuda" else hardware()
    setting = {
        "hardware": f"{name}; {torch.get_num_threads()} threads; torch {torch.__version__}",
        "commit": commit(),
        "backbone": loaded.ref.model_dump(),
        "dtype": dtype,
        "shapes": f"P={PREFIX_TOKENS} in every layer, 3 classes, rows of about 8 to 40 tokens",
    }
    if as_json:
        typer.echo(json.dumps({**setting, "measured": [asdict(one) for one in measured], "ratio_to_one_task": ratios}))
        return
    typer.echo(f"{setting['hardware']}; commit {setting['commit']}\n{loaded.ref.name} {dtype}; {setting['shapes']}")
    typer.echo(f"{'mix':12} {'tasks':>6} {'clients':>8} {'req/s':>9} {'p50 ms':>8} {'p99 ms':>8}")
    for one in measured:
        speeds = f"{one.requests_per_s:9.1f} {one.p50_ms:8.2f} {one.p99_ms:8.2f}"
        typer.echo(f"{one.mix:12} {one.num_tasks:6} {one.num_clients:8} {speeds}")
    for mix_name, found in ratios.items():
        typer.echo(f"throughput of {tasks} tasks, {mix_name}, over one task: {found:.3f}")


if __name__ == "__main__":
    typer.run(main)
