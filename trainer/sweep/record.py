"""Record: what is kept of a trial on disk while a sweep runs, and after it has ended.

A running trial's epochs are in its checkpoint; the record of one that has ended says all that is left of it.
It refuses to know how trials are chosen and trained.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from prefixbank.model_store.durable import replace_file, sync_folder
from prefixbank.model_store.errors import TrainingError
from prefixbank.trainer import checkpoint
from prefixbank.trainer.metrics import signed

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.trainer.trial import Trial

FILE = "trial.json"
RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"


@dataclass(slots=True)
class Record:
    """One trial of a sweep."""

    number: int
    settings: dict[str, Any]
    places: dict[str, float]
    """Where the settings lie in the space, as the study chose them."""
    seed: int
    state: str = RUNNING
    reason: str = ""
    """Why it did not run to its end."""
    score: float | None = None
    """On validation rows, of the best epoch; None where none was judged. Of a loss, less is better."""
    epochs: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    """Training and its share of shared steps; validation excluded."""

    @property
    def is_running(self) -> bool:
        return self.state == RUNNING


def score_of(trial: Trial) -> float | None:
    """A trial's validation score at its best epoch; None where no epoch was judged. Of a loss, less is better."""
    if not trial.state.best_epoch:
        return None
    return signed(trial.metric, trial.state.best_score)


def write(record: Record, folder: Path) -> None:
    """Put a trial's record in place in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(asdict(record), indent=1, allow_nan=False)
    replace_file(folder / FILE, [content.encode()], staging=folder)
    sync_folder(folder)


def read_all(folder: Path) -> list[Record]:
    """The records of a sweep by number; without gaps.

    Raises:
        TrainingError: a file is no record, or one is missing between others.
    """
    records = sorted((_read(path) for path in folder.glob(f"*/{FILE}")), key=lambda record: record.number)
    if [record.number for record in records] != list(range(len(records))):
        raise TrainingError(f"{folder}: found trials {[record.number for record in records]}, wanted all from 0 on")
    return records


def seconds_in(folder: Path) -> float:
    """Training time of all trials of a sweep so far, their shares of shared steps; validation excluded.

    Raises:
        TrainingError: a record or a checkpoint is none.
    """
    return sum(_seconds(path) for path in folder.glob(f"*/{FILE}"))


def _seconds(path: Path) -> float:
    record = _read(path)
    if not record.is_running or not checkpoint.is_in(path.parent):
        return record.seconds
    state = checkpoint.state_in(path.parent)
    return float(state["train_seconds"] + state["epoch_seconds"])


def _read(path: Path) -> Record:
    try:
        return Record(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path}: found no record of a trial: {error}") from error
