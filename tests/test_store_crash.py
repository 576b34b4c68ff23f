"""The prompt store among processes: killed at any moment it is whole, and writers at once lose nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefixbank.model_store.store import Address, PromptStore

ROOT = Path(__file__).resolve().parent.parent
TASK = Address("acme", "intents")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"tests.{module}", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT)


def finish(process: subprocess.Popen[str]) -> list[str]:
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return printed.splitlines()


@pytest.mark.slow
def test_a_writer_killed_before_any_touch_of_the_disk_leaves_the_store_whole(tmp_path: Path) -> None:
    [line] = finish(start("store_killer", "steps", tmp_path, 0))
    killed, faults = int(line.split()[0]), int(line.split()[2])
    assert killed > 100
    assert faults == 0


def test_writers_killed_at_random_times_leave_the_store_whole(tmp_path: Path) -> None:
    assert finish(start("store_killer", "timed", tmp_path / "store", 30)) == ["30 killed, 0 faults"]
    store = PromptStore(tmp_path / "store")
    store.collect_staging(older_than_s=-1)
    assert os.listdir(store.root / ".staging") == []


def test_two_processes_that_publish_and_promote_at_once_lose_nothing(tmp_path: Path) -> None:
    store, count = PromptStore(tmp_path / "store"), 15
    writers = [start("store_writer", store.root, TASK, 1000 * number, count) for number in range(2)]
    told = [line for writer in writers for line in finish(writer) if line != "ready"]
    assert len(set(told)) == 2 * count
    record = store.show(TASK)
    assert {revision.revision for revision in record.revisions} == set(told)
    assert sorted(entry.revision for entry in record.aliases["live"].history) == sorted(told)
    assert store.generation() == 4 * count
    assert list(store.verify()) == []


def test_a_reader_beside_a_writer_never_sees_half_of_anything(tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "store")
    writer = start("store_writer", store.root, TASK, 0, 30)
    assert writer.stdout is not None
    assert [writer.stdout.readline(), len(writer.stdout.readline())] == ["ready\n", 65]
    seen = set()
    while writer.poll() is None:
        revision = store.resolve(TASK)
        assert store.load(TASK, revision).labels == ("no", "yes")
        seen.add(revision)
    writer.stdout.close()
    assert len(seen) > 1
