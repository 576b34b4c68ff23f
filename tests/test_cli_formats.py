"""`prefixbank import` and `export` from outside: what they print where, and their exit codes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank import cli
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.store import Address, PromptStore
from prefixbank.model_store.task_prompt import Pooler
from prefixbank.serving.predict import Predictor
from tests.format_cases import PREFIX, TEXT, WORDS, Published, edit_json
from tests.prompt_cases import same_prompt
from tests.serving_cases import random_prompt
from tests.shallow_cases import shallow
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

TASK = Address("acme", "rte")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone_folder(tmp_path_factory.mktemp("backbones"), "bert")


@pytest.fixture
def source(backbone: Path, tmp_path: Path) -> Path:
    return Published(backbone, TEXT, 3).save(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return PromptStore(tmp_path / "store")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command in this process against a store in `tmp_path`; return exit code, stdout and stderr."""
    monkeypatch.setenv("PREFIXBANK_STORE", str(tmp_path / "store"))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_import_prints_the_revision_alone_on_stdout(
    run: Callable[..., Any], source: Path, backbone: Path, store: PromptStore
) -> None:
    code, out, err = run("import", source, "--backbone", backbone, "--task", TASK)
    assert (code, out) == (0, store.find_revision(TASK, out[:8]) + "\n")
    assert f"reading {source} as ptuning-v2, for {backbone}" in err
    assert "P-tuning-v2: 6 prefix tokens in 3 of 3 layers, text-classification with 3 classes, " in err
    assert "backbone pooler, position offset 6, rows of up to 506 tokens" in err
    assert "encoder tensors are those of" in err
    assert f"store promote acme/rte {out[:12]}" in err


