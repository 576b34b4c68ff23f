"""How fast prefix attention is on this CPU, against what torch offers, and against the bare bmm of its shapes.

    python -m benchmarks.attention_cpu [--threads N] [--turns N] [--no-flex] [--json FILE]

It refuses to print a speed before every route has been compared with the definition in fp64; cases, definition and
tolerances come from the tests. Routes take turns, in an order that changes, so that a slow moment of the machine and
what lies in its caches hit all of them alike. A speed is that of a route's best turn, a ratio the median of the turns'.
It refuses to know models: the linear layers around attention are not here.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path  # noqa: TC003 - typer reads annotations
from statistics import median
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.environment import commit, hardware
from tests.kernel_cases import TOLERANCE, Case, distance, make_case

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

HEADS = [(16, 64), (12, 32)]
UNIFORM = {"128/128": (16, 128, 128), "128/20": (16, 128, 20), "384/128": (8, 384, 128), "32/20": (32, 32, 20)}
"""Rows, own tokens L and prefix tokens P; every four rows share a task."""
OURS, ROWS, PADDED, FLEX, BMM = "prefix_attention", "SDPA row by row", "padded SDPA, mask", "flex_attention", "bare bmm"
COLUMNS = {OURS: "ours", ROWS: "rows", PADDED: "padded", FLEX: "flex", BMM: "bmm"}


@dataclass(frozen=True)
class Workload:
    """One batch, and the routes that answer it as packed [T, H, D]."""

    name: str
    case: Case
    lengths: Sequence[int]
    prefix_lengths: Sequence[int]
    """P of each row."""

    @property
    def gflop(self) -> float:
        _, heads, dim = self.case.q_THD.shape
        pairs = sum(own * (own + lent) for own, lent in zip(self.lengths, self.prefix_lengths, strict=True))
        return 4 * heads * dim * pairs / 1e9

    def rows(self, x_THD: Tensor) -> list[Tensor]:
        """Split packed tokens into [H, L, D] of each row."""
        bounds = pairwise(self.case.plan.row_start_R1.tolist())
        return [x_THD[begin:end].transpose(0, 1) for begin, end in bounds]

    def lent(self, pool_HND: Tensor) -> list[Tensor]:
        """Take the prefix [H, P, D] of each row."""
        starts = self.case.prefix.slot_start_S[self.case.plan.slot_R.long()].tolist()
        return [pool_HND[:, s : s + p] for s, p in zip(starts, self.prefix_lengths, strict=True)]


def concatenated(work: Workload) -> Callable[[], Tensor]:
    """SDPA row by row over [prefix ; own] concatenated per row."""
    case, prefix = work.case, work.case.prefix
    rows = [work.rows(x) for x in case.packed]
    lent = [work.lent(prefix.pool_k_HND), work.lent(prefix.pool_v_HND)]

    def run() -> Tensor:
        outs = []
        for q, k, v, lent_k, lent_v in zip(*rows, *lent, strict=True):
            keys, values = torch.cat([lent_k, k], 1), torch.cat([lent_v, v], 1)
            outs.append(scaled_dot_product_attention(q[None], keys[None], values[None])[0].transpose(0, 1))
        return torch.cat(outs)

    return run


def padded(work: Workload) -> Callable[[], Tensor]:
    """SDPA over a padded batch with a mask; q, k, v come padded, as from a padded model, and are not timed."""
    case, prefix = work.case, work.case.prefix
    longest, most_lent = max(work.lengths), max(work.prefix_lengths)
    q, k, v = (torch.stack([pad(row, (0, 0, 0, longest - row.shape[1])) for row in work.rows(x)]) for x in case.packed)
    lent_k, lent_v = (
        torch.stack([pad(row, (0, 0, 0, most_lent - row.shape[1])) for row in work.lent(pool)])
        for pool in (prefix.pool_k_HND, prefix.pool_v_HND)
    )
    own, lent = (torch.tensor(lengths)[:, None] for lengths in (work.lengths, work.prefix_lengths))
    real = torch.arange(longest) < own
    mask = torch.cat([torch.arange(most_lent) < lent, real], 1)[:, None, None, :]

    def run() -> Tensor:
        keys, values = torch.cat([lent_k, k], 2), torch.cat([lent_v, v], 2)
        return scaled_dot_product_attention(q, keys, values, attn_mask=mask)

    return lambda: run().transpose(1, 2)[real]


def flexible(work: Workload) -> Callable[[], Tensor]:
    """flex_attention, compiled, over one buffer of the pool and all own keys, with a mask that is not timed."""
    case, prefix = work.case, work.case.prefix
    q, k, v = (x.transpose(0, 1)[None] for x in case.packed)
    lent = prefix.pool_k_HND.shape[1]
    keys, values = (torch.cat([pool.nan_to_num()[None], own], 2) for pool, own in zip(prefix[:2], (k, v), strict=True))
    row_T = torch.arange(len(work.lengths)).repeat_interleave(torch.tensor(work.lengths))
    slot_T = case.plan.slot_R.long()[row_T]
    start_T, length_T = prefix.slot_start_S[slot_T], prefix.slot_length_S[slot_T]

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        is_lent = (j >= start_T[i]) & (j < start_T[i] + length_T[i])
        return is_lent | ((j >= lent) & (row_T[i] == row_T[(j - lent).clamp_min(0)]))

    mask = create_block_mask(sees, None, None, len(row_T), lent + len(row_T), device="cpu")
    torch.compiler.reset()  # it compiles a handful of shapes and then no more
    attend = torch.compile(flex_attention, dynamic=False)

    def run() -> Tensor:
        keys[:, :, lent:] = k
        values[:, :, lent:] = v
        out: Tensor = attend(q, keys, values, block_mask=mask, scale=case.scale)
        return out[0].transpose(0, 1)

    return run


def bare_bmm(work: Workload) -> Callable[[], None]:
    """Only the two bmm of every row, on contiguous tensors that are already there: the rate to aim at."""
    _, heads, dim = work.case.q_THD.shape
    shapes = [(own, own + lent) for own, lent in zip(work.lengths, work.prefix_lengths, strict=True)]
    make = work.case.q_THD.new_empty
    rows = [(make(heads, i, dim), make(heads, j, dim), make(heads, i, j)) for i, j in shapes]
    for tensor in (tensor for row in rows for tensor in row):
        tensor.fill_(0.5)

    def run() -> None:
        for q, k, p in rows:
            torch.bmm(q, k.mT)
            torch.bmm(p, k)

    return run


def workloads(heads: int, dim: int, dtype: torch.dtype) -> list[Workload]:
    made = []
    for name, (rows, own, lent) in UNIFORM.items():
        slots = [row // 4 for row in range(rows)]
        case = make_case([own] * rows, slots, [lent] * (rows // 4), heads=heads, dim=dim, dtype=dtype)
        made.append(Workload(f"{rows} rows {name}", case, [own] * rows, [lent] * rows))
    chance, lent_by_slot = random.Random(0), [0, 1, 5, 16, 17, 20, 64, 128]
    lengths, slots = [chance.randint(8, 72) for _ in range(32)], sorted(chance.randrange(8) for _ in range(32))
    case = make_case(lengths, slots, lent_by_slot, heads=heads, dim=dim, dtype=dtype)
    return [*made, Workload("32 rows mixed, 8 tasks", case, lengths, [lent_by_slot[slot] for slot in slots])]


@dataclass(frozen=True)
class Measured:
    """What came of one workload."""

    workload: str
    dtype: str
    heads: int
    dim: int
    gflop_per_s: dict[str, float]
    """Of each route's best turn."""
    ratio: dict[str, float]
    """Time of each peer over ours: above 1, we are faster."""
    share_of_bmm: float

    @property
    def ahead(self) -> list[str]:
        """The peers that are faster than we are."""
        return [COLUMNS[name] for name, ratio in self.ratio.items() if ratio < 1]

    @property
    def line(self) -> str:
        speeds = " ".join(f"{self.gflop_per_s.get(name, float('nan')):7.1f}" for name in COLUMNS)
        ratios = " ".join(f"{self.ratio.get(name, float('nan')):7.2f}" for name in (ROWS, PADDED, FLEX))
        verdict = f"behind {', '.join(self.ahead)}" if self.ahead else "yes"
        return f"{self.workload:24} {speeds}   {ratios} {self.share_of_bmm:7.0%}   {verdict}"


