"""Layouts: how the data sets of the paper's rows may lie in a folder of the user's.

The official archives, the authors' pack, and cuts of official files for who has no more; a score on a cut says so.
It refuses to know recipes and scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prefixbank.trainer.recipe import Source

if TYPE_CHECKING:
    from pathlib import Path

SPLITS = ("train", "validation", "test")


class Layout(NamedTuple):
    """One way in which a data set may lie in a folder."""

    splits: dict[str, Source]
    settings: tuple[str, ...] = ()
    """What the files' columns need other than the recipe's."""
    remark: str = ""
    """What is not the published split, said beside the score."""

    def lies_in(self, folder: Path) -> bool:
        """All files are there."""
        return all((folder / source.name).is_file() for source in self.splits.values())


def layout_in(folder: Path, data_set: str) -> Layout | None:
    """The first layout of a data set whose files are all in a folder."""
    return next((layout for layout in LAYOUTS[data_set] if layout.lies_in(folder)), None)


def _files(folder: str, *names: str, settings: tuple[str, ...] = (), remark: str = "") -> Layout:
    """Training, validation and test files."""
    paths = [f"{folder}/{name}" if folder else name for name in names]
    splits = {split: Source(path=path) for split, path in zip(SPLITS, paths, strict=False)}
    return Layout(splits, settings, remark)


def _superglue(name: str, *settings: str) -> Layout:
    """As in the archives of super.gluebenchmark.com."""
    return _files(name, "train.jsonl", "val.jsonl", settings=settings)


def _roles(folder: str, name: str, test: str) -> Layout:
    """As in the authors' pack."""
    return _files(folder, f"{name}.train.txt", f"{name}.devel.txt", f"{name}.{test}.txt")


_COLUMNS = ("data.format=conll",)
_BOOLQ_IN_THREE = Layout(
    {
        "train": Source(path="boolq/dev.jsonl", rows=(0, 2223)),
        "validation": Source(path="boolq/dev.jsonl", rows=(2223, 2470)),
        "test": Source(path="boolq/dev.jsonl", rows=(2470, 3270)),
    },
    ("data.label=answer",),
    "the development file in three: rows 0-2222 train, 2223-2469 choose the epoch, 2470-3269 are reported",
)
_SQUAD_PART = _files(
    "squad/v1.1",
    "du-split-test-v1.1.json",
    "dev-v1.1.json",
    remark="44 articles of the training set train, not 442",
)
_SQUAD_V2_PART = _files(
    "squad/v2.0",
    "train-v2.0-first10articles.json",
    "chrischute-dev-v2.0.json",
    remark="10 articles of the training set train, not 442; 16 of the development set are reported, not 35",
)
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "boolq": (_superglue("BoolQ"), _BOOLQ_IN_THREE),
    "rte": (
        _superglue("RTE"),
        _files("glue/RTE", "train.tsv", "dev.tsv", settings=('data.text=["sentence1", "sentence2"]',)),
    ),
    "copa": (_superglue("COPA"),),
    "wic": (_superglue("WiC"),),
    "wsc": (_superglue("WSC", 'data.text=["{target.span2_text}: {text}", "target.span1_text"]'),),
    "conll03": (
        _files("CoNLL03", "train.txt", "valid.txt", "test.txt", settings=_COLUMNS),
        _files("", "eng.train", "eng.testa", "eng.testb", settings=(*_COLUMNS, "data.scheme=iob1")),
    ),
    "conll04": (
        _files("CoNLL04", "train.txt", "dev.txt", "test.txt", settings=_COLUMNS),
        _files(
            "ner/conll04",
            *(f"conll04_{split}.json" for split in ("train", "dev", "test")),
            settings=('data.text=["tokens"]', "data.label=tags", "data.scheme=bilou", "data.format=json"),
        ),
    ),
    "ontonotes": (_files("ontoNotes", *(f"{split}.sd.conllx" for split in ("train", "dev", "test"))),),
    "squad": (_files("", "train-v1.1.json", "dev-v1.1.json"), _SQUAD_PART),
    "squad_v2": (_files("", "train-v2.0.json", "dev-v2.0.json"), _SQUAD_V2_PART),
    "conll05": (_roles("CoNLL05", "conll05", "test.wsj"),),
    "conll05_brown": (_roles("CoNLL05", "conll05", "test.brown"),),
    "conll12": (_roles("CoNLL12", "conll2012", "test"),),
}
"""By data set, the published files first."""
