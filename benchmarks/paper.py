"""The tables of the P-Tuning v2 paper with a column of ours: the recipes of examples/recipes/paper, run where they can.

    python -m benchmarks.paper [--rows rte_roberta,rte_bert] [--seeds 3] [--out runs/paper] [--json FILE]
    python -m benchmarks.paper --rows rte_bert --data FOLDER --backbone minilm --epochs 1 --limit 64

Without --rows it runs all, which takes days on a GPU; --check only tells what would run.
A row that lacks its backbone or data here, or fails, says so in one line and the others go on. Whatever a score owes to
an override is said beside it. With --out, runs are kept, interrupted ones continue and finished ones are not repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.environment import commit, device_name
from benchmarks.keeping import keep
from benchmarks.paper_needs import RealHub
from benchmarks.paper_rows import ROWS
from benchmarks.paper_run import Asked, run_row
from benchmarks.paper_view import shown
from prefixbank.cli_training import served_logits
from prefixbank.trainer import checkpoint
from prefixbank.trainer.run import train

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from benchmarks.paper_rows import Row
    from benchmarks.paper_run import Outcome
    from prefixbank.trainer.recipe import Recipe


class Results:
    """What has been found so far."""

    def __init__(self, device: str) -> None:
        self.origin = {
            "hardware": device_name(torch.device(device)),
            "commit": commit(),
            "threads": torch.get_num_threads(),
        }
        self.outcomes: list[Outcome] = []

    def as_json(self) -> dict[str, Any]:
        return self.origin | {"rows": [outcome.as_json() for outcome in self.outcomes]}


def trainer(device: str) -> Any:
    """What trains a recipe on a device, the serving engine asked at the end, and gives its report."""

    def run(recipe: Recipe, folder: Path, root: Path) -> dict[str, Any]:
        verify = None if recipe.method == "full" else served_logits
        is_begun = (folder / checkpoint.FILE).exists()
        return train(recipe, folder, root=root, device=device, verify=verify, resume=is_begun).report

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, one line each, and print the tables."""
    asked = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    results, hub, run = Results(device), RealHub(), trainer(device)
    print(json.dumps(results.origin))  # noqa: T201
    with _folder(asked.out) as out:
        wanted = _asked(asked, Path(out))
        for row in asked.rows:
            outcome = run_row(row, wanted, hub, run)
            results.outcomes.append(outcome)
            print(outcome.line, flush=True)  # noqa: T201
            keep(results, asked.json)
    print(shown(results.outcomes))  # noqa: T201
    return 0


def _asked(asked: argparse.Namespace, out: Path) -> Asked:
    overrides = (asked.backbone, asked.data, asked.epochs, asked.limit, tuple(asked.set))
    return Asked(asked.seeds, *overrides, out=out, only_check=asked.check)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_rows, default=ROWS, help="names of rows; a recipe's name is that of its row")
    parser.add_argument("--seeds", type=int, default=1, help="runs per row, from the recipe's seed on")
    parser.add_argument("--backbone", help="folder, hub id or minilm, in place of every recipe's")
    parser.add_argument("--data", type=Path, help="folder with data sets; see benchmarks/paper_layouts.py")
    parser.add_argument("--epochs", type=int, help="in place of every recipe's")
    parser.add_argument("--limit", type=int, help="so many rows of every split")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value of a field")
    parser.add_argument("--check", action="store_true", help="say what each row lacks here, and train nothing")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--out", type=Path, help="folder that keeps artifacts, reports and checkpoints")
    parser.add_argument("--json", type=Path, help="write what was found here")
    return parser


def _rows(names: str) -> tuple[Row, ...]:
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"found {', '.join(unknown)}, wanted some of {', '.join(known)}")
    return tuple(known[name] for name in names.split(","))


def _folder(out: Path | None) -> AbstractContextManager[Any]:
    return tempfile.TemporaryDirectory() if out is None else nullcontext(out)


if __name__ == "__main__":
    sys.exit(main())
