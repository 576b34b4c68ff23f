"""What the kernels for heads have in common: launch constants, index tables, and how a form is declared.

The constants were chosen from ahead-of-time compilation: no spills on sm_80, sm_90 and sm_100. They depend on model
width and dtype, never on the batch, so that no row's bits depend on the others. It refuses to know tensors' contents.

Shape letters: M model width; R, C, W are what a program takes of vectors, classes and columns of the width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from prefixbank.kernels.gpu.configuration import Configuration, pointer
from prefixbank.kernels.gpu.tiling import SUPPORTED
from prefixbank.kernels.head_plan import BUNCH_VECTORS, TILE_VECTORS

if TYPE_CHECKING:
    from collections.abc import Iterator

VARYING = ("columns", "vectors")
"""Integer arguments that change from batch to batch: never compiled in."""
INDICES = ("single", "bunch", "tile", "group", "total")
"""Pointers of index tensors, read one number at a time: their alignment is nobody's business."""
BUNCH_ROWS = max(16, BUNCH_VECTORS)
"""A bunch as a tile of the backward, padded to what one tensor-core step takes."""
DECLARED_WIDTHS = (384, 768, 1024)
"""Model widths at which the compile gate builds; any other width compiles on its first batch."""


class Launch(NamedTuple):
    """Constants of one kernel launch; they depend on width and dtype, never on the batch."""

    block_r: int
    """Vectors that are multiplied at once."""
    block_c: int
    """Classes, or arena rows, per program."""
    block_w: int
    """Columns of the model width per program or step."""
    num_warps: int
    num_stages: int


def bunch_launch(width: int, dtype: torch.dtype) -> Launch:
    """A block of whole head rows, held in registers, against one vector at a time."""
    block_w = triton.next_power_of_2(width)
    return Launch(1, 4, block_w, 4 if dtype == torch.float32 and block_w <= 1024 else 8, 1)


def tile_launch(width: int, dtype: torch.dtype) -> Launch:
    """Steps of columns through shared memory."""
    return Launch(TILE_VECTORS, 16, _columns(width, 32 if dtype == torch.float32 else 64), 2, 4)


def d_x_launch(width: int, block_r: int) -> Launch:
    """A block of columns of a tile's gradient, in steps of classes."""
    return Launch(block_r, 16, _columns(width, 64), 4, 2)


def d_head_launch(width: int, dtype: torch.dtype) -> Launch:
    """A block of arena rows and columns, in steps of vectors."""
    return Launch(TILE_VECTORS, 16, _columns(width, 32 if dtype == torch.float32 else 64), 4, 2)


def _columns(width: int, most: int) -> int:
    """A power of two, at least what one tensor-core step takes."""
    return max(16, min(most, triton.next_power_of_2(width)))


def check_supported(weight_QM: torch.Tensor) -> None:
    """Raise ValueError when the Triton route does not take this arena."""
    if weight_QM.dtype not in SUPPORTED:
        raise ValueError(f"the triton route was given heads of {weight_QM.dtype}, wanted one of {SUPPORTED}")
    if not weight_QM.is_contiguous():
        raise ValueError(f"the arena has strides {weight_QM.stride()}, wanted its rows end to end")


def declared() -> Iterator[tuple[torch.dtype, int]]:
    """Dtypes and widths to declare: arenas of fp32 at every width that matters, others at one."""
    yield from ((torch.float32, width) for width in DECLARED_WIDTHS)
    yield from ((dtype, DECLARED_WIDTHS[-1]) for dtype in SUPPORTED if dtype != torch.float32)


def form(
    what: str, kernel: object, dtype: torch.dtype, width: int, launch: Launch, arguments: str, **constants: int
) -> Configuration:
    """One form: `arguments` in order, tensors of the dtype unless `INDICES` or `VARYING` names them."""
    of_name = dict.fromkeys(INDICES, pointer(torch.int32, aligned=False)) | dict.fromkeys(VARYING, "i32")
    signature = {name: of_name.get(name, pointer(dtype)) for name in arguments.split()}
    constants |= {"M": width, "BLOCK_C": launch.block_c, "BLOCK_W": launch.block_w}
    name = f"heads {what} {dtype} M{width}".replace("torch.", "")
    # What need not be told about 16-bit operands multiplies none.
    tensor_cores = "UPCAST" in constants and dtype != torch.float32
    shape = (launch.num_warps, launch.num_stages, tensor_cores, launch.num_stages > 1)
    return Configuration(name, kernel, signature, constants, *shape)


@triton.jit
def load_entry(table, y):
    """Head start, classes, first vector and number of vectors of a bunch or tile."""
    entry = table + y * 4
    return tl.load(entry), tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3)


@triton.jit
def multiply(a, b, acc, UPCAST: tl.constexpr):
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
