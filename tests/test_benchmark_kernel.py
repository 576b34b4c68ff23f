"""The kernel benchmark's own logic: its rehearsal runs, its peers agree, its verdicts follow from its numbers."""

from __future__ import annotations

import math
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks import kernel, kernel_routes
from benchmarks.gpu_sections import environment_of, python
from benchmarks.kernel_clock import Ceilings
from benchmarks.kernel_goals import DISTINCT, LONG, ONE_TASK, Goal, kernel_goals
from benchmarks.kernel_peers import flex
from benchmarks.kernel_peers.prepared import Prepared
from benchmarks.kernel_routes import OURS, Failed, Findings, Measured
from benchmarks.kernel_workloads import GOALS, MIXES, Shape, grid, make_batches, rehearsal
from tests.conftest import ROOT

if TYPE_CHECKING:
    from benchmarks.kernel_workloads import Batch

CPU = torch.device("cpu")
SMALL = Shape(48, 16, 5, "distinct", 2, 16, torch.float32)


@pytest.fixture(scope="module")
def rehearsed() -> kernel.Report:
    return kernel.run(list(rehearsal())[1::4], CPU, budget_s=60)


def test_the_rehearsal_compares_ours_and_the_peers_that_can_run_here(rehearsed: kernel.Report) -> None:
    assert not rehearsed.is_red, rehearsed.findings.faults
    routes = {each.route[0] for each in rehearsed.findings.measured}
    assert routes >= {"o", "A", "B", "C", "D"}


def test_a_rehearsal_says_no_speeds(rehearsed: kernel.Report, capsys: pytest.CaptureFixture[str]) -> None:
    kernel.show(rehearsed)
    printed = capsys.readouterr().out
    assert "rehearsal: no speeds" in printed
    assert "TFLOP/s" not in printed
    assert "eager_us" not in str(rehearsed.as_json())


def test_no_time_means_no_shapes_and_says_which() -> None:
    report = kernel.run([SMALL], CPU, budget_s=-1)
    assert report.findings.not_run == [SMALL.name]


def test_a_wrong_kernel_hides_every_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rehearsed: kernel.Report
) -> None:
    def wrong(batch: Batch) -> Prepared:
        return Prepared(lambda: batch.case.run() * 1.001)

    monkeypatch.setattr(kernel_routes, "prepare_ours", wrong)
    findings = kernel.run([SMALL], CPU, budget_s=60).findings
    assert [each.route for each in findings.wrong] == [OURS]
    kernel.show(replace(rehearsed, rehearsed=False, findings=findings))
    printed = capsys.readouterr().out
    assert "our kernel is at fault: no speeds are printed" in printed
    assert "TFLOP/s" not in printed


def test_a_failing_peer_is_a_fault_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(batch: Batch) -> Prepared:
        raise RuntimeError("out of order")

    monkeypatch.setitem(kernel_routes.PEERS, "C padded SDPA", broken)
    report = kernel.run([SMALL], CPU, budget_s=60)
    assert report.is_red
    assert [(each.route, each.reason) for each in report.findings.faults] == [
        ("C padded SDPA", "RuntimeError: out of order")
    ]
    assert report.findings.of(SMALL) is not None


def test_without_a_gpu_the_benchmark_says_so_and_ends_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        kernel.main()
    assert ended.value.code == 3
    assert "no CUDA device is here" in capsys.readouterr().out


def test_operations_and_bytes_are_counted_as_documented() -> None:
    batch = make_batches(Shape(48, 16, 20, "identical", 2, 16, torch.float32), CPU, 1)[0]
    assert batch.flop == 3 * 4 * 16 * (20 + 16) * 16 * 2
    assert batch.bytes_moved == 2 * 16 * 4 * (4 * 48 + 2 * 20)


@pytest.mark.parametrize("mix", MIXES)
def test_rows_come_sorted_by_task(mix: str) -> None:
    slots = Shape(1024, 16, 20, mix).tasks(64)  # type: ignore[arg-type]
    assert slots == sorted(slots)
    assert len(set(slots)) == {"identical": 1, "uniform": 8, "distinct": 64}.get(mix, len(set(slots)))


