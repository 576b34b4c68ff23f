"""One row of the paper: its recipe as asked for, what it lacks, its runs over seeds, and the score.

It refuses to know tables, and how a recipe is trained: that is handed in.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from benchmarks.paper_layouts import layout_in
from benchmarks.paper_needs import lacking
from prefixbank.model_store.errors import TrainingInterrupted
from prefixbank.trainer.recipe import load
from prefixbank.trainer.report import FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.paper_layouts import Layout
    from benchmarks.paper_needs import Hub
    from benchmarks.paper_rows import Row
    from prefixbank.trainer.recipe import Recipe, Source

RECIPES = Path(__file__).resolve().parent.parent / "examples" / "recipes" / "paper"


class Asked(NamedTuple):
    """What the user wants other than the recipes say."""

    num_seeds: int = 1
    backbone: str | None = None
    data: Path | None = None
    """Folder with data sets in a known layout."""
    epochs: int | None = None
    limit: int | None = None
    """Rows of every split."""
    settings: tuple[str, ...] = ()
    out: Path = Path("runs/paper")
    only_check: bool = False
    """Say what is lacking and train nothing."""


class Train(Protocol):
    """Trains a recipe whose paths are relative to `root`, and gives its report."""

    def __call__(self, recipe: Recipe, folder: Path, root: Path) -> dict[str, Any]: ...


class Outcome(NamedTuple):
    """What a row reached, or why it did not run."""

    row: Row
    reason: str = ""
    """Why there is no score."""
    scores: tuple[tuple[float, ...], ...] = ()
    """Per cent: for each seed one for each of the row's metrics."""
    split: str = ""
    """The split that was reported."""
    remarks: tuple[str, ...] = ()
    """What was other than published."""

    @property
    def score(self) -> str:
        """Mean over seeds, and the deviation where there are several; a dash where there is none."""
        if not self.scores:
            return "-"
        return "/".join(_mean(one) for one in zip(*self.scores, strict=True))

    @property
    def line(self) -> str:
        """For people."""
        if not self.scores:
            return f"{self.row.name}: not run: {self.reason}"
        seeds = "1 seed" if len(self.scores) == 1 else f"{len(self.scores)} seeds"
        remarks = f"; {'; '.join(self.remarks)}" if self.remarks else ""
        return f"{self.row.name}: {'/'.join(self.row.metrics)} {self.score} on {self.split}, {seeds}{remarks}"

    def as_json(self) -> dict[str, Any]:
        named = [dict(zip(self.row.metrics, one, strict=True)) for one in self.scores]
        return {
            "row": self.row.name,
            "reason": self.reason,
            "scores": named,
            "split": self.split,
            "remarks": list(self.remarks),
        }


def run_row(row: Row, asked: Asked, hub: Hub, train: Train) -> Outcome:
    """Run a row with every seed, or say why not. Only an interruption by the user gets through."""
    try:
        return _run_row(row, asked, hub, train)
    except TrainingInterrupted:
        raise
    except Exception as error:  # whatever it is, the other rows do not share it
        first_line = (str(error).strip() or "no message").splitlines()[0]
        return Outcome(row, reason=f"{type(error).__name__}: {first_line}")


def _run_row(row: Row, asked: Asked, hub: Hub, train: Train) -> Outcome:
    layout = None if asked.data is None else layout_in(asked.data, row.data_set)
    recipe = _recipe(row, asked, layout)
    lack = lacking(recipe, RECIPES, hub)
    if lack is not None:
        return Outcome(row, reason=lack)
    if asked.only_check:
        return Outcome(row, reason=f"only checked; nothing lacks, {recipe.optimiser.epochs} epochs a seed")
    reports = []
    for seed in range(recipe.seed, recipe.seed + asked.num_seeds):
        folder = asked.out / row.name / str(seed)
        reports.append(_report(recipe.model_copy(update={"seed": seed}), folder, train))
    split = reports[0]["reported_split"]
    scores = tuple(tuple(100 * report["metrics"][split][name] for name in row.metrics) for report in reports)
    return Outcome(row, "", scores, split, tuple(_remarks(asked, layout)))


def _recipe(row: Row, asked: Asked, layout: Layout | None) -> Recipe:
    settings = [*row.settings, *(() if layout is None else layout.settings)]
    settings += [] if asked.backbone is None else [f"backbone={json.dumps(asked.backbone)}"]
    settings += [] if asked.epochs is None else [f"optimiser.epochs={asked.epochs}"]
    recipe = load(RECIPES / f"{row.recipe}.toml", [*settings, *asked.settings])
    assert recipe.data is not None, "the paper's recipes have one data set each"
    sources = recipe.data.sources
    if layout is not None:
        assert asked.data is not None
        sources |= {split: _in_folder(source, asked.data) for split, source in layout.splits.items()}
    if asked.limit is not None:
        sources = {split: source.model_copy(update={"limit": asked.limit}) for split, source in sources.items()}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=sources)})


def _in_folder(source: Source, folder: Path) -> Source:
    return source.model_copy(update={"path": str(folder.resolve() / source.name)})


def _report(recipe: Recipe, folder: Path, train: Train) -> dict[str, Any]:
    """Of a finished run of the same recipe, or of one made now."""
    file = folder / FILE
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text())
        if kept["recipe"] == recipe.model_dump(mode="json"):
            return kept
    return train(recipe, folder, RECIPES)


def _remarks(asked: Asked, layout: Layout | None) -> Iterator[str]:
    if asked.backbone is not None:
        yield f"on {Path(asked.backbone).name}"
    if asked.epochs is not None:
        yield f"{asked.epochs} epoch{'s' * (asked.epochs > 1)}"
    if asked.limit is not None:
        yield f"at most {asked.limit} rows of a split"
    if layout is not None and layout.remark:
        yield layout.remark
    yield from asked.settings


def _mean(scores: Sequence[float]) -> str:
    mean = f"{statistics.mean(scores):.1f}"
    return mean if len(scores) == 1 else f"{mean} ±{statistics.stdev(scores):.1f}"