def take_turns(routes: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Time all routes in each turn, in one order and then in the other; seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    for turn in range(turns):
        for name in sorted(routes, reverse=turn % 2 == 1):
            began = time.perf_counter()
            routes[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def measure(work: Workload, turns: int, *, flex: bool = False) -> Measured:
    """Compare every route with the definition, then time them.

    Raises:
        SystemExit: when a route is wrong.
    """
    _, heads, dim = work.case.q_THD.shape
    dtype = work.case.q_THD.dtype
    routes = {OURS: work.case.run, ROWS: concatenated(work), PADDED: padded(work)}
    if flex:
        routes[FLEX] = flexible(work)
    exact = work.case.exact()
    for name, run in routes.items():
        found = distance(run(), exact)
        if not found <= TOLERANCE[dtype]:
            raise SystemExit(f"{name}, {work.name}, {dtype}: {found:.1e} from the definition; no speeds are printed")
    seconds = take_turns({**routes, BMM: bare_bmm(work)}, turns)
    ratio = {name: median(x / own for x, own in zip(seconds[name], seconds[OURS], strict=True)) for name in seconds}
    rate = {name: work.gflop / min(spent) for name, spent in seconds.items()}
    peers = {name: ratio[name] for name in list(routes)[1:]}
    return Measured(work.name, str(dtype).removeprefix("torch."), heads, dim, rate, peers, ratio[BMM])


def why_no_flex(asked: bool) -> str | None:
    """Why flex_attention takes no part; None when it does."""
    if not asked:
        return "not asked for"
    return None if shutil.which("g++") or shutil.which("clang++") else "torch.compile finds no C++ compiler"


def main(
    threads: Annotated[int, typer.Option(help="threads of one operator")] = 1,
    turns: Annotated[int, typer.Option(help="turns that each route takes")] = 20,
    flex: Annotated[bool, typer.Option(help="compile flex_attention for every shape, which takes minutes")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the figures here")] = None,
) -> None:
    """Measure prefix attention on this CPU."""
    torch.set_num_threads(threads)
    about = f"{hardware()}; {threads} threads; torch {torch.__version__}; commit {commit()}"
    typer.echo(about)
    absence = why_no_flex(flex)
    if absence:
        typer.echo(f"flex_attention takes no part: {absence}")
    everything = []
    for dtype in (torch.float32, torch.bfloat16):
        for heads, dim in HEADS:
            typer.echo(
                f"\n{dtype}, H={heads}, D={dim}; GFLOP/s of 4 L (P + L) D H per row, and time of a peer over ours"
            )
            columns = " ".join(f"{name:>7}" for name in (*COLUMNS.values(), "  /rows", "/padded", "/flex"))
            typer.echo(f"{'L/P':24} {columns}  of bmm   at or above all")
            with torch.inference_mode():
                for work in workloads(heads, dim, dtype):
                    everything.append(measure(work, turns, flex=not absence))
                    typer.echo(everything[-1].line)
    if json_file:
        json_file.write_text(json.dumps({"about": about, "measured": [asdict(one) for one in everything]}, indent=1))


if __name__ == "__main__":
    typer.run(main)
