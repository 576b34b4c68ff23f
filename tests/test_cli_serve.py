"""`prefixbank predict` and what `serve` does before there is a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from prefixbank import cli_serve
from prefixbank.cli import main
from prefixbank.model_store import artifact
from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.store import PromptStore
from tests.family_prompts import family_input, family_tasks
from tests.serving_cases import TEXT, random_prompt
from tests.tiny import SENTENCES, tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone

HOME = Address("acme", "sentiment")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(str(folder))


@pytest.fixture
def store(tmp_path: Path, backbone: Backbone) -> PromptStore:
    store = PromptStore(tmp_path / "store")
    store.promote(HOME, store.publish(HOME, random_prompt(backbone, 5, seed=1, family=TEXT)))
    return store


def predict(store: PromptStore, folder: Path, lines: list[str], task: str = str(HOME)) -> int:
    source = store.root.parent / "lines.jsonl"
    source.write_text("\n".join(lines))
    where = ["--store", str(store.root), "--backbone", str(folder), "--input", str(source)]
    return main(["predict", task, *where])


def test_predict_answers_each_line_in_order(
    store: PromptStore, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batched = json.dumps({"inputs": list(SENTENCES[1:3]), "parameters": {"top_k": 1}})
    assert predict(store, folder, [json.dumps(SENTENCES[0]), "", batched] + [json.dumps("x")] * 600) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(answer) for answer in answers] == [1, 2] + [1] * 600
    assert len(answers[0][0]) == 3


def test_predict_answers_every_family(
    tmp_path: Path, backbone: Backbone, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = PromptStore(tmp_path / "store")
    for address, prompt in family_tasks(backbone).items():
        store.promote(address, store.publish(address, prompt))
        line = json.dumps(family_input(prompt, SENTENCES[2]))
        assert predict(store, folder, [line, json.dumps({"inputs": json.loads(line)})], str(address)) == 0
        first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert json.dumps(first)[:40] == json.dumps(second)[:40]
        assert predict(store, folder, [line, '"no such input"'], str(address)) == 1
        assert "line 2: inputs: found a string, wanted {" in capsys.readouterr().err


@pytest.mark.parametrize("bad", ["{", '{"inputs": "x", "parameters": {"top_k": -1}}', "5"])
def test_predict_names_the_line_that_it_refuses(
    store: PromptStore, folder: Path, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    assert predict(store, folder, ['"fine"', bad, '"never"']) == 1
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 1
    assert told.err.startswith("prefixbank: error: line 2: ")
    assert len(told.err.splitlines()) == 1


def test_predict_refuses_an_unknown_task(store: PromptStore, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(store, folder, ['"x"'], "acme/nothing") == 1
    assert "acme/nothing" in capsys.readouterr().err


def test_seeding_publishes_the_examples_that_are_missing(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_serve, "EXAMPLES", tmp_path / "examples")
    for name, seed in (("a", 1), ("b", 2)):
        artifact.write(random_prompt(backbone, 5, seed=seed), tmp_path / "examples" / "acme" / name)
    assert cli_serve.seed(tmp_path / "store") == ["acme/a", "acme/b"]
    assert cli_serve.seed(tmp_path / "store") == []
    store = PromptStore(tmp_path / "store")
    assert store.resolve(Address("acme", "a")) != store.resolve(Address("acme", "b"))


def test_a_wrong_setting_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--set", "prot=8000"]) == 1
    assert "prot" in capsys.readouterr().err
    assert main(["serve", "--set", "port"]) == 2
