"""How fast one training step of a deep prompt is, against the original implementation restated on transformers.

    python -m benchmarks.train_step [--turns N] [--threads N] [--alike] [--json FILE]

Batches of 32 SST-2 rows, 20 prefix tokens in every layer of MiniLM, frozen; dropouts off. Ours is the trainer's own
`Network`: packed rows through the one operator. The original (THUDM/P-tuning-v2, restated with transformers' cache, the
same weights and the same rows): an embedding looked up per row, [B, P, 2 L M], keys and values concatenated to those of
the padded batch in every layer, eager attention with a mask; padded to the longest row, and to 128 as its script says.
One more route is what transformers would take today: the same with SDPA. It refuses to print a time before the
gradients of every route agree with those of the original in fp64. Routes take turns over the same batches; a ratio is
the median of the turns'. It refuses to know data loading, schedules and evaluation.

Shape letters: B rows, S padded tokens of a row, L layers, H heads, D head dim, M model width, P prefix tokens.
"""

from __future__ import annotations

import copy
import csv
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
import transformers
import typer
from torch import nn
from transformers import AutoModel, DynamicCache

from benchmarks.environment import commit, hardware
from benchmarks.random_backbone import make_backbone
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.sources import locate
from prefixbank.model_store.errors import BackboneError
from prefixbank.model_store.tasks.features import Features
from prefixbank.trainer import network as trainer
from prefixbank.trainer.batches import epoch_order
from prefixbank.trainer.readers import TextExample
from prefixbank.trainer.recipe import parse
from prefixbank.trainer.rows import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.trainer.network import Network
    from prefixbank.trainer.recipe import Recipe

