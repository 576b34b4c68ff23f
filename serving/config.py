"""ServeConfig: every setting of a server, read once at the edge from a TOML file, the environment and the command line.

Each field carries a sentence of advice. It refuses to know how a setting is used, and it refuses unknown keys.

Later sources win: defaults, TOML file, environment (`PREFIXBANK__PORT`, `PREFIXBANK__LIMITS__TOKEN_BUDGET`), overrides.
The doubled underscore is on purpose: Kubernetes injects PREFIXBANK_PORT for a Service of that name.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path  # noqa: TC003  # pydantic reads the annotation when the class is made
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prefixbank.model_store.complaint import all_complaints
from prefixbank.model_store.errors import InvalidConfig
from prefixbank.serving.limits import MIB, Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT_PREFIX = "PREFIXBANK__"

Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]


class ServeConfig(BaseModel):
    """The settings of one server. Frozen: what a replica was started with is what it runs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backbone: str = "minilm"
    """The frozen encoder: a folder, a hub id, or "minilm", the packaged one. It serves the prompts trained on it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """bfloat16 on a recent GPU or a CPU with AMX; float32 where answers must equal the trainer's to the last digits."""
    prefix_dtype: Literal["auto", "int8", "float8_e4m3fn"] = "auto"
    """"auto" stores prefixes in `dtype`. int8 and float8_e4m3fn halve those of 16 bits; int8 is nearer to them."""
    device: str = "auto"
    """"auto" takes a GPU if there is one. "cpu", "cuda" or "cuda:1" say it outright and fail if it is not there."""
    threads: Positive | None = None
    """CPU threads of the model in each replica. None shares the machine's cores among the replicas."""

    store: str = "store"
    """Folder of the prompt store. All replicas read the same one: on several machines, a shared file system."""

    host: str = "127.0.0.1"
    """Interface to listen on. "0.0.0.0" only behind a firewall or with keys: see deploy/README.md."""
    port: Port = 8000
    """Where clients connect."""
    num_replicas: Positive = 1
    """Processes with a backbone each. One per GPU; more than one on a CPU only when the cores outnumber its threads."""

    keys: Path | None = None
    """TOML file with the hashed API keys. Without it everybody sees every task."""
    max_in_flight: Positive = 512
    """Requests a replica works on at once; one more is answered 429. Too high only costs memory."""
    max_body_bytes: Positive = MIB
    """Longest request body, chunked bodies included. A thousand long sentences fit into a mebibyte."""
    max_inputs: Positive = 64
    """Most inputs of one request. Larger lists gain nothing: rows of all requests share batches anyway."""
    tokenizer_threads: Positive = 2
    """Threads that turn text into tokens, in each replica. Raise it when the tokenize stage in the metrics grows."""

    limits: Limits = Limits()
    """What one engine may hold, queue and wait for; a TOML table of its own."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """No level logs the text of a request."""

    @field_validator("limits", mode="before")
    @classmethod
    def _no_unknown_limit(cls, value: Any) -> Any:
        if isinstance(value, dict) and (unknown := value.keys() - {f.name for f in dataclasses.fields(Limits)}):
            raise ValueError(f"unknown: {', '.join(sorted(map(str, unknown)))}")
        return value

    @field_validator("limits")
    @classmethod
    def _limits_are_positive(cls, limits: Limits) -> Limits:
        if bad := [name for name, value in dataclasses.asdict(limits).items() if not value > 0]:
            raise ValueError(f"must be greater than 0: {', '.join(bad)}")
        return limits


def load_config(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] | None = None,
) -> ServeConfig:
    """The one reading of the settings; later sources win.

    Raises:
        InvalidConfig: a key is unknown, a value out of range, or the file unreadable.
    """
    settings = _read_toml(file) if file else {}
    for key, value in (*_from_environment(environment).items(), *(overrides or {}).items()):
        _set(settings, key, value)
    return validated(settings)


def validated(settings: Mapping[str, object]) -> ServeConfig:
    """The settings as a config.

    Raises:
        InvalidConfig: naming each key that is wrong.
    """
    try:
        return ServeConfig.model_validate(settings)
    except ValidationError as error:
        raise InvalidConfig(f"server settings: {all_complaints(error)}") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidConfig(f"{file}: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }


def _set(settings: dict[str, Any], dotted: str, value: object) -> None:
    *tables, key = dotted.split(".")
    for table in tables:
        settings = settings.setdefault(table, {})
        if not isinstance(settings, dict):
            raise InvalidConfig(f"server settings: {dotted}: {table} is a value, not a table")
    settings[key] = value
