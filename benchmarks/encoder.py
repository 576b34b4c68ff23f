"""A whole encoder at RoBERTa-large's shape with a prompt in every layer: tokens per second, and one request's latency.

    python -m benchmarks.encoder [--json FILE] [--rehearse]

Weights and prompts are random, the forward is what a serving step runs: transformers' model, packed rows, attention
through the seam. Beside it stands what transformers does itself: a padded batch with the prompts in its cache. Both are
compared before they are timed. It refuses to know heads, tokenizers and queues. Ends with 3 without a GPU.

Shape letters: T packed tokens, R rows, L layers, H heads, P prefix tokens, D head dim, M model width.
"""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
import typer
from transformers import AutoConfig, AutoModel, DynamicCache

from benchmarks.environment import commit, device_name
from benchmarks.keeping import keep
from benchmarks.kernel import NO_DEVICE, rehearse
from benchmarks.kernel_clock import measure
from prefixbank.kernels.attention import Route, prefix_attention
from prefixbank.kernels.plan import BatchPlan, LayerPrefix
from prefixbank.model_store.backbones.seam import SEAM, SeamCall, SeamLayer, mark
from tests.kernel_cases import distance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

ROBERTA_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VOCABULARY, FIRST_POSITION = 1000, 2
OURS, COMPILED, PADDED = "packed, ours", "packed, ours, pointwise compiled", "padded, transformers' SDPA"
FAR = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Largest relative distance between two routes' hidden states: they round at different places."""
GOAL_TOKENS_PER_S, GOAL_LATENCY_MS = 750e3, 1.0


class Load(NamedTuple):
    """Rows of one length, each with a task of its own."""

    rows: int
    length: int
    prefix: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def name(self) -> str:
        return f"{self.rows} rows, L={self.length} P={self.prefix}"


THROUGHPUT, LATENCY = Load(128, 128, 128), Load(1, 128, 128)
REHEARSED = (Load(3, 8, 5), Load(1, 8, 5))


@dataclass(frozen=True, slots=True)
class Measured:
    """One route over one load."""

    load: str
    route: str
    graph_ms: float | None
    eager_ms: float
    tokens_per_s: float
    distance: float
    """From the padded route."""
    note: str = ""


@dataclass(slots=True)
class Report:
    """One run."""

    device: str
    commit: str
    rehearsed: bool
    measured: list[Measured] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Load and route, and the traceback."""

    def goals(self) -> list[Any]:
        """How far the end-to-end goals are met."""
        from benchmarks.kernel_goals import Goal  # imports Triton

        best = {
            load: [each for each in self.measured if each.load == load.name and each.route != PADDED]
            for load in (THROUGHPUT, LATENCY)
        }
        rate = max((each.tokens_per_s for each in best[THROUGHPUT]), default=None)
        latency = min((each.graph_ms or each.eager_ms for each in best[LATENCY]), default=None)
        return [
            Goal(f"encoder, {THROUGHPUT.name}", GOAL_TOKENS_PER_S, "tokens/s", True, rate),
            Goal(f"encoder, {LATENCY.name}", GOAL_LATENCY_MS, "ms", False, latency),
        ]

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        if self.rehearsed:
            found["measured"] = [
                {"load": each.load, "route": each.route, "distance": each.distance} for each in self.measured
            ]
        return {**found, "goals": [] if self.rehearsed else [goal._asdict() for goal in self.goals()]}


@dataclass(frozen=True)
class Bench:
    """Two models of one set of weights, the rows, and the prompts, as tensors where they belong."""

    packed: nn.Module
    padded: nn.Module
    ids_RT: Tensor
    prompts_L2RHPD: Tensor
    load: Load

    @property
    def positions_RT(self) -> Tensor:
        """Every row's tokens stand after its prefix."""
        one_T = torch.arange(self.load.length, device=self.ids_RT.device) + self.load.prefix + FIRST_POSITION
        return one_T.expand(self.load.rows, -1)

    def prefixes(self) -> list[LayerPrefix]:
        """The prompts in one pool per layer, row r's in slot r + 1."""
        rows, length = self.load.rows, self.load.prefix
        starts = torch.arange(rows, dtype=torch.int32, device=self.ids_RT.device) * length
        lengths = torch.full_like(starts, length)
        tables = [torch.cat([x.new_zeros(1), x]) for x in (starts, lengths)]
        pools = [layer.transpose(1, 2).flatten(2, 3).contiguous() for layer in self.prompts_L2RHPD]
        return [LayerPrefix(pool[0], pool[1], *tables) for pool in pools]


