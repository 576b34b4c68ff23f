"""The trainer's small parts: metrics, rates, batch order, checkpoints."""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefixbank.model_store.errors import TrainingError
from prefixbank.model_store.tasks.spans import SpanScores
from prefixbank.trainer import checkpoint, metrics
from prefixbank.trainer.batches import epoch_order, evaluation_order
from prefixbank.trainer.interruption import catch_interruption
from prefixbank.trainer.recipe import OptimiserSection
from prefixbank.trainer.schedule import rate_factor
from prefixbank.trainer.trial import Epoch, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=200)


def test_metrics_of_a_confusion_worked_by_hand() -> None:
    confusion_CC = metrics.confusion([0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0], 2)
    assert confusion_CC.tolist() == [[2, 1], [1, 3]]
    assert metrics.accuracy(confusion_CC) == pytest.approx(5 / 7)
    assert metrics.macro_f1(confusion_CC) == pytest.approx((4 / 6 + 6 / 8) / 2)
    assert metrics.matthews(confusion_CC) == pytest.approx((2 * 3 - 1 * 1) / np.sqrt(3 * 4 * 3 * 4))


def test_matthews_of_a_constant_answer_is_nothing() -> None:
    assert metrics.matthews(metrics.confusion([0, 1, 1], [1, 1, 1], 2)) == 0.0


def test_macro_f1_counts_only_classes_that_occur() -> None:
    assert metrics.macro_f1(metrics.confusion([0, 1], [0, 1], 5)) == 1.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_an_interval_lies_around_accuracy(pairs: list[tuple[int, int]]) -> None:
    gold, found = zip(*pairs, strict=True)
    confusion_CC = metrics.confusion(gold, found, 4)
    low, high = metrics.confusion_interval(metrics.accuracy, confusion_CC)
    assert low - 1e-9 <= metrics.accuracy(confusion_CC) <= high + 1e-9


def test_a_span_interval_is_narrow_when_every_row_is_alike() -> None:
    assert metrics.span_interval([SpanScores(2, 2, 1)] * 50) == [0.5, 0.5]


def test_the_rate_climbs_then_falls_to_nothing() -> None:
    section = OptimiserSection(epochs=2, warmup=0.2)
    factors = [rate_factor(section, step, 5) for step in range(11)]
    assert factors == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0])


def test_the_published_rate_of_sequence_tasks_falls_once_an_epoch() -> None:
    section = OptimiserSection(epochs=3, warmup=0, schedule="exponential", gamma=0.5)
    assert [rate_factor(section, step, 2) for step in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


@given(LENGTHS, st.integers(1, 40), st.integers(0, 9))
def test_an_epoch_holds_every_row_once(lengths: list[int], batch_rows: int, epoch: int) -> None:
    batches = epoch_order(lengths, batch_rows, 11, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) <= batch_rows for batch in batches)
    assert batches == epoch_order(lengths, batch_rows, 11, epoch)


@given(LENGTHS, st.integers(1, 40))
def test_equally_long_rows_of_a_batch_are_neighbours(lengths: list[int], batch_rows: int) -> None:
    for batch in [*epoch_order(lengths, batch_rows, 11, 0), *evaluation_order(lengths)]:
        assert [lengths[row] for row in batch] == sorted(lengths[row] for row in batch)


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = [epoch_order([5] * 64, 8, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@given(LENGTHS)
def test_evaluation_holds_every_row_once_within_the_budget(lengths: list[int]) -> None:
    batches = list(evaluation_order(lengths, most_tokens=600))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in batch) <= 600 for batch in batches)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = State("id", epoch=2, loss_sum=0.1 + 0.2, curve=[Epoch(1, 1 / 3, {"accuracy": 0.5}, 0.5, 1.0)])
    tensors = {"a": torch.randn(3, 4), "step": torch.tensor(7.0)}
    checkpoint.save(tmp_path, tensors, state.to_json())
    found = checkpoint.load(tmp_path)
    assert State.from_json(found.state) == state
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())


def test_a_checkpoint_replaces_the_last_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for step in (1.0, 2.0):
        checkpoint.save(tmp_path, {"step": torch.tensor(step)}, {})
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]
    assert checkpoint.load(tmp_path).tensors["step"] == 2.0


def test_a_file_of_another_program_is_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / checkpoint.FILE)
    with pytest.raises(TrainingError, match="no checkpoint of this program"):
        checkpoint.load(tmp_path)


@pytest.fixture
def attended() -> Iterator[None]:
    """As in a terminal: a job that a shell started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("attended")
def test_the_first_interruption_asks_and_the_second_insists() -> None:
    with catch_interruption() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_a_killed_process_left_half_written_goes_with_the_checkpoint(tmp_path: Path) -> None:
    half, other = tmp_path / f".{'0af1' * 8}.tmp", tmp_path / ".notes.tmp"
    for when in (checkpoint.load, checkpoint.remove):
        checkpoint.save(tmp_path, {"now.a": torch.ones(2)}, {"step": 1})
        half.touch()
        other.touch()
        when(tmp_path)
        assert (half.exists(), other.exists()) == (False, True)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, {"now.a": torch.ones(2)}, {"step": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "replace_file", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*--resume continues from the one before"):
        checkpoint.save(tmp_path, {"now.a": torch.zeros(2)}, {"step": 2})
    assert checkpoint.load(tmp_path).state == {"step": 1}
