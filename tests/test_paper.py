"""The paper's tables with our column: transcription, what a row lacks, runs over seeds, and the view."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import main
from benchmarks.paper_layouts import LAYOUTS, layout_in
from benchmarks.paper_needs import RealHub, lacking
from benchmarks.paper_rows import ROWS, Cell
from benchmarks.paper_run import RECIPES, Asked, Outcome, run_row
from benchmarks.paper_tables import BERT, DEBERTA, GLM_2B, GLM_10B, LINEAR, RELEASED, ROBERTA, TABLES, VERBALIZER, table
from benchmarks.paper_view import shown
from prefixbank.model_store.errors import TrainingInterrupted
from prefixbank.trainer.recipe import METRICS, Recipe, load
from tests.conftest import ROOT

NAMED = {row.name: row for row in ROWS}
SHARED = ROOT.parent / "shared" / "data"


INSTALL = "pip install prefixbank[hub]"


class FakeHub:
    """A hub that keeps and answers as told."""

    def __init__(self, *kept: str, answers: bool = False, reads_data_sets: bool = True) -> None:
        self.kept, self.answers, self.reads_data_sets = kept, answers, reads_data_sets

    def keeps_backbone(self, name: str) -> bool:
        return name in self.kept

    def keeps_data_set(self, name: str) -> bool:
        return name in self.kept


class FakeTrainer:
    """Scores 0.5 plus a hundredth for each seed after 11; keeps what it was asked to train."""

    def __init__(self) -> None:
        self.trained: list[Recipe] = []

    def __call__(self, recipe: Recipe, folder: Path, root: Path) -> dict[str, Any]:
        self.trained.append(recipe)
        score = 0.5 + (recipe.seed - 11) / 100
        names = METRICS[recipe.family]
        return {"reported_split": "validation", "metrics": {"validation": dict.fromkeys(names, score)}}


def rte_in(folder: Path) -> Path:
    (folder / "RTE").mkdir()
    for name in ("train", "val"):
        (folder / "RTE" / f"{name}.jsonl").write_text("")
    return folder


@pytest.mark.parametrize(
    ("number", "backbone", "task", "method", "score"),
    [
        (1, BERT, "RTE", "PT-2", (78.3,)),
        (1, ROBERTA, "CB", "PT-2", (100.0,)),
        (1, GLM_2B, "MNLI-m", "FT", ()),
        (1, GLM_10B, "BoolQ", "PT", (88.8,)),
        (2, BERT, "OntoNotes 5.0", "MPT-2", (86.3,)),
        (2, DEBERTA, "CoNLL04", "PT", (82.4,)),
        (3, BERT, "SQuAD 1.1", "MPT-2", (82.3, 89.6)),
        (3, DEBERTA, "SQuAD 2.0", "PT-2", (88.4, 91.1)),
        (4, BERT, "CoNLL12", "PT", (64.5,)),
        (4, ROBERTA, "CoNLL05 Brown", "MPT-2", (85.7,)),
        (5, ROBERTA, "SST-2", VERBALIZER, (95.8,)),
    ],
)
def test_the_papers_numbers_are_the_papers(
    number: int, backbone: str, task: str, method: str, score: tuple[float, ...]
) -> None:
    assert table(number).scores[backbone, task, method] == score


@pytest.mark.parametrize("one", TABLES, ids=lambda one: f"table {one.number}")
def test_a_table_has_every_cell(one: Any) -> None:
    assert len(one.scores) == len(one.backbones) * len(one.tasks) * len(one.methods)


def test_every_row_has_a_recipe_a_place_and_a_layout() -> None:
    scored = {cell for one in TABLES for cell in (Cell(one.number, *key) for key in one.scores)}
    for row in ROWS:
        recipe = load(RECIPES / f"{row.recipe}.toml", row.settings)
        assert set(row.metrics) <= set(METRICS[recipe.family]), row.name
        assert all(cell in scored or cell.table is None for cell in row.cells), row.name
        assert row.data_set in LAYOUTS, row.name
    assert {row.recipe for row in ROWS} == set(RELEASED)


def test_a_row_without_a_backbone_says_so() -> None:
    outcome = run_row(NAMED["rte_roberta"], Asked(), FakeHub("aps/super_glue"), FakeTrainer())
    assert outcome.line == "rte_roberta: not run: needs FacebookAI/roberta-large: not found locally and no network"


@pytest.mark.parametrize(
    ("hub", "lack"),
    [
        (FakeHub(), "needs aps/super_glue: not found locally and no network"),
        (
            FakeHub("aps/super_glue", reads_data_sets=False),
            "needs the datasets library for aps/super_glue: pip install prefixbank[hub]",
        ),
        (FakeHub(answers=True), None),
        (FakeHub("aps/super_glue"), None),
    ],
)
def test_what_is_kept_or_can_be_asked_for_does_not_lack(hub: FakeHub, lack: str | None) -> None:
    recipe = load(RECIPES / "rte_bert.toml", ["backbone=minilm"])
    assert lacking(recipe, RECIPES, hub) == lack


def test_the_real_hub_looks_into_its_caches_and_asks_nobody_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "datasets" / "aps___super_glue").mkdir(parents=True)
    hub = RealHub()
    assert [hub.keeps_data_set(name) for name in ("aps/super_glue", "rajpurkar/squad")] == [True, False]
    assert not hub.keeps_backbone("nobody/nothing")
    assert not hub.answers


def test_a_row_without_its_files_names_the_first() -> None:
    outcome = run_row(NAMED["conll04_bert"], Asked(backbone="minilm"), FakeHub(), FakeTrainer())
    assert outcome.reason == f"needs data/CoNLL04/train.txt: no such file in {RECIPES}"


def test_a_row_runs_once_per_seed_and_says_what_is_not_as_published(tmp_path: Path) -> None:
    train = FakeTrainer()
    asked = Asked(3, "minilm", rte_in(tmp_path), epochs=1, limit=64, out=tmp_path)
    outcome = run_row(NAMED["rte_bert"], asked, FakeHub(), train)
    assert [recipe.seed for recipe in train.trained] == [11, 12, 13]
    assert outcome.line == (
        "rte_bert: accuracy 51.0 ±1.0 on validation, 3 seeds; on minilm; 1 epoch; at most 64 rows of a split"
    )
    data = train.trained[0].data
    assert data is not None
    assert {name: source.limit for name, source in data.sources.items()} == {"train": 64, "validation": 64}
    assert data.train.path == str(tmp_path / "RTE" / "train.jsonl")


def test_a_finished_run_of_the_same_recipe_is_not_repeated(tmp_path: Path) -> None:
    asked = Asked(1, "minilm", rte_in(tmp_path), out=tmp_path)
    first, second = FakeTrainer(), FakeTrainer()
    run_row(NAMED["rte_bert"], asked, FakeHub(), first)
    folder = tmp_path / "rte_bert" / "11"
    folder.mkdir(parents=True)
    report = first(first.trained[0], folder, tmp_path) | {"recipe": first.trained[0].model_dump(mode="json")}
    (folder / "report.json").write_text(json.dumps(report))
    assert run_row(NAMED["rte_bert"], asked, FakeHub(), second).score == "50.0"
    assert second.trained == []


def test_a_check_trains_nothing(tmp_path: Path) -> None:
    train = FakeTrainer()
    asked = Asked(1, "minilm", rte_in(tmp_path), out=tmp_path, only_check=True)
    assert "nothing lacks, 60 epochs" in run_row(NAMED["rte_bert"], asked, FakeHub(), train).line
    assert train.trained == []


def test_a_row_that_fails_is_a_line_and_an_interruption_is_not(tmp_path: Path) -> None:
    asked = Asked(1, "minilm", rte_in(tmp_path), out=tmp_path)

    def failing(error: Exception) -> Any:
        def train(recipe: Recipe, folder: Path, root: Path) -> dict[str, Any]:
            raise error

        return train

    outcome = run_row(NAMED["rte_bert"], asked, FakeHub(), failing(MemoryError("no room\nat all")))
    assert outcome.reason == "MemoryError: no room"
    with pytest.raises(TrainingInterrupted):
        run_row(NAMED["rte_bert"], asked, FakeHub(), failing(TrainingInterrupted("stop")))


def test_scores_stand_beside_the_papers() -> None:
    outcome = Outcome(NAMED["squad_roberta"], "", ((88.0, 94.0), (88.2, 94.2)), "validation", ("1 epoch",))
    [line] = [line for line in shown([outcome]).splitlines() if line.startswith("SQuAD 1.1  RoBERTa")]
    assert line.split() == [
        *("SQuAD", "1.1", "RoBERTa-large", "355M", "88.9/94.6", "1.2/12.0", "88.1/94.1", "88.0/94.1", "88.1/94.2"),
        *("88.1", "±0.1/94.1", "±0.1", "[1]"),
    ]
    assert shown([outcome]).endswith("[1] 1 epoch")


def test_head_and_verbalizer_have_a_column_each() -> None:
    outcomes = [Outcome(NAMED["rte_roberta"], "", ((86.0,),)), Outcome(NAMED["rte_roberta+verbalizer"], "", ((85.0,),))]
    lines = shown(outcomes).partition("Table 5")[2].splitlines()
    assert lines[1].endswith(f"ours: {LINEAR}  ours: {VERBALIZER}")
    assert lines[3].split() == ["RTE", "RoBERTa-large", "355M", "88.4", "86.6", "86.6", "86.0", "85.0"]


@pytest.mark.parametrize("data_set", ["boolq", "rte", "conll04", "squad", "squad_v2"])
def test_the_shared_sets_are_found(data_set: str) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent")
    assert layout_in(SHARED, data_set) is not None


def test_the_program_prints_every_table_where_nothing_is_at_hand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.paper.RealHub", FakeHub)
    assert main(["--json", str(tmp_path / "found.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("not run: needs") == len(ROWS)
    assert all(f"Table {number}." in printed for number in range(1, 6))
    assert (tmp_path / "found.json").read_text().count('"row"') == len(ROWS)


def test_an_unknown_row_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", "rte_gpt"])
    assert "found rte_gpt, wanted some of boolq_bert" in capsys.readouterr().err


def test_the_page_about_the_paper_names_files_that_are_there() -> None:
    page = (ROOT / "docs" / "paper.md").read_text()
    named = re.findall(r"`((?:benchmarks|examples|kernels|model_store|trainer)/[\w/.]*)`", page)
    assert len(named) > 15
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_names_of_rows_are_their_own() -> None:
    assert len(NAMED) == len(ROWS)
