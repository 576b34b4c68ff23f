"""What the pages read of report.json and sweep.json: known fields are checked, unknown ones are let pass.

Old reports lack what later versions added, newer ones have more: both can be drawn. It refuses to know how a page
looks and how the numbers came about.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefixbank.model_store.complaint import first_complaint
from prefixbank.model_store.errors import InvalidReport

Count = Annotated[int, Field(ge=0)]
Interval = tuple[float, float]
RecordT = TypeVar("RecordT", bound="_Part")


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Mark(_Part):
    """A span of one text of a mistake."""

    text: int
    """Which of the texts."""
    start: int
    """First character."""
    end: int
    """One past the last character."""
    kind: Literal["expected", "found", "both"]
    label: str = ""


class Mistake(_Part):
    """A wrong answer; the worst come first."""

    where: str = ""
    """File and line."""
    texts: tuple[str, ...]
    expected: str
    found: str
    confidence: float | None = None
    marks: tuple[Mark, ...] = ()


class Bin(_Part):
    """Answers of like confidence."""

    low: float
    high: float
    count: Count
    confidence: float | None = None
    """Mean; None in an empty bin."""
    accuracy: float | None = None


class Calibration(_Part):
    """How far confidence may be believed."""

    ece: float
    bins: tuple[Bin, ...] = ()


class Details(_Part):
    """What lies behind the metrics of a split."""

    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[Count, ...], ...] = ()
    """Rows by true label, columns by predicted label."""
    by_type: dict[str, dict[str, float]] = {}
    calibration: Calibration | None = None
    mistakes: tuple[Mistake, ...] = ()

    @model_validator(mode="after")
    def _confusion_is_square(self) -> Self:
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("wanted as many columns as rows in confusion")
        return self


class Epoch(_Part):
    """One line of a curve."""

    epoch: int
    train_loss: float
    validation: dict[str, float]
    rate: float | None = None
    """Factor on the learning rates."""
    seconds: float | None = None


class Split(_Part):
    """Counts of a split."""

    rows: Count
    tokens: Count | None = None
    truncated_rows: Count = 0
    labels: dict[str, Count] = {}


class Files(_Part):
    """Where the rows came from."""

    files: dict[str, str] = {}
    """Path to SHA-256."""
    splits: dict[str, Split] = {}


class Skipped(_Part):
    """Bad rows of a split that were left out."""

    rows: Count
    first: str = ""
    """File, line and what was wrong."""


class Selection(_Part):
    """How the epoch was chosen."""

    metric: str
    split: str = "validation"
    epoch: int | None = None


class Confidence(_Part):
    """Intervals, and how they were made."""

    method: str = ""
    intervals: dict[str, dict[str, Interval]] = {}


class ServingCheck(_Part):
    """What the serving engine answered for the same rows."""

    metric: str
    trained: float
    served: float
    rows: Count
    logit_distance: float


class Report(_Part):
    """report.json."""

    created: str = ""
    recipe: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    data: Files = Files()
    backbone: dict[str, Any] = {}
    trained_parameters: Count | None = None
    trained_share: float | None = None
    reported_split: str
    selection: Selection
    metrics: dict[str, dict[str, float]]
    confidence: Confidence = Confidence()
    details: dict[str, Details] = {}
    curve: tuple[Epoch, ...] = ()
    stopped: str = ""
    """Why it ended before its schedule did."""
    train_seconds: float | None = None
    train_tokens_per_second: float | None = None
    serving_check: ServingCheck | None = None
    revision: str | None = None
    skipped: dict[str, Skipped] | None = None
    """By split that has some; None in reports of before bad rows were counted."""


class Trial(_Part):
    """One trial of a sweep."""

    number: int
    settings: dict[str, Any] = {}
    """Field of the recipe to value; what the trials do not vary may be left out."""
    seed: int | None = None
    state: str
    """complete, pruned, failed, or what else a sweep says."""
    reason: str = ""
    """Why it did not run to its end."""
    score: float | None = None
    """On validation rows; None for a trial that has none."""
    epochs: int | None = None
    curve: tuple[Epoch, ...] = ()
    seconds: float | None = None


class Reported(_Part):
    """The best settings on rows that chose nothing, one score a seed."""

    split: str
    scores: tuple[float, ...]
    mean: float
    std: float


class Best(_Part):
    """The settings that won."""

    settings: dict[str, Any]
    validation: tuple[float, ...] = ()
    """One score a seed."""
    reported: Reported | None = None


class Sweep(_Part):
    """sweep.json."""

    recipe: dict[str, Any] = {}
    metric: str
    created: str = ""
    environment: dict[str, Any] = {}
    trials: tuple[Trial, ...]
    best: Best | None = None


def parse(kind: type[RecordT], record: Any, where: str) -> RecordT:
    """Check a record read from JSON; `where` begins the message of a refusal.

    Raises:
        InvalidReport: a field that a page needs is missing or of another type.
    """
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        raise InvalidReport(f"{where}: {first_complaint(error)}") from error