def test_a_mixture_of_lengths_fills_the_batch_and_no_more() -> None:
    lengths = Shape(4096, None, 0).lengths()
    assert 0.9 * 4096 <= sum(lengths) <= 4096
    assert len(set(lengths)) > 20


def test_the_goals_come_first_and_every_shape_once() -> None:
    for quick in (True, False):
        shapes = list(grid(quick=quick))
        assert tuple(shapes[: len(GOALS)]) == GOALS
        assert len(set(shapes)) == len(shapes)
    assert len(list(grid(quick=True))) < 25


@pytest.mark.parametrize("shape", [Shape(300, 70, 20, "uniform", 1, 16), Shape(512, None, None, "zipf", 1, 16)])
def test_the_hand_built_mask_of_flex_attention_covers_what_is_seen_and_skips_no_mask(shape: Shape) -> None:
    batch = make_batches(shape, CPU, 1)[0]
    row_T, slot_T, row_J, slot_J = flex.owners(batch)
    seen = (row_T[:, None] == row_J) | (slot_T[:, None] == slot_J)
    mask = flex.block_mask(batch)
    num, listed, num_full, full = mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices
    assert num_full is not None
    assert full is not None
    for block in range(num.shape[-1]):
        queries = slice(block * flex.BLOCK, (block + 1) * flex.BLOCK)
        partial = {int(each) for each in listed[0, 0, block, : int(num[0, 0, block])]}
        whole = {int(each) for each in full[0, 0, block, : int(num_full[0, 0, block])]}
        assert not partial & whole
        for key in range(-(-len(row_J) // flex.BLOCK)):
            part = seen[queries, key * flex.BLOCK : (key + 1) * flex.BLOCK]
            assert not part.any() or key in partial | whole
            assert key not in whole or part.all()


def _measured(shape: Shape, us: float, tflops: float = 0.0, route: str = OURS) -> Measured:
    return Measured(shape.name, route, us, us, 0.0, 0.0, tflops, 0.0, 0.0, 0.0)


def test_goals_are_judged_from_what_was_measured() -> None:
    measured = [
        _measured(LONG, 90, 360),
        _measured(DISTINCT, 60),
        _measured(ONE_TASK, 50),
        _measured(DISTINCT, 90, route="A"),
    ]
    verdicts = {goal.what: goal.verdict for goal in kernel_goals(Findings(measured, []))}
    assert verdicts["P=0, L=512, T=16k"] == "met"
    assert verdicts["P=0, L=512, T=16k, stretch"] == "missed, at 95% of it"
    assert verdicts["L=P=128, distinct: A over ours"] == "met"
    assert verdicts["128 distinct tasks over one"] == "missed, at 96% of it"
    assert verdicts["P=20 over P=0, L=128"] == "not measured"


def test_a_goal_is_one_line_of_a_table() -> None:
    assert Goal("speed", 10, "m/s", True, 12.345).line() == "| speed | at least 10 m/s | 12.35 | met |"


def test_the_roofline_is_the_larger_of_two_times() -> None:
    ceilings = Ceilings(bytes_per_s=4e12, flop_per_s=8e14)
    assert math.isclose(ceilings.floor_us(8e8, 4e9), 1000)
    assert math.isclose(ceilings.floor_us(8e12, 4e6), 10000)


def test_an_absent_peer_is_no_fault() -> None:
    findings = Findings([], [Failed("any", "E", "absent: no wheel")])
    assert not findings.faults
    assert not findings.wrong


def test_the_search_for_constants_rehearses_without_speeds() -> None:
    done = subprocess.run(
        python("-m", "benchmarks.kernel_constants", "--rehearse"),
        cwd=ROOT,
        env=environment_of(interpreted=True),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "rehearsal: no speeds; 1 of 1 agree" in done.stdout
