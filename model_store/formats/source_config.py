"""Configs of other tools, as far as they matter here: unknown keys are theirs, known ones must be of their type.

It refuses to know files.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from prefixbank.model_store.complaint import first_complaint
from prefixbank.model_store.errors import SourceInvalid

READ_STRICTLY = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

Config = TypeVar("Config", bound=BaseModel)


class SourceConfig(BaseModel):
    """The part of a config that is read."""

    model_config = READ_STRICTLY


def parse_config(kind: type[Config], fields: dict[str, Any], where: object) -> Config:
    """The fields as a config of that kind; raises SourceInvalid naming the first that is wrong."""
    try:
        return kind.model_validate_json(json.dumps(fields))  # in which a list is a tuple and a string an enum
    except ValidationError as error:
        raise SourceInvalid(f"{where}: {first_complaint(error)}") from error
