"""`prefixbank sweep` and `prefixbank train --data` from outside: what they write and print, and what they refuse."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank import cli
from prefixbank.model_store import artifact
from prefixbank.model_store.address import Address
from prefixbank.model_store.store import PromptStore
from prefixbank.trainer.recipe import load
from prefixbank.trainer.sweep_display import LogSweepDisplay
from tests.sweep_cases import write_texts
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]

FEW = ["--trials", "2", "--seeds", "1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recipes and one of two data sets beside their data and backbone."""
    write_texts(tmp_path)
    head = f'family = "text-classification"\nbackbone = "{tiny_backbone_folder(tmp_path, "bert")}"\ndtype = "float32"\n'
    data = 'train = "texts.jsonl"\nvalidation = "texts.jsonl"\n'
    tail = "[optimiser]\nepochs = 2\nbatch_rows = 16\n[sweep.space]\nprompt.length = [2, 3]\n"
    for name in ("one", "other"):
        (tmp_path / f"{name}.toml").write_text(f"{head}[data]\n{data}{tail}")
    (tmp_path / "both.toml").write_text(f"{head}[tasks.left.data]\n{data}[tasks.right.data]\n{data}{tail}")
    return tmp_path


@pytest.fixture
def _same_threads() -> Iterator[None]:
    """A command may set how many there are."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_sweep_leaves_a_recipe_an_artifact_and_a_page(run: Run, folder: Path) -> None:
    code, out, err = run("sweep", "one.toml", *FEW, "--publish", "acme/length", "--promote")
    assert (code, out) == (0, "runs/one-sweep/artifact\n"), err
    assert "best of all: prompt.length = " in err
    assert {"best.toml", "sweep.json", "sweep.html", "report.html", "report.json"} <= {
        path.name for path in (folder / "runs/one-sweep").iterdir()
    }
    revision = artifact.digest(folder / "runs/one-sweep/artifact")
    assert PromptStore.existing(folder / "store").resolve(Address("acme", "length")) == revision
    assert run("train", "runs/one-sweep/best.toml", "--out", "again")[0] == 0
    reports = [json.loads((folder / name / "report.json").read_text()) for name in ("runs/one-sweep", "again")]
    assert reports[0]["metrics"] == reports[1]["metrics"]


def test_recipes_swept_together_go_each_to_a_folder_and_an_address_of_its_own(run: Run, folder: Path) -> None:
    code, out, err = run("sweep", "one.toml", "other.toml", *FEW, "--out", "all", "--publish", "acme")
    assert (code, out) == (0, "all/one/artifact\nall/other/artifact\n"), err
    assert [str(address) for address in PromptStore.existing(folder / "store").list()] == ["acme/one", "acme/other"]


def test_data_sets_that_share_a_prompt_are_published_by_their_names(run: Run, folder: Path) -> None:
    code, out, err = run("train", "both.toml", "--publish", "acme")
    assert (code, out) == (0, "runs/both/left/artifact\nruns/both/right/artifact\n"), err
    assert [str(address) for address in PromptStore.existing(folder / "store").list()] == ["acme/left", "acme/right"]
    code, out, err = run("sweep", "both.toml", *FEW, "--out", "swept", "--publish", "new")
    assert (code, out) == (0, "swept/left/artifact\nswept/right/artifact\n"), err
    record = json.loads((folder / "swept/sweep.json").read_text())
    assert record["metric"] == "mean"
    assert all(trial["score"] is not None for trial in record["trials"])
    code, out, err = run("train", "both.toml", "--publish", "acme/both")
    assert (code, out) == (1, "")
    assert "wanted a tenant alone, for acme/left, acme/right" in err


def test_an_interrupted_sweep_says_how_to_go_on_and_goes_on(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def interrupt(_: LogSweepDisplay, number: int, *__: object) -> None:
        told.append(number)
        if len(told) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(LogSweepDisplay, "epoch", interrupt)
    code, out, err = run("sweep", "one.toml", *FEW)
    assert (code, out) == (130, "")
    assert "runs/one-sweep holds them, --resume continues" in err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run("sweep", "one.toml", *FEW)[0] == 1
    assert run("sweep", "one.toml", *FEW, "--resume")[0] == 0


@pytest.mark.usefixtures("_same_threads")
def test_rows_alone_are_enough(run: Run, folder: Path) -> None:
    backbone = str(tiny_backbone_folder(folder, "bert"))
    arguments = ["--data", "texts.jsonl", "--backbone", backbone, "--budget", "6s", "--set", "prompt.init=labels"]
    code, out, err = run("train", *arguments, "--publish", "acme/joy")
    assert (code, out) == (0, "runs/texts/artifact\n"), err
    assert "planned: " in err
    found = load(folder / "runs/texts/recipe.toml")
    assert found.data is not None
    assert (found.data.text, found.data.label, found.prompt.init) == (("text",), "label", "labels")
    planned = load(folder / "runs/texts/search.toml")
    assert planned.optimiser.prompt_rate == pytest.approx(3e-2 * (planned.optimiser.batch_rows / 32) ** 0.5, rel=0.05)
    assert planned.sweep is not None
    assert set(planned.sweep.space) == {"prompt.length", "optimiser.prompt_rate", "optimiser.head_rate"}
    assert run("train", "runs/texts/recipe.toml", "--out", "again")[0] == 0
    reports = [json.loads((folder / name / "report.json").read_text()) for name in ("runs/texts", "again")]
    curves = [[epoch["validation"]["accuracy"] for epoch in report["curve"]] for report in reports]
    assert curves[0] == curves[1][: len(curves[0])], "time may have ended the first one early"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "one.toml", "--budget", "soon"], "--budget: found 'soon', wanted a duration"),
        (["sweep", "one.toml", "--sampler", "best"], "sweep.sampler: found 'best'"),
        (["sweep", "one.toml", "--resume"], "runs/one-sweep: found no sweep, wanted one to resume"),
        (["sweep", "one.toml", "--promote"], "found no --publish"),
        (["sweep", "one.toml", "other.toml", "--publish", "acme/x"], "wanted a tenant alone, for acme/one, acme/other"),
        (["sweep", "one.toml", "--set", "sweep.space.prompt.size=[1, 2]"], "prompt.size: found an unknown field"),
        (["train"], "found neither a recipe nor --data"),
        (["train", "one.toml", "--budget", "3m"], "found --budget beside a recipe"),
        (["train", "--data", "texts.jsonl", "--tensorboard"], "--tensorboard: found it beside --data"),
        (["train", "--data", "none.jsonl"], "none.jsonl: cannot be read"),
        (["train", "--data", "texts.jsonl", "--resume"], "runs/texts: found no search, wanted one to resume"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.strip().count("\n") == 0
