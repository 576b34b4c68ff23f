"""What a schema found wrong, in one line, without the input: it may be megabytes, or somebody's secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

_STEP_CHARS, _MESSAGE_CHARS = 80, 200


def first_complaint(error: ValidationError) -> str:
    """Where and what of the first, and how many more there are."""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{_spelled(_faults(error)[0])}{more}"


def all_complaints(error: ValidationError) -> str:
    """Where and what of each: for settings, which their writer mends in one go."""
    return "; ".join(map(_spelled, _faults(error)))


def _faults(error: ValidationError) -> list[Any]:
    return list(error.errors(include_url=False, include_context=False, include_input=False))


def _spelled(fault: dict[str, Any]) -> str:
    where = ".".join(str(step)[:_STEP_CHARS] for step in fault["loc"]) or "(top)"
    return f"{where}: {fault['msg'][:_MESSAGE_CHARS]}"
