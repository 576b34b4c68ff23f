"""report.html: what it says, that it needs nothing else, and that strangers' texts stay texts."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.model_store.errors import InvalidReport
from prefixbank.trainer import report
from prefixbank.trainer.report import files
from tests.conftest import ROOT
from tests.report_cases import answers_report, names_report, sweep, text_report

if TYPE_CHECKING:
    from pathlib import Path

CASES = {"text": text_report, "names": names_report, "answers": answers_report}
SHIPPED = sorted((ROOT / "examples" / "reports").glob("*.json"))
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
VOID = {"meta", "link", "br", "wbr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; refuses one whose tags do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def poisoned(value: Any) -> Any:
    """Every text with markup behind it, but for the words that a schema knows."""
    if isinstance(value, str):
        return value if value in ("expected", "found", "both", "complete", "pruned", "failed") else value + HOSTILE
    if isinstance(value, dict):
        return {key: poisoned(found) for key, found in value.items()}
    return [poisoned(found) for found in value] if isinstance(value, list) else value


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CASES[request.param]()


def test_the_result_stands_first_with_its_interval_and_split(case: dict[str, Any]) -> None:
    metric = case["selection"]["metric"]
    low, high = case["confidence"]["intervals"]["test"][metric]
    head = Page(report.render(case).partition("</header>")[0] + "</header></main></body></html>").text
    assert f"{case['metrics']['test'][metric]:.3f}" in head
    assert f"{low:.3f} to {high:.3f}" in head
    assert "1,287 test rows" in head


def test_a_page_loads_and_runs_nothing(case: dict[str, Any]) -> None:
    page = Page(report.render(case))
    assert not {"script", "img", "iframe", "object", "embed"} & page.tags
    assert {value for name, value in page.attributes if name in ("href", "src")} == {"data:,", "#main"}
    assert "http" not in page.text.replace("https://", "http")
    assert any("default-src 'none'" in value for name, value in page.attributes if name == "content")


def test_no_number_is_lost_on_the_way_to_a_drawing(case: dict[str, Any]) -> None:
    page = report.render(case)
    assert not re.search(r"\b(nan|inf)\b", page.lower())
    assert "None" not in Page(page).text


@pytest.mark.parametrize("name", CASES)
def test_markup_in_texts_labels_and_paths_stays_text(name: str) -> None:
    clean = CASES[name]()
    found = poisoned(clean)
    for key in ("reported_split", "selection"):
        found[key] = clean[key]
    found["data"]["files"] = {HOSTILE: HOSTILE}
    clean["data"]["splits"]["test"]["labels"] = {"plain": 3}
    found["data"]["splits"]["test"]["labels"] = {HOSTILE: 3}
    page, harmless = Page(report.render(found)), Page(report.render(clean))
    assert page.tags == harmless.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text


def test_markup_in_a_sweep_stays_text() -> None:
    clean = sweep()
    page = Page(report.render_sweep(poisoned(clean) | {"metric": clean["metric"]}))
    assert page.tags == Page(report.render_sweep(clean)).tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_reports_of_earlier_versions_can_be_drawn(path: Path) -> None:
    found = json.loads(path.read_text("utf-8"))
    assert f"{found['metrics']['test'][found['selection']['metric']]:.3f}" in Page(report.render(found)).text


def test_a_report_of_the_least_can_be_drawn() -> None:
    least = {"reported_split": "test", "selection": {"metric": "f1"}, "metrics": {"test": {"f1": 0.25}}}
    assert "0.250" in Page(report.render(least)).text


def test_a_result_on_the_rows_that_chose_the_epoch_is_called_so(case: dict[str, Any]) -> None:
    warning = "the same rows chose the epoch"
    assert warning not in report.render(case)
    assert warning in report.render(case | {"reported_split": "validation"})


def test_skipped_rows_are_counted_and_the_first_is_named() -> None:
    page = Page(report.render(names_report())).text
    assert "12 bad rows of train left out." in page
    assert "wnut17train.conll:2210: found 1 column, wanted 2" in page


def test_a_label_is_scored_by_its_row_and_column() -> None:
    found = text_report()
    found["details"] = {"test": {"labels": ["no", "yes"], "confusion": [[6, 2], [1, 3]]}}
    page = Page(report.render(found)).text
    assert "no80.8570.7500.800" in page.replace("\n", "")
    assert "no answered as yes 2 · 25.0% of its rows" in page


def test_a_matrix_of_very_many_labels_gives_way_to_its_confused_pairs() -> None:
    found = text_report()
    confusion = [[9 if i == j else int((i, j) == (3, 60)) for j in range(77)] for i in range(77)]
    found["details"] = {"test": {"labels": [f"intent {i}" for i in range(77)], "confusion": confusion}}
    page = report.render(found)
    assert 'class="heat' not in page
    assert "intent 3 answered as intent 60" in Page(page).text


def test_a_long_run_is_thinned_but_for_the_kept_epoch() -> None:
    found = text_report()
    found["curve"] = [found["curve"][0] | {"epoch": epoch} for epoch in range(1, 5001)]
    found["selection"]["epoch"] = 2341
    page = report.render(found)
    assert len(page) < 250_000
    assert "2341 (kept)" in Page(page).text


def test_several_data_sets_show_their_mean_before_their_own_scores() -> None:
    found = names_report()
    scores = {"loss": 1.0, "a.recall": 0.1, "a.span_f1": 0.2, "b.span_f1": 0.3, "mean": 0.25}
    found["curve"] = [epoch | {"validation": scores} for epoch in found["curve"]]
    assert "epoch 1: mean 0.250, a.span F1 0.200, b.span F1 0.300" in report.render(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": None}, "here: metrics: Input should be a valid dictionary"),
        ({"selection": {}}, "here: selection.metric: Field required"),
        ({"train_seconds": float("nan")}, "train_seconds: Input should be a finite number"),
        ({"details": {"test": {"confusion": [[1, 2], [3]]}}}, "details.test: .* as many columns as rows"),
    ],
)
def test_what_no_page_can_be_drawn_of_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidReport, match=message):
        report.render(text_report() | change, "here")


def test_writing_puts_the_page_beside_the_json(tmp_path: Path) -> None:
    report.write(text_report(), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == text_report()
    assert (tmp_path / "report.html").read_text("utf-8") == report.render(text_report())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_page_that_cannot_be_drawn_costs_no_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report.write(text_report() | {"curve": "none"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert "report.html: not written" in caplog.text


def test_without_jinja_a_run_writes_its_json_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            report.write(text_report(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert caplog.text.count("pip install prefixbank[train]") == 1


def test_halves_of_characters_are_drawn_as_question_marks(tmp_path: Path) -> None:
    found = text_report()
    found["details"]["test"]["mistakes"][0]["texts"] = ["half \ud83d a smile"]
    (tmp_path / "report.json").write_text(json.dumps(found))
    assert "half ? a smile" in files.draw(tmp_path).read_text("utf-8")


def test_importing_the_reports_loads_neither_torch_nor_jinja() -> None:
    program = (
        "import sys, prefixbank.trainer.report; sys.exit(bool({'torch', 'jinja2', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
