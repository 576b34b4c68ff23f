"""Recipe: every fact a training run depends on, read from TOML once and frozen.

Paths stay as the recipe writes them, relative to the recipe's folder. It refuses to know what the files hold,
what a backbone is, and how anything is trained.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefixbank.model_store.errors import InvalidRecipe
from prefixbank.model_store.task_prompt import Pooler, TaskFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

TRAINABLE = (TaskFamily.TEXT_CLASSIFICATION, TaskFamily.TOKEN_CLASSIFICATION)
"""Task families this trainer makes prompts for."""

Rate = Annotated[float, Field(ge=0, le=10)]
Share = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Source(_Section):
    """One split of the data. A plain string in the recipe is its path."""

    path: str
    """File, relative to the recipe's folder."""
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = None
    """Half-open slice [first, end) in file order. Cut one file into splits with it, and say so beside any number."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take only so many rows, drawn with the seed. For learning curves and smoke runs; unset for results."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, found: Any) -> Any:
        return {"path": found} if isinstance(found, str) else found

    @model_validator(mode="after")
    def _slice_is_not_empty(self) -> Self:
        if self.rows is not None and self.rows[0] >= self.rows[1]:
            raise ValueError(f"rows [first, end) with first < end, not {list(self.rows)}")
        return self


class DataSection(_Section):
    """Where rows come from and what their columns mean."""

    train: Source
    """Rows to learn from."""
    validation: Source | None = None
    """Rows to choose the epoch on. Unset: `carve` takes them from the training rows."""
    test: Source | None = None
    """Rows to report on; never used for any choice. Unset: the validation rows are reported, and the report says so."""
    carve: Annotated[float, Field(gt=0)] = 0.1
    """Validation rows taken from training when no validation file is given: a share below 1, or a number of rows."""
    format: Literal["auto", "tsv", "jsonl", "json", "conll"] = "auto"
    """`auto` goes by the file's ending: .tsv, .jsonl, .json, anything else is CoNLL columns."""
    text: tuple[str, ...] = ("text",)
    """Input columns. One for single texts, two for pairs (first text first); for words the field of the word list."""
    label: str = "label"
    """Column of the label, or of the tag list."""
    labels: tuple[str, ...] | None = None
    """Fixes the labels and their order. Unset: sorted from the training rows."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Label in the file to label in the answers, such as `0 = "negative"`. Unlisted labels stay."""
    word_column: int = 0
    """CoNLL: column of the word; negative counts from the end."""
    tag_column: int = -1
    """CoNLL: column of the tag. -1 for CoNLL-2003 and WNUT17."""
    scheme: Literal["iob1", "iob2", "bilou"] = "iob2"
    """How the file writes spans. Training and answers use IOB2 whatever the file uses."""


class PromptSection(_Section):
    """The deep prompt."""

    length: Annotated[int, Field(ge=1, le=1024)] = 20
    """Prefix tokens per layer. Sentences: 8 to 20; sequence labelling gains up to 64 or 128."""
    layers: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """Prompted layers. The upper half costs half as much to train and to hold and loses little on sentences."""
    position_offset: Annotated[int, Field(ge=0)] | Literal["length"] = 0
    """Shift of real positions. 0 leaves the backbone its whole input length; "length" is as published."""
    init: Literal["text", "random"] = "text"
    """Start from keys and values of training text, or from noise of the same scale (worse by points of F1)."""
    dropout: Share = 0.0
    """Dropout on prefix values while training. Try 0.1 when validation falls while the training loss still does."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Storage of the prefix. float16 keeps three more bits than bfloat16 at the same size."""

    @model_validator(mode="after")
    def _layers_ascend(self) -> Self:
        if self.layers != "all" and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise ValueError(f'layers "all" or ascending layer numbers, not {list(self.layers)}')
        return self


class HeadSection(_Section):
    """The linear head."""

    pooler: Pooler | Literal["auto"] = "auto"
    """What the head of a sentence task reads: the backbone's pooler, an own trained one, or the first state itself.

    `auto` takes the backbone's where it has one and `own` where not. Token tasks have none."""
    dropout: Share = 0.1
    """Dropout before the classifier while training, as published."""


