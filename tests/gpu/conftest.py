"""Tests that need a GPU: they are marked so, and skipped with a reason where there is none and nobody rehearses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once by cuBLAS; without it no run is repeatable

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from tests.gpu.device import why_not

    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            if reason := why_not():
                item.add_marker(pytest.mark.skip(reason=reason))
