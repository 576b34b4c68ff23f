"""A short run of every kernel for compute-sanitizer to watch, and runs that tell whether the tool can be believed.

    compute-sanitizer --tool memcheck python -m benchmarks.sanitized [kernels|sound|memcheck|racecheck]

`kernels` launches every kernel family over small batches. `sound` launches a pipelined product that is known to be
right: a tool that reports it cannot judge here. `memcheck` writes out of bounds and `racecheck` lets threads race: a
tool that stays silent does not work here. It refuses to compare numbers; that is the tests' work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
import typer

if TYPE_CHECKING:
    from collections.abc import Callable

Run = Literal["kernels", "sound", "memcheck", "racecheck"]
RACE = """
extern "C" __global__ void race(int *out) {
    __shared__ volatile int mine[128];
    mine[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = mine[127 - threadIdx.x];
}
"""


def launch_kernels() -> None:
    """Every kernel family: attention and its gradients, plain and disentangled, and heads."""
    from prefixbank.kernels.attention import Route
    from prefixbank.kernels.plan import Mode, Tiling
    from tests.gpu.device import gradients, make_case, make_disentangled
    from tests.head_cases import make_heads

    rows = ([17, 0, 70, 1], [5, 2, 1, 5])
    for case in (
        make_case(*rows, dtype=torch.bfloat16, tiling=Tiling(16)),
        make_case(*rows, dtype=torch.bfloat16, tiling=Tiling(128), tail=20),
        make_case(*rows, dtype=torch.float32, tiling=Tiling(64), mode=Mode.PREFIX_LM, window=5),
        make_case(*rows, dtype=torch.float16, tiling=Tiling(16, 2), mode=Mode.CAUSAL),
    ):
        case.run(Route.TRITON)
        gradients(case, torch.ones_like(case.q_THD))
    for dtype, block_m in ((torch.bfloat16, 16), (torch.bfloat16, 64), (torch.float32, 16)):
        disentangled = make_disentangled(*rows, dtype=dtype, tiling=Tiling(block_m))
        disentangled.run(Route.TRITON)
        disentangled.gradients(Route.TRITON)
    heads = make_heads(width=48, device=case.q_THD.device.type)
    leaves = [x.requires_grad_() for x in heads.differentiated]
    logits = heads.with_tensors(leaves).run(Route.TRITON)
    torch.autograd.grad(logits, leaves, torch.ones_like(logits))


def launch_sound() -> None:
    """A pipelined product on the matrix unit, with nothing of ours in it."""
    import triton

    from benchmarks.sound_kernel import product

    a, b = (torch.randn(256, 256, device=_device(), dtype=torch.float16) for _ in range(2))
    out = torch.empty_like(a)
    grid = (triton.cdiv(256, 64), triton.cdiv(256, 64))
    product[grid](a, b, out, 256, BLOCK=64, UPCAST=not torch.cuda.is_available(), num_warps=4, num_stages=3)
    torch.testing.assert_close(out, a @ b, rtol=2e-2, atol=2e-2)


def launch_out_of_bounds() -> None:
    """Writes far behind a tensor; on a CPU, which only rehearses, nothing."""
    from benchmarks.sound_kernel import fill

    if torch.cuda.is_available():
        fill[(1,)](torch.empty(64, device="cuda"), 2**22, BLOCK=128)


def launch_race() -> None:
    """Threads read what others write, without a barrier between; on a CPU nothing."""
    if torch.cuda.is_available():
        out = torch.zeros(128, dtype=torch.int32, device="cuda")
        race = torch.cuda._compile_kernel(RACE, "race")
        race(grid=(1, 1, 1), block=(128, 1, 1), args=[out])


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


RUNS: dict[Run, Callable[[], None]] = {
    "kernels": launch_kernels,
    "sound": launch_sound,
    "memcheck": launch_out_of_bounds,
    "racecheck": launch_race,
}


def main(run: Annotated[Run, typer.Argument(help="what to launch")] = "kernels") -> None:
    """Launch, and wait until all is done."""
    RUNS[run]()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    typer.echo(f"launched: {run}")


if __name__ == "__main__":
    typer.run(main)
