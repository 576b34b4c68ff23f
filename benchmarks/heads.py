"""What the heads of a batch cost by how many tasks share it, against what torch offers.

    python -m benchmarks.heads [--rows 128] [--width 768] [--device cuda] [--repeats N]

It refuses to print a speed before every route has been compared with the definition in fp64; cases, definition and
tolerances come from the tests. On a CPU the routes take turns and the best of the repeats counts; on a GPU it is the
median with a cold cache. Per-task loops get their rows grouped beforehand and need not put logits back in order.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
import typer
from torch.nn.functional import linear

from benchmarks.environment import commit, hardware
from prefixbank.kernels.attention import route_of
from prefixbank.kernels.head_plan import HeadRow
from tests.head_cases import HeadCase, make_heads, plan_of
from tests.kernel_cases import TOLERANCE, distance

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Routes = dict[str, Callable[[], Tensor]]

OURS = "apply_heads"
DTYPE = torch.float32
"""Head arenas are fp32."""


class Kind(NamedTuple):
    """Rows that differ in nothing but their task."""

    name: str
    vectors: int
    classes: int
    """Per head; 0 for as many as the model is wide."""


KINDS = [Kind("pooled, 3 classes", 1, 3), Kind("own pooler", 1, 0), Kind("32 tokens, 9 classes", 32, 9)]


def make_case(kind: Kind, rows: int, tasks: int, width: int, device: str) -> HeadCase:
    """Rows whose neighbours are of different tasks, so that nothing is gained by their order."""
    classes = kind.classes or width
    return make_heads(
        [HeadRow(0, kind.vectors, row % tasks * classes, classes) for row in range(rows)], width, device=device
    )


def loop_over_tasks(case: HeadCase, kind: Kind, tasks: int) -> Callable[[], Tensor]:
    """One linear layer per task, over all of its rows."""
    x_NM, weight_QM, bias_Q = case.differentiated
    by_row = torch.arange(len(x_NM), device=x_NM.device).view(-1, kind.vectors)
    mine = [by_row[task::tasks].flatten() for task in range(tasks)]
    heads = list(zip(weight_QM.chunk(tasks), bias_Q.chunk(tasks), strict=True))
    back = torch.cat(mine).argsort()

    def run() -> Tensor:
        return torch.cat([linear(x_NM[own], *head) for own, head in zip(mine, heads, strict=True)])

    run.in_order = lambda logits: logits[back]  # type: ignore[attr-defined]
    return run


def gathered_bmm(case: HeadCase, kind: Kind) -> Callable[[], Tensor]:
    """One bmm over a copy of the head of every row."""
    x_NM, weight_QM, bias_Q = case.differentiated
    starts_R = torch.tensor([row.head_start for row in case.rows], device=x_NM.device)
    head_RC = starts_R[:, None] + torch.arange(case.rows[0].num_classes, device=x_NM.device)
    x_RLM = x_NM.view(len(case.rows), kind.vectors, -1)

    def run() -> Tensor:
        logits_RLC = torch.baddbmm(bias_Q[head_RC][:, None], x_RLM, weight_QM[head_RC].mT)
        return logits_RLC.flatten(0, 1)

    return run


def check(name: str, found_NC: Tensor, exact_NC: Tensor) -> None:
    """Raise SystemExit when a route is wrong."""
    away = distance(found_NC.cpu(), exact_NC)
    if not away <= TOLERANCE[DTYPE]:
        raise SystemExit(f"{name}: {away:.1e} from the definition; no speeds are printed")


def seconds_of(routes: Routes, device: str, repeats: int) -> dict[str, float]:
    """Median with a cold cache on a GPU; best of the turns on a CPU."""
    if device == "cuda":
        from triton.testing import do_bench

        return {name: do_bench(run, return_mode="median") / 1e3 for name, run in routes.items()}
    best = dict.fromkeys(routes, float("inf"))
    for _ in range(repeats):
        for name, run in routes.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def measure(kind: Kind, rows: int, tasks: int, width: int, device: str, repeats: int) -> dict[str, float]:
    """Check every route against the definition, then time them and the plan."""
    case = make_case(kind, rows, tasks, width, device)
    plan, route = case.plan, route_of(torch.device(device))
    loop = loop_over_tasks(case, kind, tasks)
    routes: Routes = {
        OURS: lambda: case.run(route, plan),
        "linear per task": loop,
        "gathered bmm": gathered_bmm(case, kind),
    }
    exact_NC = case.exact()
    for name, run in routes.items():
        logits_NC = run()
        check(name, loop.in_order(logits_NC) if run is loop else logits_NC, exact_NC)  # type: ignore[attr-defined]
    seconds = seconds_of(routes, device, repeats)
    return seconds | seconds_of({"plan": lambda: plan_of(case.rows, device).blob_I}, "cpu", repeats)


def main(
    rows: Annotated[int, typer.Option(help="rows of the batch")] = 128,
    width: Annotated[int, typer.Option(help="model width M")] = 768,
    device: Annotated[str, typer.Option(help="cpu or cuda; by default a GPU where there is one")] = "",
    repeats: Annotated[int, typer.Option(help="turns that each route takes on a CPU")] = 10,
) -> None:
    """Measure heads by the number of distinct tasks."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{hardware()}; 1 thread"
    typer.echo(f"{where}; torch {torch.__version__}; commit {commit()}; {rows} rows, M={width}, {DTYPE}")
    with torch.inference_mode():
        for kind in KINDS:
            typer.echo(f"\n{kind.name}; µs, and times what one task costs")
            one: dict[str, float] = {}
            for tasks in sorted({1, min(8, rows), min(32, rows), rows}):
                seconds = measure(kind, rows, tasks, width, device, repeats)
                one = one or seconds
                cells = (f"{name} {spent * 1e6:9.1f} {spent / one[name]:6.2f}" for name, spent in seconds.items())
                typer.echo(f"{tasks:5} tasks   {'   '.join(cells)}")


if __name__ == "__main__":
    typer.run(main)
