"""`prefixbank train` from outside: what it writes and prints, and what it refuses before training."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from prefixbank import cli
from prefixbank.model_store import artifact
from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones import cpu_products
from prefixbank.model_store.store import PromptStore
from tests.tiny import SENTENCES, tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe beside its data and backbone."""
    rows = [{"text": text, "label": "long" if len(text) > 50 else "short"} for text in SENTENCES * 2]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    backbone = tiny_backbone_folder(tmp_path, "bert")
    (tmp_path / "tiny.toml").write_text(
        f'family = "text-classification"\nbackbone = "{backbone}"\n'
        '[data]\ntrain = "rows.jsonl"\nvalidation = "rows.jsonl"\n'
        "[prompt]\nlength = 4\n[optimiser]\nepochs = 2\nbatch_rows = 8\n"
    )
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["train", "tiny.toml", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_run_writes_an_artifact_that_the_server_confirmed(run: Run, folder: Path) -> None:
    code, out, err = run()
    assert (code, out) == (0, "runs/tiny/artifact\n"), err
    report = json.loads((folder / "runs/tiny/report.json").read_text())
    assert report["serving_check"]["logit_distance"] < report["serving_check"]["logit_tolerance"]
    assert artifact.digest(folder / "runs/tiny/artifact") == report["revision"]


def test_a_run_may_use_every_instruction_unless_the_environment_says_otherwise(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(cpu_products.ISA_VARIABLE)  # which conftest set
    assert run()[0] == 0
    assert os.environ[cpu_products.ISA_VARIABLE] == "ALL"
    monkeypatch.setenv(cpu_products.ISA_VARIABLE, cpu_products.MOST)
    assert run("--out", "again")[0] == 0
    assert os.environ[cpu_products.ISA_VARIABLE] == cpu_products.MOST


def test_a_run_publishes_and_promotes_only_when_asked(run: Run, folder: Path) -> None:
    assert run("--out", "here", "--publish", "acme/length", "--store", "shop")[0] == 0
    store, task = PromptStore.existing(folder / "shop"), Address("acme", "length")
    revision = artifact.digest(folder / "here" / "artifact")
    assert [found.revision for found in store.show(task).revisions] == [revision]
    assert not store.show(task).aliases
    assert run("--out", "here", "--publish", "acme/length", "--store", "shop", "--promote", "--seed", "7")[0] == 0
    assert store.resolve(task) == artifact.digest(folder / "here" / "artifact") != revision


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "prompt.length=0"], "prompt.length: found 0"),
        (["--set", "prompt.size=3"], "prompt.size: found an unknown field"),
        (["--promote"], "found no --publish"),
        (["--publish", "nowhere"], "nowhere"),
        (["--publish", "acme/length", "--set", "method=full"], "makes no artifact"),
        (["--publish", "acme/length", "--store", "rows.jsonl"], "found a file at rows.jsonl, wanted a folder"),
        (["--resume"], "found no checkpoint"),
        (["--set", "data.train=none.jsonl"], "none.jsonl: cannot be read"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.strip().count("\n") == 0


def test_a_bad_row_is_left_out_and_told_unless_the_run_is_strict(run: Run, folder: Path) -> None:
    with (folder / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps({"text": "", "label": "short"}) + "\n")
    code, _, err = run("--strict")
    assert (code, err.count("\n")) == (1, 1)
    assert "rows.jsonl:25: text: found '', wanted a text that is not empty" in err
    assert run("--set", "data.tolerance=0.05")[0] == 0
    skipped = json.loads((folder / "runs/tiny/report.json").read_text())["skipped"]
    assert skipped["train"]["rows"] == 1
    assert ":25: text: found ''" in skipped["train"]["first"]


def test_full_fine_tuning_reports_and_makes_no_artifact(run: Run, folder: Path) -> None:
    code, out, _ = run("--set", "method=full", "--set", "dtype=float32")
    assert (code, out) == (0, "")
    assert json.loads((folder / "runs/tiny/report.json").read_text())["trained_share"] > 1


def test_a_page_and_scalars_for_tensorboard_lie_beside_the_report(run: Run, folder: Path) -> None:
    pytest.importorskip("tensorboard")
    assert run("--tensorboard")[0] == 0
    assert (folder / "runs/tiny/report.html").read_text("utf-8").startswith("<!doctype html>")
    assert len(list((folder / "runs/tiny/tensorboard").glob("events.*"))) == 1
