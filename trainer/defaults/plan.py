"""Planning: how many rows, epochs and trials fit into a time, from counts of rows and a measured speed.

Trials are halved as they go, so the one that is left has its whole run behind it: no setting is chosen on a shorter
schedule than the one it is used with, and no step is taken twice. It refuses to know files, clocks and how trials
learn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from prefixbank.trainer.starts import START_ROWS
from prefixbank.trainer.sweep.pruning import expected_epochs, pruner_of
from prefixbank.trainer.sweep.referee import CLOSING_S

if TYPE_CHECKING:
    from prefixbank.trainer.sweep.speed import Speed

ROWS_WANTED = 48_000
"""Rows that a run goes through where there is time: prompts want more passes over small sets than fine-tuning does."""
PASSES = (3, 60)
"""Fewest and most passes of such a run."""
EPOCHS = 8
"""Where there is no time for so many passes, an epoch is a part of a pass: half of the trials end after the first."""
PACKS = ((8, 16_000), (4, 8_000), (1, 0))
"""Trials that begin together, and the rows that a whole run must go through for so many, or all it wants: an eighth of
it has to tell them apart. Where it cannot, the first settings get all the time, or noise would choose (docs/log.md)."""
STEPS_WANTED = 1500
"""Prompts learn by steps: over as many rows, 8 a step reach more than 32 where a run is short (docs/log.md)."""
FEWEST_ROWS, MOST_ROWS = 8, 32
"""Of a step."""
FEWEST_ROWS_OF_FEW = 4
"""Of a step where an epoch has fewer rows than a step would."""
MOST_TRIALS = 24
CARVED = 0.1
FEWEST_VALIDATION, MOST_VALIDATION, MOST_CARVED_TEST = 50, 1000, 2000
FEWEST_TO_CARVE_TEST = 200
"""A smaller set has no rows to spare: the validation rows are reported, and the report says so."""
CLOSING_SHARE = 0.2
"""Of the time, for evaluation of the reported rows and the served check."""
VALIDATION_SHARE = 0.15
"""Of an epoch's training time, at most."""
SPARE = 1.1
"""What is foreseen takes that much longer."""


class Facts(NamedTuple):
    """What a data set is, in examples: sentences, questions, predicates."""

    train: int
    validation: int | None
    """None without a file."""
    test: int | None
    tokens: float
    """Of one example, over all its rows."""
    items: float = 1.0
    """Rows that an example becomes, for questions their windows."""


class Plan(NamedTuple):
    """What is read and done. None leaves a recipe's field unset."""

    limits: dict[str, int]
    """Rows to read, by split, of those that are too many."""
    carve: int | None
    carve_test: int | None
    batch_rows: int
    epochs: int
    epoch_rows: int | None
    together: int
    trials: int
    passes: float
    """Over the training rows, of a run that is not ended early."""


def plan(facts: Facts, speed: Speed, seconds: float) -> Plan:
    """What fits into so many seconds."""
    validation, test = _held_out(facts, speed, seconds)
    carved = (validation if facts.validation is None else 0) + (test if facts.test is None else 0)
    rows = max(facts.train - carved, 2)
    closing = _evaluation(facts, speed, validation, test) + CLOSING_S
    row_s = facts.tokens * speed.train
    begun = PACKS[0][0] * START_ROWS * facts.tokens / facts.items * speed.evaluate
    seen = max(seconds - closing - begun, 0.3 * seconds) / SPARE / row_s
    together, run = _pack(seen, rows, facts.items)
    epochs, epoch_rows = _epochs(run, rows)
    validation = min(
        validation, max(round(VALIDATION_SHARE * epoch_rows * speed.train / speed.evaluate), FEWEST_VALIDATION)
    )
    used = min(rows, math.ceil(run * SPARE))
    return Plan(
        limits=_limits(facts, validation, test, used if used < rows else None),
        carve=validation if facts.validation is None else None,
        carve_test=test if facts.test is None and test else None,
        batch_rows=min(_batch_rows(run * facts.items), max(math.ceil(epoch_rows * facts.items), FEWEST_ROWS_OF_FEW)),
        epochs=epochs,
        epoch_rows=None if epoch_rows >= used else math.ceil(epoch_rows * facts.items),
        together=together,
        trials=MOST_TRIALS,
        passes=run / rows,
    )


def _held_out(facts: Facts, speed: Speed, seconds: float) -> tuple[int, int]:
    """Validation rows and test rows; 0 test rows where the validation rows are to be reported."""
    least = min(FEWEST_VALIDATION, round(0.2 * facts.train))
    share = max(round(CARVED * facts.train), least, 1)
    validation = min(share if facts.validation is None else facts.validation, MOST_VALIDATION)
    if facts.test is None:
        test = min(share, MOST_CARVED_TEST) if facts.train >= FEWEST_TO_CARVE_TEST else 0
    else:
        test = facts.test
    affordable = CLOSING_SHARE * seconds / (2 * facts.tokens * speed.evaluate)
    return validation, min(test, max(round(affordable), FEWEST_VALIDATION))


def _evaluation(facts: Facts, speed: Speed, validation: int, test: int) -> float:
    """Seconds for both splits, and once more by the server for the one that is reported."""
    return (validation + test + (test or validation)) * facts.tokens * speed.evaluate


def _pack(seen: float, rows: int, items: float) -> tuple[int, float]:
    """How many trials begin, and how many rows the one that is left goes through, of `seen` rows for all of them."""
    wanted = rows * min(max(ROWS_WANTED / rows, PASSES[0]), PASSES[1])
    for together, least in PACKS:
        run = min(wanted, seen / _bracket(together))
        if run == wanted or run * items >= least:
            return together, run
    raise AssertionError("one trial needs no rows. This is a bug.")


def _batch_rows(run: float) -> int:
    """Rows of a step, a power of two: as many as leave a run of so many rows the steps it wants."""
    return next(
        (rows for rows in (MOST_ROWS, MOST_ROWS // 2) if run / rows >= STEPS_WANTED / math.sqrt(2)), FEWEST_ROWS
    )


def _bracket(together: int) -> float:
    """Whole runs' worth of steps that halving so many trials costs, validation included."""
    epochs = expected_epochs(pruner_of("halving", EPOCHS), 0, EPOCHS, together, least=1)
    return epochs / EPOCHS * (1 + VALIDATION_SHARE)


def _epochs(run: float, rows: int) -> tuple[int, int]:
    """Epochs and their rows: passes, or parts of one."""
    if run >= EPOCHS * rows:
        return int(run / rows), rows
    return EPOCHS, max(math.ceil(run / EPOCHS), 1)


def _limits(facts: Facts, validation: int, test: int, used: int | None) -> dict[str, int]:
    found: dict[str, int] = {}
    carved = (validation if facts.validation is None else 0) + (test if facts.test is None else 0)
    if used is not None:
        found["train"] = used + carved
    if facts.validation is not None and validation < facts.validation:
        found["validation"] = validation
    if facts.test is not None and test < facts.test:
        found["test"] = test
    return found
