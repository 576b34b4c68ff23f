"""What lies behind the metrics of a split: confusion, scores by label or type, calibration, mistakes.

It refuses to know how the page writes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from prefixbank.trainer.report.axes import linear_axis
from prefixbank.trainer.report.charts import QUIET, Bar, Chart, Dot, Frame, Line
from prefixbank.trainer.report.marks import Piece, pieces
from prefixbank.trainer.report.wording import score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefixbank.trainer.report.schema import Bin, Calibration, Details, Mark, Mistake

MAX_LABELS = 40
"""A larger confusion matrix is not drawn: its confused pairs are listed."""
MAX_PAIRS = 8
"""Confused pairs that are listed."""


class Cell(NamedTuple):
    """One cell of the matrix."""

    rows: int
    share: float
    """Of the rows with this true label."""
    is_right: bool

    @property
    def shade(self) -> float:
        """Grows with the root of the share: few wrong answers among many right ones are still seen."""
        return math.sqrt(self.share)


class Pair(NamedTuple):
    """Rows of one label that were taken for another."""

    expected: str
    found: str
    rows: int
    share: float


class Matrix(NamedTuple):
    """A confusion matrix, rows by true label."""

    labels: tuple[str, ...]
    cells: list[list[Cell]]
    """Empty where there are too many labels."""
    pairs: list[Pair]
    """The most confused first."""


class ScoreTable(NamedTuple):
    """Scores by label or type."""

    first: str
    """What the rows are: label or type."""
    columns: list[str]
    rows: list[tuple[str, list[float | None]]]

    def is_count(self, column: str) -> bool:
        """Whether a column holds whole numbers, some beyond 1: they are written, shares are drawn as bars."""
        values = [row[1][self.columns.index(column)] or 0 for row in self.rows]
        return all(value == round(value) for value in values) and max(values) > 1


class MarkedText(NamedTuple):
    """A text of a mistake."""

    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class Missed:
    """A mistake as it is shown."""

    mistake: Mistake
    texts: list[MarkedText]


@dataclass(frozen=True, slots=True)
class Behind:
    """All that a split's details show; what they lack is None or empty."""

    matrix: Matrix | None
    scores: ScoreTable | None
    calibration: Chart | None
    ece: float | None
    mistakes: list[Missed]

    @property
    def mark_kinds(self) -> list[str]:
        """Kinds of marks that occur, for the legend."""
        found = {m.kind for missed in self.mistakes for m in missed.mistake.marks}
        return [kind for kind in ("expected", "found", "both") if kind in found]


def behind(details: Details) -> Behind:
    """The view of a split's details."""
    matrix = matrix_of(details.labels, details.confusion) if details.confusion else None
    calibration = details.calibration
    return Behind(
        matrix,
        _by_type(details.by_type) if details.by_type else _by_label(matrix, details.confusion),
        calibration_chart(calibration) if calibration and calibration.bins else None,
        calibration.ece if calibration else None,
        [Missed(mistake, marked_texts(mistake.texts, mistake.marks)) for mistake in details.mistakes],
    )


def matrix_of(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> Matrix:
    """Counts, and their share of each row."""
    names = tuple(labels) if len(labels) == len(confusion) else tuple(str(i) for i in range(len(confusion)))
    totals = [max(sum(row), 1) for row in confusion]
    cells = [[Cell(n, n / totals[i], i == j) for j, n in enumerate(row)] for i, row in enumerate(confusion)]
    wrong = [(n, i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if n and i != j]
    worst = sorted(wrong, key=lambda found: (-found[0], -found[0] / totals[found[1]]))[:MAX_PAIRS]
    pairs = [Pair(names[i], names[j], n, n / totals[i]) for n, i, j in worst]
    return Matrix(names, cells if len(names) <= MAX_LABELS else [], pairs)


def marked_texts(texts: Sequence[str], marks: Sequence[Mark]) -> list[MarkedText]:
    """Every text of a mistake with its own marks."""
    return [MarkedText(pieces(text, [m for m in marks if m.text == i])) for i, text in enumerate(texts)]


def calibration_chart(calibration: Calibration) -> Chart:
    """Accuracy over confidence: on the dashed line they are equal. The area of a dot grows with its bin's rows."""
    filled = [b for b in calibration.bins if b.count and b.accuracy is not None and b.confidence is not None]
    largest = max((b.count for b in filled), default=1)
    frame = Frame(linear_axis("confidence", (0, 1)), linear_axis("accuracy", (0, 1)), height=320)
    return Chart(
        f"Calibration: expected error {score(calibration.ece)}",
        f"Accuracy by confidence; expected calibration error {score(calibration.ece)}.",
        frame,
        lines=(Line("", ((0, 0), (1, 1)), QUIET, is_dashed=True),),
        bars=tuple(Bar(b.low, b.high, b.accuracy or 0.0, _said(b)) for b in filled),
        dots=tuple(
            Dot(b.confidence or 0.0, b.accuracy or 0.0, _said(b), 1, 3 + 6 * (b.count / largest) ** 0.5) for b in filled
        ),
        note="Bars: share of right answers by confidence. Dots: mean confidence, larger with more rows. On the dashed "
        "line answers are as sure as they are right; below it, too sure.",
    )


def _said(found: Bin) -> str:
    rows = "1 row" if found.count == 1 else f"{found.count:,} rows"
    return f"{rows}: confidence {score(found.confidence)}, accuracy {score(found.accuracy)}"


def _by_type(by_type: Mapping[str, Mapping[str, float]]) -> ScoreTable:
    columns = list(dict.fromkeys(name for found in by_type.values() for name in found))
    rows = [(kind, [found.get(name) for name in columns]) for kind, found in by_type.items()]
    return ScoreTable("type", columns, rows)


def _by_label(matrix: Matrix | None, confusion: Sequence[Sequence[int]]) -> ScoreTable | None:
    """Precision, recall and F1 of every label, from the counts."""
    if matrix is None:
        return None
    rows: list[tuple[str, list[float | None]]] = []
    for i, name in enumerate(matrix.labels):
        gold, found, right = sum(confusion[i]), sum(row[i] for row in confusion), confusion[i][i]
        precision, recall = right / found if found else 0.0, right / gold if gold else 0.0
        rows.append((name, [gold, precision, recall, 2 * right / (gold + found) if gold + found else 0.0]))
    return ScoreTable("label", ["rows", "precision", "recall", "f1"], rows)
