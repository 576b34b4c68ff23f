"""The paper's tables as text, our column at the right: what was run, beside what was published.

It refuses to know how anything was run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.paper_rows import ROWS, Cell
from benchmarks.paper_tables import NUM_PARAMETERS, RELEASED, TABLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.paper_run import Outcome
    from benchmarks.paper_tables import Score, Table

SCRIPTS = {cell: row.recipe for row in ROWS for cell in row.cells}
"""The recipe that stands for a place in the tables."""


def shown(outcomes: Sequence[Outcome]) -> str:
    """Every table, what stands in none of them, and what the marks mean."""
    marks = _marks(outcomes)
    ours = {cell: _ours(outcome, marks) for outcome in outcomes for cell in outcome.row.cells}
    tables = [_table(table, ours) for table in TABLES]
    notes = [f"{mark} {remark}" for remark, mark in marks.items()]
    return "\n\n".join([*tables, _others(ours), *(["\n".join(notes)] if notes else [])])


def _table(table: Table, ours: dict[Cell, str]) -> str:
    run = [method for method in table.methods if any(cell[::3] == (table.number, method) for cell in SCRIPTS)]
    heads = ["ours"] if len(run) == 1 else [f"ours: {method}" for method in run]
    lines = [["task", "backbone", "size", *table.methods, "script", *heads]]
    for task in table.tasks:
        for backbone in table.backbones:
            cells = [Cell(table.number, backbone, task, method) for method in table.methods]
            printed = [_printed(table.scores[cell[1:]]) for cell in cells]
            found = [ours.get(cell, "-") for cell in cells if cell.method in run]
            lines.append([task, backbone, NUM_PARAMETERS[backbone], *printed, _released(cells), *found])
    return f"Table {table.number}. {table.about} ({'/'.join(table.measures)})\n{_aligned(lines)}"


def _others(ours: dict[Cell, str]) -> str:
    """Tasks with a script and without a place in the paper's tables."""
    cells = [cell for cell in SCRIPTS if cell.table is None]
    lines = [[cell.task, cell.backbone, _released([cell]), ours.get(cell, "-")] for cell in cells]
    return f"In the authors' README only (accuracy)\n{_aligned([['task', 'backbone', 'script', 'ours'], *lines])}"


def _released(cells: Sequence[Cell]) -> str:
    """What the authors' README says of their own script for the first of some places that has one."""
    found = (RELEASED[SCRIPTS[cell]].scores.get(cell.task, ()) for cell in cells if cell in SCRIPTS)
    return _printed(next(found, ()))


def _ours(outcome: Outcome, marks: dict[str, str]) -> str:
    signs = "".join(marks[remark] for remark in outcome.remarks)
    return f"{outcome.score} {signs}".rstrip()


def _marks(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """A sign for each remark."""
    remarks = dict.fromkeys(remark for outcome in outcomes for remark in outcome.remarks)
    return {remark: f"[{number}]" for number, remark in enumerate(remarks, 1)}


def _printed(score: Score) -> str:
    return "/".join(f"{value:.1f}" for value in score) or "-"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