SST2 = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "glue" / "SST-2" / "train.tsv"
BATCH_ROWS, PREFIX, MOST_TOKENS = 32, 20, 128
LOG_NORMAL = (2.35, 0.62)
"""Mean and deviation of the logarithm of a row's tokens, as in SST-2's training file; for where that is absent."""
WARM_UP = 4
"""Turns until a process has the memory it needs, and takes no more page faults."""
OURS = "packed, ours"
LONGEST, PUBLISHED, SDPA = "padded to the longest", f"padded to {MOST_TOKENS}", "padded to the longest, SDPA"
FAR = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Largest relative distance of a gradient from the one in fp64 that the gate lets pass."""


class Gradients(NamedTuple):
    """What both implementations train, in one layout."""

    prompt: Tensor
    """[L, 2, H, P, D]."""
    classifier: Tensor


class PTuningV2(nn.Module):
    """The original's prefix encoder and classifier around a frozen encoder."""

    def __init__(self, network: Network, encoder: nn.Module, padded_to: int | None) -> None:
        super().__init__()
        kv_L2HPD = network.prompt.kv_N2HPD.detach()
        self.num_layers, _, self.heads, self.prefix, self.dim = kv_L2HPD.shape
        weight = kv_L2HPD.permute(3, 0, 1, 2, 4).reshape(self.prefix, -1).clone()
        self.embedding = nn.Embedding.from_pretrained(weight, freeze=False)
        self.classifier = copy.deepcopy(network.head.classifier)
        self.encoder = encoder
        self.padded_to = padded_to

    def past(self, num_rows: int) -> DynamicCache:
        """Keys and values of every layer [B, H, P, D], the prompt looked up once per row."""
        looked_up = self.embedding(torch.arange(self.prefix).expand(num_rows, -1))
        kv = looked_up.view(num_rows, self.prefix, self.num_layers * 2, self.heads, self.dim)
        layers = kv.to(self.encoder.dtype).permute(2, 0, 3, 1, 4).split(2)
        return DynamicCache([(kv_2BHPD[0], kv_2BHPD[1]) for kv_2BHPD in layers])

    def loss(self, rows: Sequence[Row]) -> Tensor:
        longest = self.padded_to or max(row.num_tokens for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros(len(rows), self.prefix + longest, dtype=torch.int64)
        mask[:, : self.prefix] = 1
        for number, row in enumerate(rows):
            ids[number, : row.num_tokens] = torch.from_numpy(row.features.token_ids)
            mask[number, self.prefix :][: row.num_tokens] = 1
        output = self.encoder(input_ids=ids, attention_mask=mask, past_key_values=self.past(len(rows)))
        logits = self.classifier(output.pooler_output.to(self.classifier.weight.dtype))
        return nn.functional.cross_entropy(logits, torch.tensor([int(row.targets[0]) for row in rows]))

    def gradients(self) -> Gradients:
        grad = self.embedding.weight.grad
        assert grad is not None
        prompt = grad.view(self.prefix, self.num_layers, 2, self.heads, self.dim).permute(1, 2, 3, 0, 4)
        return Gradients(prompt, _grad(self.classifier.weight))

    def trained(self) -> list[nn.Parameter]:
        return [*self.embedding.parameters(), *self.classifier.parameters()]


class Ours:
    """The trainer's network, under the same names."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def loss(self, rows: Sequence[Row]) -> Tensor:
        batch = self.network.assemble(rows)
        return nn.functional.cross_entropy(self.network.training_logits(batch), batch.targets)

    def gradients(self) -> Gradients:
        return Gradients(_grad(self.network.prompt.kv_N2HPD), _grad(self.network.head.classifier.weight))

    def trained(self) -> list[nn.Parameter]:
        return list(self.network.trained().values())


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@dataclass(frozen=True)
class Bench:
    """The rows, our network, and every route to a step."""

    network: Network
    batches: list[list[Row]]
    """Of one training epoch, shortest row first in each, as our trainer has them."""
    routes: dict[str, Ours | PTuningV2]
    exact: PTuningV2
    """The original in fp64."""


def make_bench(folder: str, dtype: torch.dtype, num_batches: int, *, alike: bool, with_published: bool = True) -> Bench:
    """Build every route over one set of weights.

    Args:
        folder: of the backbone, or `minilm`.
        alike: put rows of like length together, as our trainer does; else at random, as the original does.
    """
    backbone = load_backbone(folder, dtype=dtype)
    recipe = parse(
        {
            "family": "text-classification",
            "data": {"train": str(SST2)},
            "backbone": folder,
            "prompt": {"length": PREFIX, "position_offset": "length", "init": "random"},
            "head": {"pooler": "backbone", "dropout": 0.0},
        }
    )
    rows = read_rows(backbone, num_batches * BATCH_ROWS)
    network = trainer.build(recipe, backbone, rows, 2)
    load = partial(load_plain, folder, dtype)
    eager = load("eager")
    routes: dict[str, Ours | PTuningV2] = {OURS: Ours(network), LONGEST: PTuningV2(network, eager, None)}
    if with_published:
        routes[PUBLISHED] = PTuningV2(network, eager, MOST_TOKENS)
    routes[SDPA] = PTuningV2(network, load("sdpa"), None)
    exact = PTuningV2(network, load_plain(folder, torch.float64, "eager"), None).double()
    return Bench(network, batches_of(rows, alike=alike), routes, exact)


def load_plain(folder: str, dtype: torch.dtype, attention: str) -> nn.Module:
    """transformers' own model with its pooler, frozen."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = AutoModel.from_pretrained(locate(folder), dtype=dtype, attn_implementation=attention)
    plain: nn.Module = model.eval().requires_grad_(False)
    return plain


def read_rows(backbone: Backbone, count: int) -> list[Row]:
    """Rows of SST-2's training file drawn at random, or random tokens of log-normal lengths."""
    chance = np.random.default_rng(0)
    if SST2.exists():
        with SST2.open(encoding="utf-8") as file:
            lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        chosen = [lines[index] for index in chance.choice(len(lines), count, replace=False)]
        ids = [backbone.tokenizer.encode(line["sentence"]).ids[:MOST_TOKENS] for line in chosen]
        labels = [int(line["label"]) for line in chosen]
    else:
        lengths = np.clip(chance.lognormal(*LOG_NORMAL, count).round().astype(int), 3, MOST_TOKENS)
        vocabulary = backbone.tokenizer.get_vocab_size()
        ids = [chance.integers(5, vocabulary, length).tolist() for length in lengths]
        labels = chance.integers(0, 2, count).tolist()
    example = TextExample(("",), "", "")
    arrays = (np.array(one, dtype=np.int64) for one in ids)
    return [
        Row(Features(one, np.zeros_like(one)), np.array([label]), example)
        for one, label in zip(arrays, labels, strict=True)
    ]


def batches_of(rows: Sequence[Row], *, alike: bool) -> list[list[Row]]:
    lengths = [row.num_tokens for row in rows]
    if alike:
        order = epoch_order(lengths, BATCH_ROWS, seed=0, epoch=0)
    else:
        shuffled = np.random.default_rng(1).permutation(len(rows)).reshape(-1, BATCH_ROWS)
        order = [sorted(batch.tolist(), key=lengths.__getitem__) for batch in shuffled]
    return [[rows[index] for index in batch] for batch in order]


def distances(bench: Bench) -> dict[str, float]:
    """Compare the gradients of every route with the exact ones, over the first batch.

    Raises:
        SystemExit: when one is too far off.
    """
    limit = FAR[bench.network.backbone.dtype]
    wanted = _gradients(bench.exact, bench.batches[0])
    found: dict[str, float] = {}
    for name, route in bench.routes.items():
        got = _gradients(route, bench.batches[0])
        found[name] = max(map(_distance, got, wanted))
        if not found[name] <= limit:
            raise SystemExit(f"{name}: gradients {found[name]:.1e} from those in fp64, wanted {limit:.0e}; no times")
    return found


def _gradients(route: Ours | PTuningV2, rows: Sequence[Row]) -> Gradients:
    torch.autograd.backward(route.loss(rows))
    gradients = Gradients(*(grad.clone() for grad in route.gradients()))
    for parameter in route.trained():
        parameter.grad = None
    return gradients


def _distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def optimiser_of(route: Ours | PTuningV2, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(route.trained(), lr=1e-6, weight_decay=recipe.optimiser.weight_decay, fused=True)


@dataclass(frozen=True)
class Report:
    """What came of one dtype."""

    dtype: str
    backbone: str
    batches: str
    tokens: float
    """Real tokens of a batch, on average."""
    padded_tokens: float
    """Tokens of a batch that is padded to its longest row, on average."""
    gradient_distances: dict[str, float]
    step_ms: dict[str, float]
    """Median: forward, backward, gradient of prompt and head."""
    step_with_optimiser_ms: dict[str, float]
    ratio: dict[str, float]
    """Median over the turns of a route's step over ours."""
    ratio_with_optimiser: dict[str, float]
    tokens_per_s: dict[str, float]
    """Real tokens, without the optimiser."""


def take_turns(bench: Bench, turns: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each turn, before and after the optimiser has stepped, after some turns that are not timed."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in bench.routes}
    optimisers = {name: optimiser_of(route, bench.network.recipe) for name, route in bench.routes.items()}
    for turn in range(-WARM_UP, turns):
        rows = bench.batches[turn % len(bench.batches)]
        for name in sorted(bench.routes, reverse=turn % 2 == 1):
            spent = _step(bench.routes[name], optimisers[name], rows, bench.network.recipe)
            if turn >= 0:
                seconds[name].append(spent)
    return seconds


def _step(
    route: Ours | PTuningV2, optimiser: torch.optim.Optimizer, rows: Sequence[Row], recipe: Recipe
) -> tuple[float, float]:
    began = time.perf_counter()
    torch.autograd.backward(route.loss(rows))
    differentiated = time.perf_counter()
    nn.utils.clip_grad_norm_(route.trained(), recipe.optimiser.clip_norm)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return differentiated - began, time.perf_counter() - began


def measure(bench: Bench, turns: int, backbone: str, batches: str) -> Report:
    """Check the gradients, then time the steps."""
    far = distances(bench)
    seconds = take_turns(bench, turns)
    bare, whole = ({name: [one[i] for one in spent] for name, spent in seconds.items()} for i in (0, 1))
    used = bench.batches[:turns]
    tokens = mean(sum(row.num_tokens for row in batch) for batch in used)
    return Report(
        dtype=str(bench.network.backbone.dtype).removeprefix("torch."),
        backbone=backbone,
        batches=batches,
        tokens=tokens,
        padded_tokens=mean(len(batch) * max(row.num_tokens for row in batch) for batch in used),
        gradient_distances=far,
        step_ms={name: 1e3 * median(spent) for name, spent in bare.items()},
        step_with_optimiser_ms={name: 1e3 * median(spent) for name, spent in whole.items()},
        ratio=_ratios(bare),
        ratio_with_optimiser=_ratios(whole),
        tokens_per_s={name: tokens / mean(spent) for name, spent in bare.items()},
    )


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {
        name: median(x / own for x, own in zip(spent, seconds[OURS], strict=True)) for name, spent in seconds.items()
    }


def show(report: Report) -> None:
    typer.echo(
        f"\n{report.dtype}, {report.backbone}: {BATCH_ROWS} rows {report.batches}, {report.tokens:.0f} tokens, "
        f"{report.padded_tokens:.0f} padded to the longest, {BATCH_ROWS * MOST_TOKENS} to {MOST_TOKENS}; P={PREFIX}"
    )
    typer.echo(
        f"  {'':29} {'step':>9} {'/ ours':>7} {'+ AdamW':>12} {'/ ours':>7} {'tokens/s':>9}   gradients differ by"
    )
    for name, ms in report.step_ms.items():
        typer.echo(
            f"  {name:29} {ms:6.1f} ms {report.ratio[name]:7.2f} {report.step_with_optimiser_ms[name]:9.1f} ms "
            f"{report.ratio_with_optimiser[name]:7.2f} {report.tokens_per_s[name]:9.0f}   "
            f"{report.gradient_distances[name]:.1e}"
        )


def backbone_folder(parent: str) -> tuple[str, str]:
    """The packaged MiniLM, or one of its shape with random weights; and what it is called."""
    try:
        locate("minilm")
    except BackboneError:
        return str(make_backbone(Path(parent), small=False)), "MiniLM's shape, random weights"
    return "minilm", "MiniLM"


def main(
    turns: Annotated[int, typer.Option(help="turns that each route takes, each over another batch")] = 16,
    threads: Annotated[int, typer.Option(help="threads of one operator")] = 1,
    alike: Annotated[
        bool, typer.Option("--alike", help="rows of like length together, as our trainer has them")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the figures here")] = None,
) -> None:
    """Measure one training step against the original implementation, in fp32 and bf16."""
    torch.set_num_threads(threads)
    about: dict[str, Any] = {"about": f"{hardware()}; {threads} threads; torch {torch.__version__}; commit {commit()}"}
    about["transformers"] = transformers.__version__
    about["rows"] = "SST-2 train" if SST2.exists() else "random tokens, log-normal lengths"
    typer.echo("; ".join(about.values()))
    reports = []
    with tempfile.TemporaryDirectory() as parent:
        folder, name = backbone_folder(parent)
        for dtype in (torch.float32, torch.bfloat16):
            bench = make_bench(folder, dtype, turns, alike=alike)
            reports.append(measure(bench, turns, name, "of like length" if alike else "at random"))
            show(reports[-1])
    if json_file:
        json_file.write_text(json.dumps({**about, "reports": [asdict(report) for report in reports]}, indent=1))


if __name__ == "__main__":
    typer.run(main)
