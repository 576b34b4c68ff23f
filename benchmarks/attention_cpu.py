"""How fast prefix attention is on this CPU, against what torch offers, and against the bare bmm of its shapes.

    python -m benchmarks.attention_cpu [--threads N] [--repeats N]

It refuses to print a speed before every route has been compared with the definition in fp64; cases, definition and
tolerances come from the tests. Routes take turns, so that a slow moment of the machine hits all of them alike;
the best of the repeats counts. It refuses to know models: the linear layers around attention are not here.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks.environment import commit, hardware
from tests.kernel_cases import TOLERANCE, Case, distance, make_case

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

HEADS = [(16, 64), (12, 32)]
UNIFORM = {"128/128": (16, 128, 128), "128/20": (16, 128, 20), "384/128": (8, 384, 128), "32/20": (32, 32, 20)}
"""Rows, own tokens L and prefix tokens P; every four rows share a task."""
PADDED_MASK = "padded SDPA, mask"
OURS = "prefix_attention"


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


def best_seconds(routes: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time the routes in turns, and return the best of each."""
    best = dict.fromkeys(routes, float("inf"))
    for _ in range(repeats):
        for name, run in routes.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def measure(work: Workload, repeats: int) -> str:
    """Compare every route with the definition, then time them; one line.

    Raises:
        SystemExit: when a route is wrong.
    """
    dtype = work.case.q_THD.dtype
    routes = {OURS: work.case.run, "SDPA row by row": concatenated(work), PADDED_MASK: padded(work)}
    exact = work.case.exact()
    for name, run in routes.items():
        found = distance(run(), exact)
        if not found <= TOLERANCE[dtype]:
            raise SystemExit(f"{name}, {work.name}, {dtype}: {found:.1e} from the definition; no speeds are printed")
    seconds = best_seconds({**routes, "bmm": bare_bmm(work)}, repeats)
    rate = {name: work.gflop / spent for name, spent in seconds.items()}
    ratios = [seconds[name] / seconds[OURS] for name in list(routes)[1:]]
    speeds = " ".join(f"{rate[name]:9.1f}" for name in [*routes, "bmm"])
    return f"{work.name:24} {speeds}   {ratios[0]:6.2f} {ratios[1]:6.2f} {rate[OURS] / rate['bmm']:8.0%}"


def main(
    threads: Annotated[int, typer.Option(help="threads of one operator")] = 1,
    repeats: Annotated[int, typer.Option(help="turns that each route takes")] = 20,
) -> None:
    """Measure prefix attention on this CPU."""
    torch.set_num_threads(threads)
    typer.echo(f"{hardware()}; {threads} threads; torch {torch.__version__}; commit {commit()}")
    for dtype in (torch.float32, torch.bfloat16):
        for heads, dim in HEADS:
            typer.echo(f"\n{dtype}, H={heads}, D={dim}; GFLOP/s of 4 L (P + L) D H per row, and time over ours")
            typer.echo(
                f"{'L/P':24} {'ours':>9} {'SDPA rows':>9} {'padded':>9} {'bmm':>9}   {'/rows':>6} {'/padd':>6} of bmm"
            )
            with torch.inference_mode():
                for work in workloads(heads, dim, dtype):
                    typer.echo(measure(work, repeats))


if __name__ == "__main__":
    typer.run(main)
