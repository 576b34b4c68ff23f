"""What a request may say besides its text: parameters, and how many inputs it brings.

It refuses to know the families' own parameters and the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from prefixbank.model_store.errors import InvalidRequest
from prefixbank.model_store.tasks.features import Truncation

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOWN_CHARACTERS = 40
"""How much of a wrong value an error message repeats."""


class RequestParameters(BaseModel):
    """Parameters every family takes. `null` means not asked, as in Hugging Face's clients."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    truncation: bool | None = None
    """True cuts what is longer than the task takes; otherwise it is refused."""

    @property
    def when_too_long(self) -> Truncation:
        """What to do with too many tokens."""
        return Truncation.CUT if self.truncation else Truncation.REFUSE


class RequestItem(Protocol):
    """One input of a request: a value of its family."""

    @property
    def num_characters(self) -> int:
        """Characters that are tokenised for it; a text that stands in several rows counts in each."""

    @property
    def num_repeated_characters(self) -> int:
        """How many of them are tokenised again for another row."""


ItemT_co = TypeVar("ItemT_co", bound=RequestItem, covariant=True)


class RequestInputs(NamedTuple, Generic[ItemT_co]):
    """The inputs of one request, in order."""

    items: tuple[ItemT_co, ...]
    batched: bool
    """The request brought a list, so the answer is one."""


ParametersT = TypeVar("ParametersT", bound=RequestParameters)


def parse_parameters(kind: type[ParametersT], parameters: Mapping[str, object]) -> ParametersT:
    """The parameters as a value of `kind`, or InvalidRequest naming field, what was found and what was wanted."""
    try:
        return kind.model_validate(dict(parameters))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            wanted = "one of " + ", ".join(sorted(kind.model_fields))
            raise InvalidRequest(f"parameters: found {shown(field)}, wanted {wanted}") from error
        if not field:
            raise InvalidRequest(f"parameters: {problem['msg']}") from error
        found = shown(problem["input"])
        raise InvalidRequest(f"parameters.{field}: found {found}: {problem['msg']}") from error


def shown(value: object) -> str:
    """A wrong value, short enough for an error message."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def wrong_inputs(found: object, wanted: str) -> InvalidRequest:
    """The error for inputs of a wrong form: it names types, never content."""
    return InvalidRequest(f"inputs: found {_form(found)}, wanted {wanted}")


def _form(value: object) -> str:
    if isinstance(value, (list, tuple)):
        kinds = sorted({type(item).__name__ for item in value})
        return f"a list of {len(value)} ({', '.join(kinds)})" if kinds else "an empty list"
    if isinstance(value, dict):
        keys = ", ".join(sorted(shown(key) for key in list(value)[:5]))
        return f"an object with keys {keys}"
    return {"str": "a string", "NoneType": "null", "bool": "a boolean"}.get(type(value).__name__, "a number")
