"""The memory that training takes beside the weights: one route in a process of its own.

    python -m benchmarks.train_memory ROUTE [--dtype bfloat16] [--device cuda] ...

The most bytes of tensors that live at once, as torch's allocator tells on a GPU and its profiler on a CPU: activations,
gradients, the optimiser's moments, and what padding adds. On a CPU also how much the process grows, which Linux tells:
allocators and matrix libraries keep memory of their own. It refuses to know times, and whether the gradients are right:
`train_step` asks that first.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

if TYPE_CHECKING:
    from benchmarks.train_routes import Route
    from benchmarks.train_step import Bench

MIB = 1 << 20
STEPS = 6
PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Memory:
    """What one route takes."""

    trained_mib: float
    """The parameters that move, as they are kept."""
    tensors_mib: float
    """Most bytes of tensors at once over the steps, those from before the first not counted."""
    resident_mib: float | None
    """Growth of the process over the steps, libraries' own memory included; None on a GPU."""


@dataclass(frozen=True)
class Asked:
    """What a process is told; as its options."""

    folder: str
    dtype: str
    device: str
    alike: bool
    threads: int

    def options(self) -> list[str]:
        fields = asdict(self)
        is_alike = fields.pop("alike")
        return [x for key, value in fields.items() for x in (f"--{key}", str(value))] + ["--alike"] * is_alike


def in_a_process(route: str, asked: Asked) -> Memory:
    """Measure one route where nothing else has run."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.train_memory", route, *asked.options()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def measure(bench: Bench, name: str) -> Memory:
    """Take a step over each batch, the optimiser's included, twice from the start."""
    route, is_gpu = bench.routes[name], bench.device.type == "cuda"
    torch.autograd.backward(route.loss(bench.batches[0][:1]))
    for parameter in route.trained():
        parameter.grad = None
    trained = sum(parameter.numel() * parameter.element_size() for parameter in route.trained())
    if is_gpu:
        return Memory(trained / MIB, _allocated_on_gpu(bench, route) / MIB, None)
    resident = _resident(bench, route)
    return Memory(trained / MIB, _allocated(bench, bench.workshop.make(name)) / MIB, resident / MIB)


def _take_steps(bench: Bench, route: Route) -> None:
    for rows in bench.batches:
        loss = route.loss(rows)
        torch.autograd.backward(loss)
        route.move(rows, loss.detach())


def _allocated_on_gpu(bench: Bench, route: Route) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _take_steps(bench, route)
    return int(torch.cuda.max_memory_allocated()) - before


def _allocated(bench: Bench, route: Route) -> int:
    """Most bytes of tensors at once, as the profiler saw them come and go."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        _take_steps(bench, route)
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


def _resident(bench: Bench, route: Route) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system
    (PROCESS / "clear_refs").write_text("5")  # begins the record anew
    before = process_bytes("VmRSS")
    _take_steps(bench, route)
    return process_bytes("VmHWM") - before


def process_bytes(name: str) -> int:
    """A size of this process in bytes; the kernel gives KiB."""
    lines = (PROCESS / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main(
    route: Annotated[str, typer.Argument(help="a route of train_step")],
    folder: Annotated[str, typer.Option(help="of the backbone")] = "minilm",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    alike: Annotated[bool, typer.Option("--alike", help="rows of like length together")] = False,
    threads: Annotated[int, typer.Option(help="threads of one operator")] = 1,
) -> None:
    """Measure the memory of one route and print it as JSON."""
    from benchmarks.train_step import make_bench

    torch.set_num_threads(threads)
    bench = make_bench(folder, getattr(torch, dtype), STEPS, alike=alike, device=device, names=[route])
    typer.echo(json.dumps(asdict(measure(bench, route))))


if __name__ == "__main__":
    typer.run(main)
