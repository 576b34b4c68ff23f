"""Batches of ever new lengths: a process that serves or trains in 16 bits on the CPU does not grow with each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.random_backbone import make_backbone
from benchmarks.shape_caches import growth

if TYPE_CHECKING:
    from pathlib import Path

ALLOWED_MIB = 250


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_every_new_length(tmp_path: Path) -> None:
    assert growth(make_backbone(tmp_path, small=False), lengths=150).mib < ALLOWED_MIB
