"""Small kernels that the compile gate is to pass or refuse, and a program that prints what it makes of each.

The suite's process runs kernels in Triton's interpreter, where nothing is compiled: so this is a program of its own.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from benchmarks.compiled import compile_for
from prefixbank.kernels.gpu.configuration import Configuration, pointer

if TYPE_CHECKING:
    from collections.abc import Iterator


@triton.jit
def product(a, b, out, k, stride, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i, j = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK_M, BLOCK), tl.float32)
    for begin in range(0, k, BLOCK):
        x = tl.load(a + i[:, None] * stride + begin + j[None, :])
        y = tl.load(b + (begin + j)[:, None] * stride + j[None, :])
        acc = tl.dot(x, y, acc, input_precision="ieee")
    tl.store(out + i[:, None] * BLOCK + j[None, :], acc.to(out.dtype.element_ty))


def configurations() -> Iterator[Configuration]:
    """A sound one, and one for each thing that the gate holds against a configuration."""
    sound = _product("sound", torch.bfloat16, block_m=128)
    yield sound
    yield sound._replace(name="one stage", num_stages=1)
    yield sound._replace(name="too much shared memory", num_stages=8, constants={"BLOCK_M": 128, "BLOCK": 128})
    yield sound._replace(name="unnamed argument", constants={"BLOCK": 64})
    yield sound._replace(name="no such type", signature={**sound.signature, "a": "*i32:16"})
    yield sound._replace(name="many sums", num_stages=2, constants={"BLOCK_M": 256, "BLOCK": 128})
    yield sound._replace(name="few registers", max_registers=64)
    yield _product("fp32", torch.float32, block_m=32)


def _product(name: str, dtype: torch.dtype, block_m: int) -> Configuration:
    signature = {**dict.fromkeys(("a", "b", "out"), pointer(dtype)), "k": "i32", "stride": "i32:16"}
    constants = {"BLOCK_M": block_m, "BLOCK": 64}
    return Configuration(name, product, signature, constants, 4, 3, tensor_cores=True, async_copies=True)


if __name__ == "__main__":
    print(json.dumps({each.name: compile_for(each, 90).faults for each in configurations()}))  # noqa: T201