class TritonCall(SeamCall):
    """A call that asks for the kernel under test by name."""

    def attend(self, layer: SeamLayer, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, scale: float) -> Tensor:
        self.num_calls += 1
        prefix = self.prefixes[layer.number]
        return prefix_attention(q_THD, k_THD, v_THD, prefix, self.plan, scale=scale, route=Route.TRITON)


def make_models(sizes: dict[str, int], dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The same random encoder twice: with its attention through the seam, and with transformers' own."""
    sizes = {**sizes, "vocab_size": VOCABULARY, "max_position_embeddings": 514, "type_vocab_size": 1}
    torch.manual_seed(0)
    made = []
    for attention in (SEAM, "sdpa"):
        config = AutoConfig.for_model("roberta", **sizes, pad_token_id=1)  # a model keeps and changes its config
        with torch.device(device):
            model = AutoModel.from_config(config, attn_implementation=attention, dtype=dtype, add_pooling_layer=False)
        made.append(model.to(device).eval().requires_grad_(False))
    made[1].load_state_dict(made[0].state_dict())
    for index, layer in enumerate(made[0].encoder.layer):
        mark(layer.attention.self, SeamLayer(index, 0))
    return made[0], made[1]


def make_bench(models: tuple[nn.Module, nn.Module], load: Load, dtype: torch.dtype, device: torch.device) -> Bench:
    chance = torch.Generator(device).manual_seed(1)
    config: Any = models[0].config
    heads, dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    ids_RT = torch.randint(5, VOCABULARY, (load.rows, load.length), generator=chance, device=device)
    shape = (config.num_hidden_layers, 2, load.rows, heads, load.prefix, dim)
    prompts = torch.randn(shape, generator=chance, device=device, dtype=dtype)
    return Bench(*models, ids_RT, prompts, load)


def packed_route(bench: Bench) -> Callable[[], Tensor]:
    """What a serving step runs once its rows are packed and its prompts are in the pool."""
    load, device = bench.load, bench.ids_RT.device
    prefixes = bench.prefixes()
    slots = range(1, load.rows + 1)
    plan = BatchPlan.build([load.length] * load.rows, list(slots), device=device, longest_prefix=load.prefix)
    ids, positions = bench.ids_RT.reshape(1, -1), bench.positions_RT.reshape(1, -1)
    types = torch.zeros_like(ids)

    def run() -> Tensor:
        call = TritonCall(plan, prefixes)
        output = bench.packed(input_ids=ids, position_ids=positions, token_type_ids=types, seam_call=call)
        call.check_complete()
        hidden_TM: Tensor = output.last_hidden_state[0]
        return hidden_TM

    return run


def padded_route(bench: Bench) -> Callable[[], Tensor]:
    """Transformers' own: the prompts in its cache, concatenated in each layer. No row is shorter than another."""
    layers = [(layer[0], layer[1]) for layer in bench.prompts_L2RHPD]
    seen = torch.ones(bench.load.rows, bench.load.prefix + bench.load.length, device=bench.ids_RT.device).long()
    types = torch.zeros_like(bench.ids_RT)

    def run() -> Tensor:
        given = {"input_ids": bench.ids_RT, "position_ids": bench.positions_RT, "token_type_ids": types}
        output = bench.padded(**given, attention_mask=seen, past_key_values=DynamicCache(layers))
        hidden_TM: Tensor = output.last_hidden_state.flatten(0, 1)
        return hidden_TM

    return run


def compile_pointwise(model: nn.Module, device: torch.device) -> None:
    """Let Inductor fuse what stands around a layer's products: bias and GELU, residual and norm. Layers share it."""
    backend = "inductor" if device.type == "cuda" else "eager"
    layers: Any = model.get_submodule("encoder.layer")
    for layer in layers:
        for module in (layer.attention.output, layer.intermediate, layer.output):
            module.compile(backend=backend, dynamic=False)


def measure_route(name: str, prepare: Callable[[Bench], Callable[[], Tensor]], bench: Bench, report: Report) -> None:
    """Compare a route with the padded one, then time it; add what came of it."""
    device, dtype = bench.ids_RT.device, bench.prompts_L2RHPD.dtype
    try:
        wanted = padded_route(bench)()
        report.measured.append(_measure_route(name, prepare(bench), wanted, bench.load, FAR[dtype], device))
    except Exception:  # kept, and held against the run
        report.failed[f"{bench.load.name}: {name}"] = traceback.format_exc()


def _measure_route(
    name: str, run: Callable[[], Tensor], wanted: Tensor, load: Load, limit: float, device: torch.device
) -> Measured:
    found = distance(run(), wanted)
    if not found <= limit:
        raise ValueError(f"{found:.1e} from the padded route, wanted {limit:.0e}")
    timed = measure([run], device)
    graph_ms = None if timed.graph_us is None else timed.graph_us / 1e3
    rate = load.tokens / timed.best_us * 1e6
    return Measured(load.name, name, graph_ms, timed.eager_us / 1e3, rate, found, timed.uncaptured)


def run(
    device: torch.device,
    loads: Sequence[Load],
    sizes: dict[str, int],
    dtype: torch.dtype,
    file: Path | None = None,
) -> Report:
    """Measure every load, first without compiling; a file is written after each step."""
    report = Report(device_name(device), commit(), device.type != "cuda")
    with torch.inference_mode():
        models = make_models(sizes, dtype, device)
        benches = [make_bench(models, load, dtype, device) for load in loads]
        for bench in benches:
            measure_route(OURS, packed_route, bench, report)
            measure_route(PADDED, padded_route, bench, report)
            keep(report, file)
        compile_pointwise(models[0], device)
        for bench in benches:
            measure_route(COMPILED, packed_route, bench, report)
            keep(report, file)
    return report


def show(report: Report) -> None:
    typer.echo(f"{report.device}; torch {torch.__version__}; commit {report.commit}")
    for name, trace in report.failed.items():
        typer.echo(f"{name} failed: {trace.strip().splitlines()[-1]}")
    if report.rehearsed:
        typer.echo(f"rehearsal: no speeds; {len(report.measured)} comparisons")
        return
    typer.echo("| load | route | graph ms | eager ms | tokens/s | from the padded |\n|---|---|---|---|---|---|")
    for each in report.measured:
        graph = "-" if each.graph_ms is None else f"{each.graph_ms:.3f}"
        speeds = f"{graph} | {each.eager_ms:.3f} | {each.tokens_per_s:,.0f}"
        typer.echo(f"| {each.load} | {each.route} | {speeds} | {each.distance:.1e} |")
    from benchmarks.kernel_goals import table

    typer.echo(f"\n{table(report.goals())}")


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="also write everything here")] = None,
    rehearsed: Annotated[bool, typer.Option("--rehearse", help="on a CPU, interpreted, small, without speeds")] = False,
) -> None:
    """Measure a whole encoder."""
    if rehearsed:
        rehearse()
        report = run(torch.device("cpu"), REHEARSED, SMALL, torch.float32, json_file)
    elif torch.cuda.is_available():
        report = run(torch.device("cuda"), (THROUGHPUT, LATENCY), ROBERTA_LARGE, torch.bfloat16, json_file)
    else:
        typer.echo("no CUDA device is here: nothing was measured; --rehearse runs the same code on a CPU")
        raise SystemExit(NO_DEVICE)
    show(report)
    raise SystemExit(bool(report.failed))


if __name__ == "__main__":
    typer.run(main)
