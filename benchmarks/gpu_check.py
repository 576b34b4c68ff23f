"""All checks that need a GPU, then the benchmarks, in one command and under eight minutes: `make gpu-check`.

    python -m benchmarks.gpu_check [--output FOLDER] [--tests EXPRESSION] [--seconds 460] [--rehearse]

Checks: every configuration compiles for this GPU as lean as declared; the tests of `tests/gpu` and those of kernels,
engine and trainer that follow the device; compute-sanitizer's memcheck and racecheck where the tool can be believed.
Only when none is red do the benchmarks run: kernel, parts, encoder, engine. Everything goes to
`<gpu>-<date>-<commit>.json` and `.md`.
With `--rehearse` the same sections run on a CPU in Triton's interpreter, small, and no speed is shown.

Ends with 0 when all is green, with 1 when something is red, with 3 when there is no GPU and nobody rehearses.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from benchmarks.environment import commit, device_name
from benchmarks.gpu_report import Report, state_of_gpu
from benchmarks.gpu_sections import (
    FAULT_FOUND,
    ROOT,
    Outcome,
    Status,
    benchmark_of,
    check_of,
    environment_of,
    find_sanitizer,
    python,
    run_program,
    sanitizer_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NO_DEVICE = 3
TOTAL_S = 460.0
"""All of it, so that eight minutes suffice."""
KERNEL_S = 150.0
"""What the kernel benchmark may spend on its shapes."""
TARGETS = (80, 90, 100)
DEVICE_TESTS = ("tests/gpu", "tests/test_kernels_heads_triton.py")
"""Tests that put their tensors on the GPU where there is one."""
RUN_TESTS = tuple(f"tests/test_{name}.py" for name in ("engine", "trainer", "trainer_pack", "trainer_families"))
"""Such tests of the engine and of training, which need pydantic."""


@dataclass(frozen=True)
class Setting:
    """How this run goes."""

    rehearsed: bool
    tests: str
    """Which tests, as an expression for pytest's -k; all when empty."""
    scratch: Path
    """A folder for what sections write."""
    ends: float
    """When all must be over, on the monotonic clock."""
    cores: int

    def left(self, most: float, keep: float = 0.0) -> float:
        """Seconds that a section may take, with some kept for those after it."""
        return max(1.0, min(most, self.ends - time.monotonic() - keep))

    @property
    def rehearse(self) -> list[str]:
        return ["--rehearse"] if self.rehearsed else []


def check_compilation(setting: Setting) -> Outcome:
    """Compile every configuration for this GPU, which also tells how long all of them take."""
    target = 90
    if not setting.rehearsed:
        major, minor = torch.cuda.get_device_capability()
        target = max((each for each in TARGETS if each <= 10 * major + minor), default=0)
    if not target:
        return Outcome("compile gate", Status.ABSENT, 0.0, "this GPU is older than sm_80")
    command = python("-m", "benchmarks.compiled", "--target", str(target), "--output", "json")
    command += ["--only", "forward bfloat16 D64 m64"] if setting.rehearsed else ["--processes", str(setting.cores)]
    ended = run_program(command, setting.left(120), environment_of(interpreted=False))
    if not ended.stdout.startswith("{"):
        return check_of("compile gate", ended)
    compiled = json.loads(ended.stdout)["compiled"]
    at_fault = [f"{each['name']}: {'; '.join(each['faults'])}" for each in compiled if each["faults"]]
    summary = f"{len(compiled)} configurations for sm_{target}, {len(at_fault)} at fault"
    status = Status.RED if at_fault or not compiled else Status.GREEN
    return Outcome("compile gate", status, ended.seconds, summary, "\n".join(at_fault), found=compiled)


def check_numbers(setting: Setting) -> Outcome:
    """The tests that run on the device: numbers, bits, graphs, waits, compilations, operators."""
    files = (*DEVICE_TESTS, *(RUN_TESTS if importlib.util.find_spec("pydantic") and not setting.rehearsed else ()))
    options = ("-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:benchmark", "-o", "filterwarnings=default")
    command = python("-m", "pytest", *options, *files)
    command += ["-k", setting.tests] if setting.tests else []
    if importlib.util.find_spec("xdist") and not setting.rehearsed:
        command += ["-n", str(max(1, min(12, setting.cores - 2)))]
    environment = environment_of(interpreted=setting.rehearsed, REHEARSE="1" if setting.rehearsed else "")
    return check_of("tests on the device", run_program(command, setting.left(300), environment))


