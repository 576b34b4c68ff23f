"""The command line around the store, from outside: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from prefixbank import cli
from prefixbank.model_store import artifact
from prefixbank.model_store.store import Address, PromptStore
from tests.prompt_cases import make_prompt, make_shallow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from prefixbank.model_store.task_prompt import TaskPrompt

TASK = Address("acme", "intents")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command in this process against a store in `tmp_path`; return exit code, stdout and stderr."""
    monkeypatch.setenv("PREFIXBANK_STORE", str(tmp_path / "store"))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return PromptStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    artifact.write(make_prompt(), tmp_path / "artifact")
    return tmp_path / "artifact"


def test_publish_prints_the_revision_alone_on_stdout(run: Callable[..., Any], folder: Path) -> None:
    code, out, err = run("store", "publish", folder, TASK)
    assert (code, out) == (0, artifact.digest(folder) + "\n")
    assert "store promote acme/intents" in err


@pytest.mark.parametrize(
    ("prompt", "told"),
    [(make_prompt(), "5 x 3 layers"), (make_shallow(), "6 before the text")],
    ids=["deep", "shallow"],
)
def test_show_tells_deep_from_shallow(run: Callable[..., Any], tmp_path: Path, prompt: TaskPrompt, told: str) -> None:
    artifact.write(prompt, tmp_path / "artifact")
    assert run("store", "publish", tmp_path / "artifact", TASK)[0] == 0
    assert told in run("store", "show", TASK)[1]
    shown = json.loads(run("store", "show", TASK, "--json")[1])["revisions"][0]
    assert (shown["shallow_length"], shown["preprocessing"]["max_tokens"]) == (prompt.shallow_length, 64)


def test_publish_and_promote_in_one(run: Callable[..., Any], folder: Path, store: PromptStore) -> None:
    assert run("store", "publish", folder, TASK, "--promote")[0] == 0
    assert run("store", "publish", folder, TASK, "--promote", "--alias", "canary")[0] == 0
    assert store.resolve(TASK) == store.resolve(TASK, "canary") == artifact.digest(folder)


def test_promote_takes_the_first_digits(run: Callable[..., Any], store: PromptStore) -> None:
    one, two = (store.publish(TASK, make_prompt(seed)) for seed in (1, 2))
    assert run("store", "promote", TASK, one[:8])[:2] == (0, one + "\n")
    assert run("store", "promote", TASK, two[:8])[:2] == (0, two + "\n")
    assert run("store", "rollback", TASK)[:2] == (0, one + "\n")
    assert store.resolve(TASK) == one


def test_list_and_show_name_what_is_there(run: Callable[..., Any], store: PromptStore) -> None:
    one, two = (store.publish(TASK, make_prompt(seed)) for seed in (1, 2))
    store.promote(TASK, one)
    store.promote(TASK, two, "canary")
    _, listed, _ = run("store", "list")
    header, row = listed.splitlines()
    assert header.split()[0] == "TASK"
    assert row.split()[:4] == ["acme/intents", one[:12], "canary", "text-classification"]
    _, shown, _ = run("store", "show", TASK)
    assert {one[:12], two[:12], "live", "canary", "accuracy"} <= set(shown.replace(",", " ").split())


def test_json_is_for_machines(run: Callable[..., Any], store: PromptStore) -> None:
    one = store.publish(TASK, make_prompt(1))
    store.promote(TASK, one)
    [listed] = json.loads(run("store", "list", "--json")[1])
    assert (listed["task"], listed["aliases"]) == ("acme/intents", {"live": one})
    shown = json.loads(run("store", "show", TASK, "--json")[1])
    assert shown["aliases"]["live"]["history"][0]["revision"] == one
    assert shown["revisions"][0]["metrics"] == {"accuracy": 0.875}


