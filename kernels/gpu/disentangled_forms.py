"""How the kernels of disentangled attention declare their compiled forms: types follow from the names of arguments.

It refuses to know what the kernels compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from prefixbank.kernels.gpu.configuration import EVERY_TARGET, Configuration, pointer
from prefixbank.kernels.gpu.disentangled_tiling import COUNTS, scratch_dtype
from prefixbank.kernels.gpu.tiling import INDICES, padded_head_dim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prefixbank.kernels.gpu.disentangled_tiling import DisentangledLaunch

    LaunchOf: TypeAlias = Callable[[int, int, torch.dtype, int], DisentangledLaunch]
    """Launch constants, from the plan's tile, head dim, dtype and compute capability times ten."""

REAL = ("lse", "statistics", "sums")
"""Pointers to fp32, whatever the operands are."""
THERE = {"pos_key": "C2P", "pos_query": "P2C", "x_table": "OF_X", "y_table": "OF_Y", "slot_scale": "QUANTISED"}
"""Pointers that are None when a constant is false."""


def forms(
    kernel: Any,
    launch_of: LaunchOf,
    dtype: torch.dtype,
    dim: int,
    block_m: int,
    constants: Mapping[str, object],
    *,
    stored: torch.dtype | None = None,
    title: str = "",
) -> Iterator[Configuration]:
    """Declare a kernel for a plan's tile: one form for all GPUs, or one for each launch that some GPU takes."""
    # fp8e4nv does not exist before compute capability 8.9.
    able = tuple(x for x in EVERY_TARGET if stored != torch.float8_e4m3fn or x > 80)
    launches = {target: launch_of(block_m, dim, dtype, target) for target in able}
    for launch in dict.fromkeys(launches.values()):
        targets = tuple(target for target in able if launches[target] == launch)
        yield _form(kernel, launch, dtype, dim, block_m, constants, targets, stored, title)


def _form(
    kernel: Any,
    launch: DisentangledLaunch,
    dtype: torch.dtype,
    dim: int,
    block_m: int,
    constants: Mapping[str, object],
    targets: tuple[int, ...],
    stored: torch.dtype | None,
    title: str,
) -> Configuration:
    blocks = {
        "D": dim, "BLOCK_D": padded_head_dim(dim), "BLOCK_M": launch.block_m, "BLOCK_P": launch.block_p,
        "SUB": block_m // launch.block_m, "QUANTISED": stored is not None, "UPCAST": False,
    }  # fmt: skip
    known = {name: value for name, value in (blocks | dict(constants)).items() if name in kernel.arg_names}
    absent = {name: None for name, flag in THERE.items() if name in kernel.arg_names and not known.get(flag)}
    found = {x: _type_of(x, dtype, stored) for x in kernel.arg_names if x not in known and x not in absent}
    most = f"r{launch.max_registers}" if launch.max_registers else ""
    what = (str(dtype), f"D{dim}", f"m{block_m}", f"b{launch.block_m}", most, str(stored or ""), title)
    return Configuration(
        " ".join([kernel.__name__, *filter(None, what)]).replace("torch.", ""),
        kernel, found, known | absent, launch.num_warps, launch.num_stages,
        tensor_cores=dtype != torch.float32, async_copies="BLOCK_P" in known and known.get("KEYS") is not True,
        targets=targets, max_registers=launch.max_registers,
    )  # fmt: skip


def _type_of(argument: str, dtype: torch.dtype, stored: torch.dtype | None) -> str:
    """What an argument of this name is in every kernel of disentangled attention."""
    if argument == "slot_scale":
        return pointer(torch.float32, aligned=False)
    if argument in (*INDICES, "distance"):
        return pointer(torch.int32, aligned=False)
    if argument in REAL:
        return pointer(torch.float32)
    if argument in COUNTS:
        return "i32"
    if argument.startswith("scale"):
        return "fp32"
    if argument.endswith(("_token", "_head", "_entry")):
        return "i32:16"
    return pointer({"scratch": scratch_dtype(dtype), "pool_k": stored, "pool_v": stored}.get(argument) or dtype)
