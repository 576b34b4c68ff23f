"""What a person sees while trials run, and what TensorBoard is given."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from prefixbank.model_store.errors import TrainingError
from prefixbank.trainer import sweep_display, tensorboard
from prefixbank.trainer.progress import Displays, LogDisplay
from prefixbank.trainer.sweep_display import (
    LogSweepDisplay,
    SweepProgress,
    TableSweepDisplay,
    progress_table,
    settings_line,
)
from prefixbank.trainer.tensorboard import TensorBoardDisplay
from prefixbank.trainer.trial import Epoch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EPOCH = Epoch(epoch=3, train_loss=0.4321, validation={"loss": 0.5, "span_f1": 0.71}, rate=0.7, seconds=2.0)


def told(display: sweep_display.SweepDisplay) -> None:
    """Two trials run; the first leads, the second is pruned."""
    with display:
        display.start(8)
        display.trial(0, {"prompt.length": 20, "optimiser.prompt_rate": 0.0123456}, "running")
        display.trial(1, {"prompt.length": 40, "optimiser.prompt_rate": 0.5}, "running")
        display.epoch(0, EPOCH, "span_f1", 0.72)
        display.end(0, "complete", 0.72)
        display.end(1, "pruned", None)


def drawn(progress: SweepProgress) -> str:
    file = io.StringIO()
    Console(file=file, width=110).print(progress_table(progress))
    return file.getvalue()


def test_a_running_trial_has_a_line_with_its_figures() -> None:
    progress = SweepProgress()
    progress.num_trials = 8
    progress.trial(0, {"prompt.length": 20, "optimiser.prompt_rate": 0.0123456}, "running")
    progress.trial(1, {"prompt.length": 40, "optimiser.prompt_rate": 0.5}, "waiting")
    progress.epoch(0, EPOCH, "span_f1", 0.72)
    lines = [line.split() for line in drawn(progress).splitlines()]
    assert ["0", "3", "0.4321", "0.7100", "0.7200", "running", "length=20", "prompt_rate=0.01235"] in lines
    assert ["1", "-", "-", "-", "-", "waiting", "length=40", "prompt_rate=0.5"] in lines
    assert "0 of 8 trials ended" in drawn(progress)


def test_the_leader_is_the_best_complete_trial() -> None:
    progress = SweepProgress()
    for number, (state, score) in enumerate([("complete", 0.5), ("pruned", 0.9), ("complete", 0.6), ("failed", None)]):
        progress.trial(number, {"prompt.length": number}, "running")
        progress.end(number, state, score)
    assert progress.headline() == "4 trials ended, best score 0.6000 by trial 2 (length=2)"


def test_of_losses_the_lowest_leads() -> None:
    progress = SweepProgress()
    for number, score in enumerate([0.5, 0.4, 0.6]):
        progress.trial(number, {}, "running")
        progress.epoch(number, EPOCH, "loss", score)
        progress.end(number, "complete", score)
    assert progress.leader == (1, 0.4, "")


def test_the_log_has_a_line_for_the_beginning_and_the_end_of_a_trial(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "prefixbank.trainer"):
        told(LogSweepDisplay())
    assert caplog.messages == [
        "sweep of 8 trials",
        "trial   0  running   length=20 prompt_rate=0.01235",
        "trial   1  running   length=40 prompt_rate=0.5",
        "trial   0  complete  span F1 0.7200  length=20 prompt_rate=0.01235  best",
        "1 of 8 trials ended, best span F1 0.7200 by trial 0 (length=20 prompt_rate=0.01235)",
        "trial   1  pruned    no score  length=40 prompt_rate=0.5",
        "2 of 8 trials ended, best span F1 0.7200 by trial 0 (length=20 prompt_rate=0.01235)",
    ]


def test_the_table_leaves_a_line_for_every_ended_trial(capsys: pytest.CaptureFixture[str]) -> None:
    told(TableSweepDisplay())
    err = capsys.readouterr().err
    assert "complete  span F1 0.7200  length=20 prompt_rate=0.01235  best" in err
    assert "pruned    no score" in err


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, TableSweepDisplay), (False, LogSweepDisplay)])
def test_a_table_is_for_terminals(is_terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_display.sys.stderr, "isatty", lambda: is_terminal)
    assert isinstance(sweep_display.sweep_display_for_terminal(), kind)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"prompt.length": 20, "prompt.layers": {"from": "top", "count": 3}}, "length=20 from=top count=3"),
        ({"prompt.dropout": 0.1, "head.dropout": 0.2}, "prompt.dropout=0.1 head.dropout=0.2"),
    ],
)
def test_settings_are_named_as_short_as_tells_them_apart(settings: Mapping[str, Any], line: str) -> None:
    assert settings_line(settings) == line


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(event.step, round(event.value, 4)) for event in events.Scalars(name)] for name in names}


def test_tensorboard_is_given_losses_metrics_and_the_rate_by_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with Displays(LogDisplay(), TensorBoardDisplay(tmp_path)) as display:
        display.start(2, 0)
        display.step(1, 0.5)
        display.step(2, 0.25)
        display.epoch(EPOCH, "span_f1", 3)
    assert scalars(tmp_path) == {
        "train/loss": [(1, 0.5), (2, 0.25)],
        "train/epoch_loss": [(2, 0.4321)],
        "train/rate_factor": [(2, 0.7)],
        "validation/loss": [(2, 0.5)],
        "validation/span_f1": [(2, 0.71)],
    }


def test_steps_that_a_resumed_run_repeats_are_shown_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for finished, losses in ((0, (0.5, 0.4, 0.3)), (1, (0.45, 0.35))):
        with TensorBoardDisplay(tmp_path) as display:
            display.start(3, finished)
            for step, loss in enumerate(losses, finished + 1):
                display.step(step, loss)
    assert scalars(tmp_path) == {"train/loss": [(1, 0.5), (2, 0.45), (3, 0.35)]}


def test_tensorboard_that_is_not_installed_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"pip install prefixbank\[tensorboard\]"):
        TensorBoardDisplay(tmp_path)
