"""A backbone of a real shape with random weights, for a machine that has no checkpoint.

    python -m benchmarks.random_backbone FOLDER [--small]

MiniLM's shape, or the tests' tiny one. What it answers means nothing; how fast it does is what the shape makes of it.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import Annotated

import typer
from safetensors.torch import save_file
from transformers import AutoConfig

from tests.tiny import random_weights, tiny_backbone_folder

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


def make_backbone(parent: Path, *, small: bool) -> Path:
    """Make it below a folder, and return where."""
    folder = tiny_backbone_folder(parent, "bert")
    if not small:
        config = AutoConfig.from_pretrained(folder)
        config.update(MINILM)
        config.save_pretrained(folder)
        save_file(random_weights(config, seed=0), folder / "model.safetensors", {"format": "pt"})
    return folder


def main(
    parent: Annotated[Path, typer.Argument(help="where to make it")],
    small: Annotated[bool, typer.Option("--small", help="the tests' tiny shape")] = False,
) -> None:
    """Make a random backbone and print its folder."""
    typer.echo(make_backbone(parent, small=small))


if __name__ == "__main__":
    typer.run(main)