class OptimiserSection(_Section):
    """AdamW with warm-up, linear decay to zero and clipping."""

    prompt_rate: Rate = 1e-2
    """Learning rate of the prefix. It decides most: try 5e-3, 1e-2, 2e-2, 5e-2 before anything else."""
    head_rate: Rate = 5e-3
    """Learning rate of the head; a tenth of the prompt's to equal to it."""
    backbone_rate: Rate = 3e-5
    """Learning rate of the backbone in full fine-tuning; the other methods leave it frozen."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Passes over the training rows. Prompts want more than fine-tuning: 10 to 100 on small sets."""
    batch_rows: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows per step."""
    warmup: Share = 0.06
    """Share of all steps in which the rate climbs from zero."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Longest gradient over prefix and head together."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay. Zero as published; pulling keys towards zero is not a neutral act."""
    backbone_dropout: bool = False
    """Keep the backbone's own hidden dropouts active, as published. Off by default: short runs on small backbones
    reach more without; turn it on for runs of many epochs and for full fine-tuning."""


class SelectionSection(_Section):
    """Which epoch is kept."""

    metric: Literal["auto", "accuracy", "macro_f1", "matthews", "span_f1", "loss"] = "auto"
    """Judged on validation rows. `auto`: accuracy for sentences, span micro-F1 for words."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a better one. Unset: run all, since the rate's decay is planned for all."""


class Recipe(_Section):
    """Every fact a training run depends on."""

    family: TaskFamily
    """What the task answers."""
    data: DataSection
    """Where the rows come from."""
    backbone: str = "minilm"
    """Folder, hub id, or "minilm" for the packaged all-MiniLM-L6-v2."""
    method: Literal["prompt", "head", "full"] = "prompt"
    """Deep prompt and head; head alone; or full fine-tuning, a baseline that makes no artifact."""
    prompt: PromptSection = PromptSection()
    """The prefix, for method "prompt"; the other methods ignore it."""
    head: HeadSection = HeadSection()
    """The linear head, for every method."""
    optimiser: OptimiserSection = OptimiserSection()
    """How parameters move."""
    selection: SelectionSection = SelectionSection()
    """Which epoch is kept, and when to stop."""
    max_tokens: Annotated[int, Field(ge=3)] = 128
    """Longest row with special tokens. Longer training rows are cut; the report counts them."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 11
    """Seeds order, start and dropout: the same seed on the same machine gives the same bits."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the backbone. `auto`: bfloat16 where the device computes it fast; prefix and head stay float32."""

    @model_validator(mode="after")
    def _fits_family(self) -> Self:
        if self.family not in TRAINABLE:
            raise ValueError(f'family {" or ".join(TRAINABLE)}, not "{self.family.value}"')
        words = self.family == TaskFamily.TOKEN_CLASSIFICATION
        columns = len(self.data.text)
        if words and columns != 1:
            raise ValueError(f"data.text with one field of words, not {columns} fields")
        if columns not in (1, 2):
            raise ValueError(f"data.text with one or two columns, not {columns}")
        if words and self.head.pooler not in ("auto", Pooler.NONE):
            raise ValueError(f'head.pooler "auto" or "none" for a token task, not "{self.head.pooler}"')
        if words != (self.metric == "span_f1") and self.metric != "loss":
            raise ValueError(f'selection.metric that fits {self.family.value}, not "{self.metric}"')
        return self

    @property
    def metric(self) -> str:
        """The selection metric with `auto` resolved."""
        if self.selection.metric != "auto":
            return self.selection.metric
        return "span_f1" if self.family == TaskFamily.TOKEN_CLASSIFICATION else "accuracy"

    @property
    def position_offset(self) -> int:
        """Added to the position of every real token; 0 without a prompt."""
        if self.method != "prompt":
            return 0
        return self.prompt.length if self.prompt.position_offset == "length" else self.prompt.position_offset


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are `section.field=value` with TOML values (bare words are strings).

    Raises:
        InvalidRecipe: unreadable, not TOML, or a field is unknown, missing or out of range.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidRecipe(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRecipe(f"{path}: found no TOML: {error}") from error
    for override in overrides:
        _apply(table, override)
    return parse(table, str(path))


def parse(table: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a recipe given as a table; `where` begins the message of a refusal."""
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        lines = "; ".join(_sentence(dict(fault)) for fault in error.errors(include_url=False))
        raise InvalidRecipe(f"{where}: {lines}") from error


def _sentence(fault: dict[str, Any]) -> str:
    field = ".".join(_path(fault["loc"])) or "recipe"
    if fault["type"] == "missing":
        return f"{field}: found nothing, wanted a value"
    if fault["type"] == "extra_forbidden":
        return f"{field}: found an unknown field, wanted none of this name"
    wanted = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = "" if isinstance(fault["input"], dict | BaseModel) else f"found {fault['input']!r}, "
    return f"{field}: {found}wanted {wanted}"


def _path(location: Iterable[str | int]) -> list[str]:
    """Field names only: pydantic adds the branch of a union, which no recipe contains."""
    return [str(part) for part in location if not (isinstance(part, str) and not part.isidentifier())]


def _apply(table: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not all([*sections, name]):
        raise InvalidRecipe(f"override: found {override!r}, wanted section.field=value")
    for section in sections:
        inner = table.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InvalidRecipe(f"override {override!r}: {section} is a value, wanted a section")
        table = inner
    table[name] = _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
