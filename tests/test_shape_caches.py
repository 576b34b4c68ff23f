"""Batches of ever new lengths: a process that serves or trains in 16 bits on the CPU does not grow with each."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.tiny import tiny_lm_folder

if TYPE_CHECKING:
    from pathlib import Path

ALLOWED_MIB = 250
SCRIPT = """
import sys
import numpy as np, torch
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow

torch.set_num_threads(1)
backbone = load_backbone(sys.argv[1], dtype=torch.bfloat16)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20

@torch.inference_mode()
def forward(length):
    ids = np.ones(length, dtype=np.int64)
    backbone.forward(backbone.pack([PackRow(ids, ids * 0, 0)]), backbone.no_prefixes())

forward(250)
before = resident()
for length in range(100, 250):
    forward(length)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_every_new_length(tmp_path: Path) -> None:
    wide = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "num_hidden_layers": 1}
    folder = tiny_lm_folder(tmp_path, "bert", **wide)
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) < ALLOWED_MIB
