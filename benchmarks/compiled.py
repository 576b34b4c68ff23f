"""What the compiler makes of every kernel, for GPUs that need not be there; the gate that no configuration may fail.

    python -m benchmarks.compiled [--target 90] [--only NAME] [--output json] [--processes 2]

Builds each configuration that a module of `kernels/gpu` declares, for each target, down to machine code with the
tools that Triton brings, and reads registers, spills, shared memory and instructions out of it. Ends with status 1
when one is at fault. It refuses to know speeds.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import triton
import typer
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import prefixbank.kernels.gpu
from benchmarks.environment import commit
from prefixbank.kernels.gpu.configuration import ALIGNED, EVERY_TARGET, Configuration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KIB = 1024
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)", re.MULTILINE)
TENSOR_CORE = re.compile(r"[HQIO]G?MMA|UTC\w*MMA")
ASYNC_COPY = re.compile(r"LDGSTS|UTMALDG|UBLKCP")
LOCAL_MEMORY = ("LDL", "STL")
WARPGROUP_ROWS = 64
"""Rows from which the matrix unit of sm_90 is to be used by four warps at once."""


class Limits(NamedTuple):
    """What one multiprocessor has."""

    shared_per_block: int
    shared_per_multiprocessor: int
    registers: int = 65536
    threads: int = 2048
    blocks: int = 32


LIMITS = {
    80: Limits(163 * KIB, 164 * KIB),
    90: Limits(227 * KIB, 228 * KIB),
    100: Limits(227 * KIB, 228 * KIB),
}
MOST_REGISTERS = 255
RESERVED_SHARED = KIB
"""Bytes of each block that the driver takes."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one configuration became on one target."""

    name: str
    target: int
    num_warps: int
    num_stages: int
    registers: int
    spills: int
    """Bytes of stack, plus loads and stores of local memory."""
    shared_bytes: int
    blocks_per_multiprocessor: int
    tensor_core: dict[str, int]
    """Instructions that use the matrix unit."""
    async_copies: dict[str, int]
    instructions: int
    faults: tuple[str, ...]
    """What the gate holds against it; empty when nothing."""


def declared() -> list[Configuration]:
    """All configurations of all kernel modules.

    Raises:
        ValueError: when two have one name.
    """
    found: list[Configuration] = []
    for name in sorted(module.name for module in pkgutil.iter_modules(prefixbank.kernels.gpu.__path__)):
        module = importlib.import_module(f"prefixbank.kernels.gpu.{name}")
        found += module.configurations() if hasattr(module, "configurations") else []
    twice = [name for name, times in Counter(each.name for each in found).items() if times > 1]
    if twice:
        raise ValueError(f"configurations are declared more than once: {twice}")
    return found


def source_of(configuration: Configuration) -> ASTSource:
    """What Triton compiles.

    Raises:
        ValueError: when signature and constants together do not name each argument once.
    """
    kernel, signature, constants = configuration.kernel, configuration.signature, configuration.constants
    arguments = kernel.arg_names
    if sorted([*signature, *constants]) != sorted(arguments):
        wrong = sorted(set(signature).symmetric_difference(constants) ^ set(arguments)) or "one named twice"
        raise ValueError(f"{configuration.name}: signature and constants do not name each argument once: {wrong}")
    types = {name: signature.get(name, "constexpr").removesuffix(ALIGNED) for name in arguments}
    attributes = {}
    for index, parameter in enumerate(kernel.params):
        kind = signature.get(parameter.name, "")
        if kind.endswith(ALIGNED):
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif _is_looked_at(parameter, kind):
            attributes[(index,)] = []
    return ASTSource(fn=kernel, signature=types, constexprs=dict(constants), attrs=attributes)


def _is_looked_at(parameter: Any, kind: str) -> bool:
    """Whether a launch asks what the argument divides by, and says so in the key of Triton's cache.

    The gate then builds what a launch finds in the cache. Triton asks constants too from 3.7 on.
    """
    if not kind:
        return not triton.__version__.startswith("3.6.")
    return not parameter.do_not_specialize and not kind.startswith("fp")


def compile_for(configuration: Configuration, target: int) -> Compiled:
    """Build one configuration for one target, read what came of it, and judge it."""
    launch = (configuration.name, target, configuration.num_warps, configuration.num_stages)
    try:
        found = _compile(configuration, target)
    except Exception as error:  # whatever the compiler stumbles over is the configuration's fault
        return Compiled(*launch, 0, 0, 0, 0, {}, {}, 0, (f"does not compile: {_reason(error)}",))
    return replace(found, faults=tuple(faults_of(found, configuration)))


