"""The parts of a page: axes, marked texts, wording."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixbank.trainer.report import wording
from prefixbank.trainer.report.axes import linear_axis, number_axis, step_axis
from prefixbank.trainer.report.charts import Frame, readings
from prefixbank.trainer.report.marks import LONGEST_WHOLE, pieces
from prefixbank.trainer.report.schema import Mark

numbers = st.floats(-1e9, 1e9)
places = st.integers(-5, 60)
marks = st.builds(Mark, text=st.just(0), start=places, end=places, kind=st.sampled_from(["expected", "found", "both"]))


def mark(start: int, end: int, kind: str = "expected", label: str = "") -> Mark:
    return Mark.model_validate({"text": 0, "start": start, "end": end, "kind": kind, "label": label})


@given(st.lists(numbers, min_size=1, max_size=20))
def test_every_value_lies_between_the_ends_of_its_axis(values: list[float]) -> None:
    for axis in (linear_axis("x", values), number_axis("x", values)):
        assert axis.low < axis.high
        assert all(0 <= axis.place(value) <= 1 for value in values)
        slack = (axis.high - axis.low) * 1e-6
        assert all(axis.low - slack <= tick.value <= axis.high + slack for tick in axis.ticks)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=20))
def test_an_axis_of_epochs_has_few_ticks_in_order(values: list[int]) -> None:
    ticks = [tick.value for tick in step_axis("epoch", values).ticks]
    assert ticks == sorted(set(ticks))
    assert 1 <= len(ticks) <= 9


@pytest.mark.parametrize(
    ("values", "texts", "is_log"),
    [
        ([4, 8, 16, 32, 64, 128], ["4", "8", "16", "32", "64", "128"], True),
        ([1, 2, 3], ["1", "2", "3"], False),
        ([0.0, 0.1], ["0", "0.1"], False),
        ([10 ** (-3 + i / 10) for i in range(21)], ["0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1"], True),
    ],
)
def test_settings_far_apart_are_drawn_by_their_logarithm(values: list[float], texts: list[str], is_log: bool) -> None:
    axis = number_axis("x", values)
    assert ([tick.text for tick in axis.ticks], axis.is_log) == (texts, is_log)


def test_a_score_axis_keeps_within_its_bounds() -> None:
    axis = linear_axis("accuracy", [0.62, 0.997], highest=1.0)
    assert axis.high == 1.0
    assert [tick.text for tick in axis.ticks] == ["0.6", "0.7", "0.8", "0.9", "1.0"]


def test_readings_meet_halfway_and_leave_no_gap() -> None:
    frame = Frame(step_axis("epoch", [1, 2, 4]), linear_axis("loss", [0, 1]))
    strips = readings(frame, [(1, "a"), (2, "b"), (4, "c")])
    assert [strip.left for strip in strips[1:]] == [strip.right for strip in strips[:-1]]
    assert (strips[0].left, strips[-1].right) == (frame.left, frame.width - frame.right)


@given(st.text(max_size=50), st.lists(marks, max_size=6))
def test_the_pieces_of_a_short_text_are_the_text(text: str, found: list[Mark]) -> None:
    assert "".join(piece.text for piece in pieces(text, found)) == text


@given(st.text("ab ", min_size=LONGEST_WHOLE + 1, max_size=3000), st.lists(marks, max_size=4))
def test_a_long_text_keeps_all_that_is_marked(text: str, found: list[Mark]) -> None:
    shown = pieces(text, found)
    marked = {i for m in found for i in range(max(m.start, 0), m.end)}
    assert sum(len(piece.text) for piece in shown if piece.kinds) == len(marked)
    assert shown[-1].is_gap


def test_marks_over_each_other_share_a_piece_and_each_label_is_written_once() -> None:
    shown = pieces("The Planets play", [mark(0, 11, "expected", "work"), mark(4, 11, "found", "product")])
    assert [(p.text, p.kinds) for p in shown] == [
        ("The ", ("expected",)),
        ("Planets", ("expected", "found")),
        (" play", ()),
    ]
    assert [m.label for p in shown for m in p.ended] == ["work", "product"]


def test_a_mark_that_reaches_beyond_the_text_ends_with_it() -> None:
    (piece,) = pieces("abc", [mark(0, 99, label="x")])
    assert (piece.text, len(piece.ended)) == ("abc", 1)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "\N{EN DASH}"),
        (0.4321, "0.432 s"),
        (37.4, "37 s"),
        (283.2, "4 min 43 s"),
        (4000, "67 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_times_are_said_in_the_unit_that_fits(seconds: float | None, said: str) -> None:
    assert wording.duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.0000341, "0.0034%"), (0.0034, "0.34%"), (0.125, "12.5%"), (1.0, "100%"), (0, "0.00%")]
)
def test_shares_keep_digits_that_say_something(value: float, said: str) -> None:
    assert wording.share(value) == said


@pytest.mark.parametrize(
    ("name", "said"), [("macro_f1", "macro F1"), ("em", "exact match"), ("text-classification", "text classification")]
)
def test_names_are_said_as_people_do(name: str, said: str) -> None:
    assert wording.spoken(name) == said