def check_sanitizer(tool: str, setting: Setting) -> Outcome:
    """Let compute-sanitizer watch a sound run, a planted fault, and our kernels, at once."""
    name, sanitizer = f"compute-sanitizer {tool}", find_sanitizer()
    if sanitizer is None:
        return Outcome(name, Status.ABSENT, 0.0, "the tool is not installed here")
    environment = environment_of(interpreted=setting.rehearsed, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    watch = [sanitizer, "--tool", tool, "--error-exitcode", str(FAULT_FOUND), "--print-limit", "20"]
    runs = [[*watch, *python("-m", "benchmarks.sanitized", run)] for run in ("sound", tool, "kernels")]
    with ThreadPoolExecutor(len(runs)) as pool:
        ended = list(pool.map(lambda run: run_program(run, setting.left(150), environment), runs))
    return sanitizer_of(tool, *ended)


def run_checks(setting: Setting) -> list[Outcome]:
    """The compiler first, for it takes all cores; then the rest side by side, for nothing is timed."""
    compiled = guarded("compile gate", functools.partial(check_compilation, setting))
    beside: dict[str, Callable[[], Outcome]] = {
        "tests on the device": functools.partial(check_numbers, setting),
        "compute-sanitizer memcheck": functools.partial(check_sanitizer, "memcheck", setting),
        "compute-sanitizer racecheck": functools.partial(check_sanitizer, "racecheck", setting),
    }
    with ThreadPoolExecutor(len(beside)) as pool:
        return [compiled, *pool.map(lambda name: guarded(name, beside[name]), beside)]


def measure_module(name: str, module: str, setting: Setting, limit_s: float, *options: str) -> Outcome:
    """Run a benchmark that takes `--json` and `--rehearse`."""
    file = setting.scratch / f"{module}.json"
    command = python("-m", f"benchmarks.{module}", "--json", str(file), *options, *setting.rehearse)
    ended = run_program(command, setting.left(limit_s), environment_of(interpreted=setting.rehearsed))
    return benchmark_of(name, ended, file)


def measure_kernel(setting: Setting) -> Outcome:
    """The kernel's shapes get what the others leave."""
    budget = str(int(setting.left(KERNEL_S, keep=130)))
    return measure_module("kernel", "kernel", setting, KERNEL_S + 40, "--budget", budget)


def measure_engine(setting: Setting) -> Outcome:
    """The engine alone, with random weights of MiniLM's shape."""
    if importlib.util.find_spec("pydantic") is None:
        return Outcome("engine", Status.ABSENT, 0.0, "pydantic is not installed here; the engine needs it")
    environment = environment_of(interpreted=False)
    small = ["--small"] if setting.rehearsed else []
    made = run_program(python("-m", "benchmarks.random_backbone", str(setting.scratch), *small), 60, environment)
    if made.code:
        return check_of("engine", made)
    size = ["--tasks", "3", "--seconds", "0.1", "--rounds", "1"] if setting.rehearsed else []
    size = size or ["--device", "cuda", "--dtype", "bfloat16", "--seconds", "2", "--rounds", "2"]
    command = python("-m", "benchmarks.engine", "--backbone", made.stdout.strip(), *size, "--json")
    ended = run_program(command, setting.left(90), environment)
    if ended.code:
        return check_of("engine", ended)
    found = json.loads(ended.stdout)
    lines = [" ".join(f"{key} {value}" for key, value in each.items()) for each in found["measured"]]
    lines.append(f"throughput over one task's: {found['ratio_to_one_task']}")
    return Outcome("engine", Status.GREEN, ended.seconds, "done", shown="\n\n".join(lines), found=found)


BENCHMARKS: dict[str, Callable[[Setting], Outcome]] = {
    "kernel": measure_kernel,
    "parts": lambda setting: measure_module("parts", "kernel_parts", setting, 70),
    "encoder": lambda setting: measure_module("encoder", "encoder", setting, 70),
    "engine": measure_engine,
}


def run_benchmarks(setting: Setting, checks: Sequence[Outcome]) -> list[Outcome]:
    """One after the other, alone on the device; none when a check is red."""
    if any(each.status is Status.RED for each in checks):
        return [Outcome(name, Status.NOT_RUN, 0.0, "a check is red") for name in BENCHMARKS]
    return [guarded(name, functools.partial(run, setting)) for name, run in BENCHMARKS.items()]


def guarded(name: str, run: Callable[[], Outcome]) -> Outcome:
    """Run a section; should the harness itself fail, the section is red and says why."""
    try:
        return run()
    except Exception as error:
        return Outcome(name, Status.RED, 0.0, f"the harness failed: {error}", traceback.format_exc())


def run(setting: Setting) -> Report:
    """Run everything."""
    began = time.monotonic()
    device = torch.device("cpu" if setting.rehearsed else "cuda")
    about = device_name(device) + ("" if setting.rehearsed else f"; {state_of_gpu()}")
    checks = run_checks(setting)
    benchmarks = run_benchmarks(setting, checks)
    return Report(about, commit(), setting.rehearsed, checks, benchmarks, time.monotonic() - began)


def main(
    output: Annotated[Path | None, typer.Option(help="folder of results; a rehearsal writes only if asked")] = None,
    tests: Annotated[str, typer.Option(help="which tests on the device, as for pytest's -k")] = "",
    seconds: Annotated[float, typer.Option(help="what all of it may take")] = TOTAL_S,
    rehearsed: Annotated[bool, typer.Option("--rehearse", help="on a CPU, interpreted, small, without speeds")] = False,
) -> None:
    """Check the kernels on this GPU, then measure them."""
    if not rehearsed and not torch.cuda.is_available():
        typer.echo("no CUDA device is here: nothing was checked; REHEARSE=1 make gpu-check runs the same on a CPU")
        raise SystemExit(NO_DEVICE)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        ends = time.monotonic() + (3 if rehearsed else 1) * seconds
        report = run(Setting(rehearsed, tests, Path(scratch), ends, cores))
    typer.echo(report.markdown())
    folder = output or (None if rehearsed else ROOT / "benchmarks" / "results")
    if folder:
        gpu = "rehearsal" if rehearsed else torch.cuda.get_device_name()
        typer.echo(f"written to {report.write(folder, gpu)} and .json")
    raise SystemExit(report.is_red)


if __name__ == "__main__":
    typer.run(main)
