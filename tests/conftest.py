"""Fixtures that every test file may use."""

import os
from pathlib import Path

import pytest
import torch

from prefixbank.model_store.backbones.cpu_instructions import bound_instructions

bound_instructions()  # before the first product, whichever test makes it
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read by triton when it is imported; children inherit it

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where tests that follow the device put their tensors; `benchmarks.gpu_check` names them."""


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; a user's machine has none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data sets beside the checkout (looked for {folder.name}/ in {folder.parent.name}/)")
    return folder
