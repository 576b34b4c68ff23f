"""Peer E: SGLang's extend attention, the nearest relative: prefix by token index, own keys packed, one launch.

Only two files of the `sglang` wheel are loaded, with a stand-in for the package around them, so that the wheel's many
dependencies need not be there.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.kernel_peers.prepared import Absent, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.kernel_workloads import Batch

FOLDERS = ("kernels/ops/attention", "srt/layers/attention/triton_ops")
"""Where its versions keep the files, newest first."""


def prepare(batch: Batch) -> Prepared:
    """Build the list of pool tokens of every row."""
    attend = load()
    case = batch.case
    pool_k, pool_v = (pool.transpose(0, 1) for pool in case.prefix[:2])
    lists = [batch.slot_start[slot] + np.arange(length) for slot, length in zip(batch.slots, batch.lent, strict=True)]
    tokens = torch.from_numpy(np.concatenate(lists)).to(batch.device)
    lent_start = torch.from_numpy(np.cumsum([0, *batch.lent])).int().to(batch.device)
    out = torch.empty(case.q_THD.shape, dtype=case.q_THD.dtype, device=batch.device)
    arguments = {
        "q_extend": case.q_THD,
        "k_extend": case.k_THD,
        "v_extend": case.v_THD,
        "o_extend": out,
        "k_buffer": pool_k,
        "v_buffer": pool_v,
        "qo_indptr": case.plan.row_start_R1,
        "kv_indptr": lent_start,
        "kv_indices": tokens,
        "custom_mask": None,
        "mask_indptr": None,
        "is_causal": False,
        "max_len_extend": max(batch.lengths),
        "k_scale": 1.0,
        "v_scale": 1.0,
        "sm_scale": case.scale,
    }
    known = inspect.signature(attend).parameters
    arguments = {name: value for name, value in arguments.items() if name in known}

    def run() -> Tensor:
        attend(**arguments)
        return out

    return Prepared(run)


@functools.cache
def load() -> Callable[..., Any]:
    """Load `extend_attention_fwd` from the installed wheel.

    Raises:
        Absent: when there is none.
    """
    found = importlib.util.find_spec("sglang")
    if found is None or not found.submodule_search_locations:
        raise Absent("the wheel sglang is not installed")
    root = Path(found.submodule_search_locations[0])
    folders = [folder for folder in FOLDERS if (root / folder / "extend_attention.py").is_file()]
    if not folders:
        raise Absent(f"sglang has extend_attention.py in none of {FOLDERS}")
    return _load_from(root, folders[0])


def _load_from(root: Path, folder: str) -> Callable[..., Any]:
    package = ".".join(["sglang", *folder.split("/")])
    utils = types.ModuleType("sglang.srt.utils")
    utils.is_cuda, utils.is_hip = torch.cuda.is_available, lambda: False  # type: ignore[attr-defined]
    parents = [package.rsplit(".", depth)[0] for depth in range(package.count(".") + 1)]
    stand_ins = {name: types.ModuleType(name) for name in [*parents, "sglang.srt"]}
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "sglang"}
    sys.modules.update({**stand_ins, "sglang.srt.utils": utils})
    try:
        for file in ("prefill_attention", "extend_attention"):
            module = _load_file(f"{package}.{file}", root / folder / f"{file}.py")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "sglang"]:
            del sys.modules[name]
        sys.modules.update(before)
    found: Callable[..., Any] = module.extend_attention_fwd
    return found


def _load_file(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