def _reason(error: BaseException) -> str:
    """The last line of the innermost error: what a compiler says at the place."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _compile(configuration: Configuration, target: int) -> Compiled:
    launch = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    options = launch | {"maxnreg": configuration.max_registers}
    built = triton.compile(source_of(configuration), target=GPUTarget("cuda", target, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(built.asm["cubin"])
        cubin.flush()
        registers, stack, static = resources(_tool("cuobjdump", "--dump-resource-usage", cubin.name))
        opcodes = count_instructions(_tool("cuobjdump", "--dump-sass", cubin.name))
    shared = built.metadata.shared
    return Compiled(
        configuration.name,
        target,
        configuration.num_warps,
        configuration.num_stages,
        registers,
        stack + sum(opcodes[opcode] for opcode in LOCAL_MEMORY),
        shared,
        blocks_per_multiprocessor(LIMITS[target], registers, configuration.num_warps, max(shared, static)),
        {opcode: times for opcode, times in opcodes.items() if TENSOR_CORE.fullmatch(opcode)},
        {opcode: times for opcode, times in opcodes.items() if ASYNC_COPY.fullmatch(opcode)},
        opcodes.total(),
        (),
    )


def faults_of(found: Compiled, configuration: Configuration) -> Iterator[str]:
    """Say what the gate holds against a compiled configuration."""
    limits = LIMITS[found.target]
    if found.spills:
        yield f"spills ({found.spills})"
    if found.registers > MOST_REGISTERS:
        yield f"{found.registers} registers"
    if found.shared_bytes > limits.shared_per_block:
        yield f"{found.shared_bytes} bytes of shared memory, of {limits.shared_per_block}"
    if not found.blocks_per_multiprocessor:
        yield "no multiprocessor can run it"
    if configuration.tensor_cores and not found.tensor_core:
        yield "no tensor-core instruction"
    elif found.target == 90 and _wants_warpgroups(configuration) and "HGMMA" not in found.tensor_core:
        yield "no HGMMA instruction"
    if configuration.async_copies and not found.async_copies:
        yield "no asynchronous copy"


def _wants_warpgroups(configuration: Configuration) -> bool:
    """Whether four warps at once are to run its products on the matrix unit of sm_90."""
    rows = configuration.constants.get("BLOCK_M", 0)
    return (
        configuration.tensor_cores
        and configuration.num_warps % 4 == 0
        and isinstance(rows, int)
        and rows >= WARPGROUP_ROWS
    )


def resources(report: str) -> tuple[int, int, int]:
    """Registers per thread, bytes of stack and local memory, and bytes of static shared memory, from cuobjdump's."""
    registers, stack, shared, local = (
        int(re.search(rf"\b{name}:(\d+)", report)[1])  # type: ignore[index]
        for name in ("REG", "STACK", "SHARED", "LOCAL")
    )
    return registers, stack + local, shared


def count_instructions(disassembly: str) -> Counter[str]:
    """How often each opcode stands in a disassembly."""
    return Counter(match[1] for match in INSTRUCTION.finditer(disassembly))


def blocks_per_multiprocessor(limits: Limits, registers: int, num_warps: int, shared_bytes: int) -> int:
    """How many blocks fit by registers, threads and shared memory."""
    by_registers = limits.registers // (num_warps * 32 * max(8, -(-registers // 8) * 8))
    by_threads = limits.threads // (num_warps * 32)
    by_shared = limits.shared_per_multiprocessor // (shared_bytes + RESERVED_SHARED)
    return min(by_registers, by_threads, by_shared, limits.blocks)


def _tool(name: str, *arguments: str) -> str:
    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


@functools.cache
def _declared_by_name() -> dict[str, Configuration]:
    return {each.name: each for each in declared()}


def _compile_job(job: tuple[str, int]) -> Compiled:
    name, target = job
    return compile_for(_declared_by_name()[name], target)


def compile_all(targets: Sequence[int], only: str = "", every: int = 1, processes: int = 1) -> list[Compiled]:
    """Compile the configurations whose name contains `only`, or one of `every` so many, for each of their targets."""
    chosen = [each for each in declared() if only in each.name][::every]
    jobs = [(each.name, target) for each in chosen for target in targets if target in each.targets]
    if processes == 1:
        return [_compile_job(job) for job in jobs]
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawning) as pool:
        return list(pool.map(_compile_job, jobs, chunksize=4))


def table(found: Sequence[Compiled]) -> str:
    """Markdown, one line per configuration and target."""
    lines = [
        "| configuration | target | warps | stages | registers | spills | shared KiB | CTAs/SM | matrix | copies | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        unit, copies = (
            " ".join(f"{k} {n}" for k, n in counts.items()) for counts in (each.tensor_core, each.async_copies)
        )
        numbers = f"{each.registers} | {each.spills} | {each.shared_bytes / KIB:.1f} | {each.blocks_per_multiprocessor}"
        verdict = "; ".join(each.faults) or "ok"
        launch = f"sm_{each.target} | {each.num_warps} | {each.num_stages}"
        lines.append(f"| {each.name} | {launch} | {numbers} | {unit or '-'} | {copies or '-'} | {verdict} |")
    return "\n".join(lines)


def main(
    target: Annotated[list[int] | None, typer.Option(help="80, 90 or 100; all by default")] = None,
    only: Annotated[str, typer.Option(help="configurations whose name contains this")] = "",
    every: Annotated[int, typer.Option(help="one of so many configurations")] = 1,
    output: Annotated[Literal["markdown", "json"], typer.Option(help="form of the table")] = "markdown",
    processes: Annotated[int | None, typer.Option(help="compilers at once; one per core by default")] = None,
) -> None:
    """Compile every configuration for every target, and fail when one is at fault."""
    if triton.knobs.runtime.interpret:
        raise SystemExit("TRITON_INTERPRET is set: there is nothing to compile")
    found = compile_all(target or EVERY_TARGET, only, every, processes or len(os.sched_getaffinity(0)))
    at_fault = [each for each in found if each.faults]
    setting = {"triton": triton.__version__, "commit": commit()}
    if output == "json":
        typer.echo(json.dumps({**setting, "compiled": [asdict(each) for each in found]}))
    else:
        summary = f"{len(found)} compiled, {len(at_fault)} at fault"
        typer.echo(f"triton {setting['triton']}, commit {setting['commit']}: {summary}\n\n{table(found)}")
    raise SystemExit(bool(at_fault))


if __name__ == "__main__":
    typer.run(main)
