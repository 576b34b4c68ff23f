"""`prefixbank report` from outside: what it draws, where, and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from prefixbank import cli
from tests.report_cases import sweep, text_report

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text(json.dumps(text_report()))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(sweep()))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "page"),
    [
        ("run", "run/report.html"),
        ("run/report.json", "run/report.html"),
        ("sweep", "sweep/sweep.html"),
        ("sweep/sweep.json", "sweep/sweep.html"),
    ],
)
def test_a_page_lies_beside_its_json(given: str, page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(folder / given)]) == 0
    assert capsys.readouterr().out == f"{folder / page}\n"
    assert (folder / page).read_text("utf-8").startswith("<!doctype html>")


def test_a_page_goes_where_it_is_asked_to(folder: Path) -> None:
    assert cli.main(["report", str(folder / "run"), "--out", str(folder / "here.html")]) == 0
    assert (folder / "here.html").is_file()
    assert not (folder / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "found no JSON"),
        ("[1]", "found a list, wanted an object"),
        ("[" * 100_000, "found no JSON"),
        ('{"metrics": {}}', "reported_split: Field required (and 1 more)"),
        ('{"trials": 3, "metric": "f1"}', "trials: Input should be a valid tuple"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(
    content: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "other.json").write_text(content)
    assert cli.main(["report", str(folder / "other.json")]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.parametrize(
    ("given", "message"), [(".", "found neither report.json nor sweep.json"), ("no.json", "No such file")]
)
def test_a_missing_report_is_named(given: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(folder / given)]) == 1
    assert message in capsys.readouterr().err