def test_what_is_imported_is_served_as_the_source_answers(
    run: Callable[..., Any], source: Path, backbone: Path, store: PromptStore
) -> None:
    """In fp32 through the serving engine, probabilities to 1e-6."""
    arguments = ("--backbone", backbone, "--task", TASK, "--labels", "no, maybe ,yes", "--promote")
    code, _, err = run("import", source, *arguments)
    assert code == 0
    assert "acme/rte: live is" in err
    text = "the film was a quiet joy from the first scene to the last"
    with Predictor(str(backbone), store) as predictor:
        answer = predictor.answer(TASK, text)
        ids = load_backbone(str(backbone)).tokenizer.encode(text).ids
    wanted = Published(backbone, TEXT, 3).double().logits(ids).softmax(0)
    scores = {entry["label"]: entry["score"] for entry in answer.value[0]}
    found = torch.tensor([scores[label] for label in ("no", "maybe", "yes")], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_options_reach_the_prompt(run: Callable[..., Any], backbone: Path, tmp_path: Path, store: PromptStore) -> None:
    source = Published(backbone, WORDS, 3).save(tmp_path / "words")
    (source / "config.json").unlink()
    options = ("--family", "token-classification", "--format", "ptuning-v2", "--max-tokens", 64, "--no-prefix-space")
    code, out, _ = run("import", source, "--backbone", backbone, "--task", TASK, *options)
    assert code == 0
    prompt = store.load(TASK, out.strip())
    assert (prompt.family, prompt.preprocessing.max_tokens) == (WORDS, 64)
    assert not prompt.preprocessing.add_prefix_space


@pytest.mark.parametrize("target", ["peft", "ptuning-v2"])
def test_export_and_import_give_the_same_revision(
    run: Callable[..., Any], source: Path, backbone: Path, tmp_path: Path, target: str
) -> None:
    first = run("import", source, "--backbone", backbone, "--task", TASK, "--promote")[1]
    code, out, err = run("export", TASK, "--format", target, "--output", tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert err.startswith(f"acme/rte {first[:12]}: 6 prefix tokens in 3 of 3 layers")
    again = run("import", tmp_path / "out", "--backbone", backbone, "--task", "acme/again")[1]
    assert again == first


def test_a_revision_may_be_named(run: Callable[..., Any], backbone: Path, tmp_path: Path, store: PromptStore) -> None:
    prompt = random_prompt(load_backbone(str(backbone)), PREFIX, seed=1, family=WORDS)
    revision = store.publish(TASK, prompt)
    assert run("export", TASK, "--format", "peft", "--output", tmp_path / "out")[0] == 1
    options = ("--revision", revision[:6])
    assert run("export", TASK, "--format", "peft", "--output", tmp_path / "out", *options)[0] == 0
    again = run("import", tmp_path / "out", "--backbone", backbone, "--task", TASK)[1]
    assert same_prompt(store.load(TASK, again.strip()), prompt)


def test_an_unshifted_prompt_is_not_exported(
    run: Callable[..., Any], backbone: Path, tmp_path: Path, store: PromptStore
) -> None:
    prompt = random_prompt(load_backbone(str(backbone)), PREFIX, seed=1, family=WORDS)
    store.promote(TASK, store.publish(TASK, dataclasses.replace(prompt, position_offset=0)))
    code, out, err = run("export", TASK, "--format", "peft", "--output", tmp_path / "out")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the position offset is 0" in err


def test_a_shallow_prompt_goes_out_and_comes_back(
    run: Callable[..., Any], backbone: Path, tmp_path: Path, store: PromptStore
) -> None:
    prompt = shallow(random_prompt(load_backbone(str(backbone)), 0, seed=1, pooler=Pooler.BACKBONE), 5, pools="prompt")
    revision = store.publish(TASK, prompt)
    store.promote(TASK, revision)
    code, _, err = run("export", TASK, "--format", "peft", "--output", tmp_path / "out")
    assert code == 0
    assert "5 vectors before the text, text-classification with 3 classes, backbone pooler of the first vector" in err
    arguments = ("import", tmp_path / "out", "--backbone", backbone, "--task", "acme/again")
    assert run(*arguments)[1].strip() == revision
    code, _, err = run(*arguments, "--source-task", 1)
    assert code == 1
    assert "task 1 was chosen, and a source of PEFT PROMPT_TUNING holds one" in err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pre_seq_len": 7}, "pre_seq_len is 7"),
        ({"problem_type": "regression"}, "'regression'"),
        ({"model_type": "deberta"}, "is of a 'deberta'"),
    ],
)
def test_a_refusal_is_one_line(
    run: Callable[..., Any], source: Path, backbone: Path, changes: dict[str, object], said: str
) -> None:
    edit_json(source / "config.json", **changes)
    code, out, err = run("import", source, "--backbone", backbone, "--task", TASK)
    remark, error = err.splitlines()
    assert (code, out) == (1, "")
    assert remark.startswith("reading ")
    assert error.startswith("prefixbank: error: ")
    assert said in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", "nothing", "--backbone", "minilm", "--task", "acme/rte"],
        ["import", "source", "--backbone", "minilm", "--task", "Acme/../rte"],
        ["import", "source", "--backbone", "./nothing", "--task", "acme/rte", "--format", "adapters"],
        ["export", "acme/unknown", "--format", "peft", "--output", "out"],
        ["export", "acme/unknown", "--format", "peft", "--output", "out", "--store", "/no/such/store"],
    ],
)
def test_an_error_is_one_line_at_last(
    run: Callable[..., Any], source: Path, store: PromptStore, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("prefixbank: error: ")
    assert err.count("prefixbank: error: ") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", "source", "--backbone", "minilm"],
        ["import", "source", "--backbone", "minilm", "--task", "acme/rte", "--format", "glm"],
        ["export", "acme/rte", "--format", "adapters", "--output", "out"],
    ],
)
def test_a_misused_option_exits_with_2(run: Callable[..., Any], arguments: list[str]) -> None:
    assert run(*arguments)[0] == 2


def test_a_hostile_name_does_not_steer_the_terminal(run: Callable[..., Any], source: Path, backbone: Path) -> None:
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "x\x1b[31m\ny"}))
    code, _, err = run("import", source, "--backbone", backbone, "--task", TASK)
    assert code == 1
    assert "\x1b" not in err


@pytest.mark.parametrize("command", ["import", "export"])
def test_help_reads_without_heavy_imports(command: str) -> None:
    code = (
        "import sys; from prefixbank.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'ray', 'transformers', 'safetensors', 'numpy'} & set(sys.modules);"
        "sys.exit(f'{code} {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: prefixbank" in done.stdout
