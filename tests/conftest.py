"""Fixtures that every test file may use."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank.model_store.backbones.cpu_products import keep_bits_of_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.model_store.backbones.backbone import Backbone

keep_bits_of_rows()  # before the first product, whichever test makes it
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read by triton when it is imported; children inherit it

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where tests that follow the device put their tensors; `benchmarks.gpu_check` names them."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny BERT with random weights, where tests follow the device; a file that wants another has its own."""
    from prefixbank.model_store.backbones.load import load_backbone  # not before the variables above are set
    from tests.tiny import tiny_backbone_folder

    return load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("backbones"), "bert")), device=DEVICE)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; a user's machine has none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data sets beside the checkout (looked for {folder.name}/ in {folder.parent.name}/)")
    return folder


if DEVICE == "cuda":

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
        """End the process after a test that broke the device: every later test would fail in its place.

        xdist then names the test, and goes on in another process.
        """
        found = yield
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"{item.nodeid} broke the device: {error}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(70)
        return found
