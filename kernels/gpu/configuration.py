"""A compiled form of a Triton kernel, declared: what the compile gate builds ahead of time, without a GPU.

Each kernel module names all it may ever launch in `configurations()`. It refuses to know operands and grids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

ALIGNED = ":16"
"""After a type: the address, or the integer, is divisible by 16 in every real launch that is to be fast."""
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
}
EVERY_TARGET = (80, 90, 100)


class Configuration(NamedTuple):
    """One kernel with everything the compiler is told. Signature and constants together name each argument once."""

    name: str
    """Unique among all modules: kernel, then what distinguishes it, as in `forward bfloat16 D64 m128`."""
    kernel: Any
    """The `triton.jit` function."""
    signature: Mapping[str, str]
    """Run-time arguments: `*bf16:16` an aligned pointer, `i32` an integer, `i32:16` one divisible by 16, `fp32`."""
    constants: Mapping[str, object]
    """`tl.constexpr` arguments, pointers that are None, and integers that are 1: Triton makes constants of those."""
    num_warps: int
    num_stages: int
    tensor_cores: bool
    """Its products must run on the matrix unit: true for 16-bit operands, false for fp32 in `ieee` precision."""
    async_copies: bool
    """It has a pipelined loop, whose loads must be asynchronous copies."""
    targets: tuple[int, ...] = EVERY_TARGET
    """Compute capabilities, times ten, that it is meant for."""
    max_registers: int | None = None
    """Registers that a thread may take; `None` leaves the compiler to guess how many programs should fit at once."""


def pointer(dtype: torch.dtype, *, aligned: bool = True) -> str:
    """Name the type of a pointer to elements of a dtype."""
    return f"*{TYPES[dtype]}{ALIGNED if aligned else ''}"
