"""The encoder benchmark compares its routes before it times them, and shows no speed of a rehearsal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from benchmarks import encoder
from benchmarks.encoder import COMPILED, LATENCY, OURS, PADDED, REHEARSED, SMALL, THROUGHPUT, Measured, Report

if TYPE_CHECKING:
    import pytest

CPU = torch.device("cpu")


def test_the_routes_agree_in_a_rehearsal() -> None:
    report = encoder.run(CPU, REHEARSED[:1], SMALL, torch.float32)
    assert not report.failed, report.failed
    assert [each.route for each in report.measured] == [OURS, PADDED, COMPILED]
    assert "tokens_per_s" not in json.dumps(report.as_json())


def test_a_route_that_disagrees_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoder.FAR, torch.float32, 0.0)
    report = encoder.run(CPU, REHEARSED[1:], SMALL, torch.float32)
    assert set(report.failed) == {f"{REHEARSED[1].name}: {route}" for route in (OURS, COMPILED)}
    assert "from the padded route, wanted 0e+00" in report.failed[f"{REHEARSED[1].name}: {OURS}"]
    assert [each.route for each in report.measured] == [PADDED]


def test_goals_take_the_best_of_our_routes() -> None:
    report = Report("a GPU", "abc", rehearsed=False)
    for route, ms in ((OURS, 30.0), (COMPILED, 20.0), (PADDED, 10.0)):
        report.measured.append(Measured(THROUGHPUT.name, route, ms, ms, THROUGHPUT.tokens / ms * 1e3, 0.0))
        report.measured.append(Measured(LATENCY.name, route, ms / 20, ms, 1.0, 0.0))
    rate, latency = report.goals()
    assert (rate.found, rate.is_met) == (THROUGHPUT.tokens / 20 * 1e3, True)
    assert (latency.found, latency.is_met) == (1.0, True)
