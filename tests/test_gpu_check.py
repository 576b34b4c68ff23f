"""The GPU check's own logic, without a GPU: what is believed, what is hidden, and what it says when there is none."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks import gpu_check, kernel_parts
from benchmarks.gpu_report import Report, slug, versions
from benchmarks.gpu_sections import (
    FAULT_FOUND,
    TIMED_OUT,
    Ended,
    Outcome,
    Status,
    benchmark_of,
    check_of,
    environment_of,
    find_sanitizer,
    python,
    run_program,
    sanitizer_of,
)
from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GREEN_CHECK = Outcome("tests", Status.GREEN, 1.0, "9 passed")
RED_CHECK = Outcome("tests", Status.RED, 1.0, "1 failed", "assert 1 == 2")
SPEED = Outcome("kernel", Status.GREEN, 1.0, "done", shown="| 340 TFLOP/s |", found={"tflops": 340})


def report(*checks: Outcome, rehearsed: bool = False, benchmarks: tuple[Outcome, ...] = (SPEED,)) -> Report:
    return Report("a GPU", "abc", rehearsed, checks, benchmarks, 2.0)


def ended(code: int, said: str = "the end") -> Ended:
    return Ended(code, 1.0, said, "")


@pytest.fixture
def setting(tmp_path: Path) -> gpu_check.Setting:
    return gpu_check.Setting(True, "tests_of_nothing", tmp_path, time.monotonic() + 60, 2)


def test_without_a_gpu_the_command_says_so_and_ends_with_3() -> None:
    environment = {**os.environ, "VENV": "nowhere", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("REHEARSE", None)
    bin_folder = os.path.dirname(python()[0])
    environment["PATH"] = os.pathsep.join([bin_folder, environment["PATH"]])
    done = subprocess.run([ROOT / "scripts" / "gpu-check"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("\n")) == (3, 1), done.stderr
    assert done.stdout.startswith("no CUDA device is here: nothing was checked")


def test_tests_for_the_device_are_skipped_with_a_reason_without_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    command = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/test_isolation.py")
    environment = {**environment_of(interpreted=True), "REHEARSE": ""}
    done = run_program(command, 60, environment)
    assert done.code == 0
    assert "no CUDA device is here; REHEARSE=1 rehearses on the CPU" in done.stdout


def test_tests_for_the_device_can_be_rehearsed(setting: gpu_check.Setting) -> None:
    chosen = replace(setting, tests="overwriting_a_slot or moved_between")
    outcome = gpu_check.check_numbers(chosen)
    assert outcome.status is Status.GREEN, outcome.details
    assert outcome.summary.startswith("2 passed")


def test_a_check_that_runs_no_test_is_red() -> None:
    assert check_of("tests on the device", ended(int(pytest.ExitCode.NO_TESTS_COLLECTED))).status is Status.RED


def test_a_red_check_hides_every_speed() -> None:
    red = report(GREEN_CHECK, RED_CHECK)
    assert red.is_red
    assert "No speeds: a check is red." in red.markdown()
    assert "assert 1 == 2" in red.markdown()
    assert "340" not in red.markdown() + json.dumps(red.as_json())


def test_a_rehearsal_hides_every_speed() -> None:
    rehearsed = report(GREEN_CHECK, rehearsed=True)
    assert "rehearsal: no speeds" in rehearsed.markdown()
    assert "340" not in rehearsed.markdown() + json.dumps(rehearsed.as_json())


def test_green_checks_show_the_speeds() -> None:
    green = report(GREEN_CHECK)
    assert not green.is_red
    assert "340 TFLOP/s" in green.markdown()
    assert green.as_json()["found"] == {"kernel": {"tflops": 340}}


def test_a_red_benchmark_makes_the_run_red_and_hides_nothing_of_the_others() -> None:
    failed = Outcome("parts", Status.RED, 1.0, "ended with 1", "Traceback")
    mixed = report(GREEN_CHECK, benchmarks=(SPEED, failed))
    assert mixed.is_red
    assert "340 TFLOP/s" in mixed.markdown()
    assert "Traceback" in mixed.markdown()


def test_no_benchmark_runs_beside_a_red_check(setting: gpu_check.Setting) -> None:
    outcomes = gpu_check.run_benchmarks(setting, [RED_CHECK])
    assert {each.status for each in outcomes} == {Status.NOT_RUN}
    assert [each.name for each in outcomes] == ["kernel", "parts", "encoder", "engine"]


def test_results_are_written_under_gpu_date_and_commit(tmp_path: Path) -> None:
    path = report(GREEN_CHECK).write(tmp_path, "NVIDIA H200")
    assert path.name.startswith("nvidia-h200-20")
    assert path.name.endswith("-abc.md")
    assert json.loads(path.with_suffix(".json").read_text())["red"] is False


def test_a_section_whose_harness_fails_is_red_and_says_why() -> None:
    def broken() -> Outcome:
        raise KeyError("nobody thought of this")

    outcome = gpu_check.guarded("tests", broken)
    assert outcome.status is Status.RED
    assert "nobody thought of this" in outcome.details


@pytest.mark.parametrize(
    ("codes", "status", "summary"),
    [
        ((0, FAULT_FOUND, 0), Status.GREEN, "our kernels are clean; a planted fault was found"),
        ((0, 1, 0), Status.GREEN, "our kernels are clean; a fault could not be planted"),
        ((0, FAULT_FOUND, FAULT_FOUND), Status.RED, "of our kernels: the end"),
        ((0, FAULT_FOUND, 1), Status.RED, "of our kernels: the end"),
        ((1, FAULT_FOUND, FAULT_FOUND), Status.ABSENT, "it does not work here: of a kernel known to be right"),
        ((0, 0, FAULT_FOUND), Status.ABSENT, "it does not work here: a planted fault was not found"),
        ((0, FAULT_FOUND, TIMED_OUT), Status.ABSENT, "it is too slow here"),
    ],
)
def test_a_sanitizer_is_believed_as_far_as_it_can_be(codes: tuple[int, ...], status: Status, summary: str) -> None:
    outcome = sanitizer_of("memcheck", *(ended(code) for code in codes))
    assert outcome.status is status
    assert outcome.summary.startswith(summary)


def test_the_sanitizer_is_found_on_the_path_and_watches_three_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: gpu_check.Setting
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\ncase \"$*\" in *'sanitized racecheck') exit {FAULT_FOUND};; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert find_sanitizer() == str(tool)
    assert gpu_check.check_sanitizer("racecheck", setting).summary == "our kernels are clean; a planted fault was found"


def test_without_the_sanitizer_its_sections_are_absent(
    monkeypatch: pytest.MonkeyPatch, setting: gpu_check.Setting
) -> None:
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: None)
    assert gpu_check.check_sanitizer("memcheck", setting).status is Status.ABSENT


def test_a_program_that_takes_too_long_is_ended() -> None:
    done = run_program(python("-c", "import time; time.sleep(60)"), 0.5, os.environ)
    assert done.code == TIMED_OUT
    assert done.last_line == "it took longer than 0 s"
    assert done.seconds < 20


def test_a_checks_summary_is_its_last_line() -> None:
    assert check_of("tests", ended(0, "....\n9 passed in 1s\n")).summary == "9 passed in 1s"


def test_a_benchmark_that_ends_badly_keeps_what_it_found(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    file.write_text('{"failed": {"peer": "reason"}}')
    outcome = benchmark_of("kernel", ended(1, "| table |"), file)
    assert (outcome.status, outcome.shown, outcome.found) == (
        Status.RED,
        "| table |",
        {"failed": {"peer": "reason"}},
    )


def test_versions_name_what_is_here_and_what_is_not() -> None:
    assert f"torch {torch.__version__.partition('+')[0]}" in versions()
    assert "without" in versions()


def test_a_slug_is_fit_for_a_file_name() -> None:
    assert slug("NVIDIA H200 (SXM)") == "nvidia-h200-sxm"


def test_the_parts_rehearse_what_they_measure() -> None:
    rehearsed = kernel_parts.run(torch.device("cpu"), families=("heads",))
    assert not rehearsed.failed
    assert len(rehearsed.measured) == 8
    assert "eager_us" not in json.dumps(rehearsed.as_json())


def test_a_part_that_fails_is_named_and_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernel_parts.FAMILIES, "gradients", ("benchmarks.nowhere", "parts"))
    rehearsed = kernel_parts.run(torch.device("cpu"), families=("gradients", "heads"))
    assert "No module named 'benchmarks.nowhere'" in rehearsed.failed["gradients"]
    assert rehearsed.measured