def test_delete_and_drop_alias_take_a_task_apart(run: Callable[..., Any], store: PromptStore) -> None:
    one = store.publish(TASK, make_prompt(1))
    store.promote(TASK, one)
    code, _, err = run("store", "delete", TASK, one[:8])
    assert code == 1
    assert "live of acme/intents points at" in err
    assert [run("store", *words)[0] for words in (("drop-alias", TASK), ("delete", TASK, one[:8]))] == [0, 0]
    assert store.list() == ()
    store.publish(TASK, make_prompt(1))
    assert run("store", "delete-task", TASK)[0] == 0
    assert store.list() == ()


def test_verify_prints_one_line_per_fault_and_fails(run: Callable[..., Any], store: PromptStore) -> None:
    one = store.publish(TASK, make_prompt(1))
    assert run("store", "verify") == (0, "", "tasks: 1, faults: 0\n")
    os.truncate(store.root / "tenants/acme/intents/revisions" / one / "prompt.safetensors", 100)
    code, out, _ = run("store", "verify")
    assert code == 1
    assert [line.split(": ")[1] for line in out.splitlines()] == ["TensorFileTruncated"]


def test_show_says_what_is_broken(run: Callable[..., Any], store: PromptStore) -> None:
    one = store.publish(TASK, make_prompt(1))
    (store.root / "tenants/acme/intents/revisions" / one / "manifest.json").write_text("{")
    code, out, err = run("store", "show", TASK)
    assert code == 0
    assert "(broken)" in out
    assert f"broken: {one[:12]}: ManifestUnreadable" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["store", "publish", "/no/such/artifact", "acme/intents"],
        ["store", "publish", "artifact", "Acme/../intents"],
        ["store", "show", "acme/unknown"],
        ["store", "show", "intents"],
        ["store", "promote", "acme/unknown", "abcd"],
        ["store", "rollback", "acme/unknown"],
        ["store", "list", "--store", "/no/such/store"],
        ["store", "list", "--store", "/etc"],
        ["store", "publish", "artifact", "acme/intents", "--store", "/proc/store"],
    ],
)
def test_an_error_is_one_line(
    run: Callable[..., Any],
    store: PromptStore,
    folder: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("prefixbank: error: ")


def test_a_misused_option_exits_with_2(run: Callable[..., Any]) -> None:
    code, _, err = run("store", "list", "--sideways")
    assert code == 2
    assert "--sideways" in err


def test_an_error_does_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise cli.PrefixbankError("two\nlines and \x1b[31mred")

    monkeypatch.setattr(cli, "app", fail)
    assert cli.main([]) == 1
    assert capsys.readouterr().err == "prefixbank: error: two lines and ?[31mred\n"


def test_control_c_exits_with_130(run: Callable[..., Any], store: PromptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptStore, "list", interrupted)
    assert run("store", "list")[0] == 130


def test_version(run: Callable[..., Any]) -> None:
    assert run("--version")[:2] == (0, "prefixbank 0.1.0\n")


@pytest.mark.parametrize("command", [[], ["store"], ["train"], ["serve"], ["predict"], ["store", "publish"]])
def test_help_reads_without_heavy_imports(command: list[str]) -> None:
    code = (
        "import sys; from prefixbank.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'ray', 'transformers', 'safetensors', 'numpy'} & set(sys.modules);"
        "sys.exit(f'{code} {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: prefixbank" in done.stdout


def test_help_is_quick() -> None:
    """Under a second on an idle machine: the best of three, with room for a busy one."""
    assert min(_seconds_of_help() for _ in range(3)) < 1.5


def _seconds_of_help() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "prefixbank.cli", "--help"], check=True, capture_output=True)
    return time.perf_counter() - begin


def test_looking_around_does_not_load_torch(store: PromptStore) -> None:
    store.publish(TASK, make_prompt(1))
    code = (
        "import sys; from prefixbank.cli import main; main(sys.argv[1:]) and sys.exit(1);"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "store", "list", "--store", str(store.root)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
