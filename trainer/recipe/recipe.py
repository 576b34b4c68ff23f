"""Recipe: every fact a training run depends on, frozen, and which of them must agree.

Paths stay as the recipe writes them, relative to the recipe's folder. It refuses to know what the files hold,
what a backbone is, and how anything is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from prefixbank.model_store.address import MAX_NAME_CHARS, is_name
from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.model_store.tasks.multiple_choice import MAX_CHOICES
from prefixbank.trainer.recipe.sections import (
    AnsweringSection,
    DataSection,
    HeadSection,
    OptimiserSection,
    PromptSection,
    ReportSection,
    RolesSection,
    Section,
    Seed,
    SelectionSection,
    TaskSection,
)
from prefixbank.trainer.recipe.sweep import SweepSection  # noqa: TC001 - pydantic reads the annotation
from prefixbank.trainer.recipe.verbalizer import check_verbalizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

METRICS: dict[TaskFamily, tuple[str, ...]] = {
    TaskFamily.TEXT_CLASSIFICATION: ("accuracy", "macro_f1", "f1", "matthews"),
    TaskFamily.TOKEN_CLASSIFICATION: ("span_f1",),
    TaskFamily.QUESTION_ANSWERING: ("f1", "exact"),
    TaskFamily.SEMANTIC_ROLES: ("role_f1", "span_f1"),
    TaskFamily.MULTIPLE_CHOICE: ("accuracy",),
}
"""What an epoch can be chosen by, beside the loss; the first is what `auto` means."""
FORMATS: dict[TaskFamily, tuple[str, ...]] = {
    TaskFamily.TEXT_CLASSIFICATION: ("tsv", "csv", "jsonl", "json"),
    TaskFamily.TOKEN_CLASSIFICATION: ("conll", "tsv", "jsonl", "json"),
    TaskFamily.QUESTION_ANSWERING: ("squad",),
    TaskFamily.SEMANTIC_ROLES: ("props",),
    TaskFamily.MULTIPLE_CHOICE: ("tsv", "csv", "jsonl", "json"),
}
"""What a family's files may be."""
RESERVED = ("artifact", "seeds", "tensorboard", "trials")
"""Folders beside those that are named as the data sets of `tasks`."""
LEAST_TEXT = 16
"""Tokens of a window beside the longest question: special ones, and some of the text."""
SENTENCE_FAMILIES = (TaskFamily.TEXT_CLASSIFICATION, TaskFamily.MULTIPLE_CHOICE)
"""Families whose head reads one pooled state."""
WORDLESS_FAMILIES = (TaskFamily.QUESTION_ANSWERING, TaskFamily.MULTIPLE_CHOICE)
"""Families without labels: there are none to fix and no words of theirs to begin from."""


class Recipe(Section):
    """Every fact a training run depends on."""

    family: TaskFamily
    """What the task answers."""
    data: DataSection | None = None
    """Where the rows come from. A recipe has this or `tasks`."""
    tasks: Annotated[dict[str, TaskSection], Field(min_length=2)] | None = None
    """Data sets of one family that train one prompt together, a head each; a step takes rows of one of them. Continue
    from the shared prompt on each alone with `prompt.init = "stored"`: it helps most where a set is small."""
    backbone: str = "minilm"
    """Folder, hub id, or "minilm" for the packaged all-MiniLM-L6-v2."""
    method: Literal["prompt", "shallow", "head", "full"] = "prompt"
    """Deep prompt and head; prompt at the input only and head; head alone; or full fine-tuning, a baseline that makes
    no artifact."""
    prompt: PromptSection = PromptSection()
    """The prompt, for methods "prompt" and "shallow"; the other methods ignore it."""
    head: HeadSection = HeadSection()
    """The head, for every method."""
    answering: AnsweringSection = AnsweringSection()
    """Windows and spans, for question answering."""
    roles: RolesSection = RolesSection()
    """How a predicate is shown, for semantic roles."""
    optimiser: OptimiserSection = OptimiserSection()
    """How parameters move."""
    selection: SelectionSection = SelectionSection()
    """Which epoch is kept, and when to stop."""
    report: ReportSection = ReportSection()
    """What the report shows."""
    sweep: SweepSection | None = None
    """What `prefixbank sweep` tries. Unset: the default space of the method."""
    max_tokens: Annotated[int, Field(ge=3)] = 128
    """Longest row with special tokens. Longer training rows are cut, and the report counts them; long texts of
    questions become several rows."""
    seed: Seed = 11
    """Seeds order, start and dropout: the same seed on the same machine gives the same bits."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the backbone. `auto`: bfloat16 where the device computes it fast; prefix and head stay float32."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problem = next(_problems(self), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    @property
    def parts(self) -> dict[str, Recipe]:
        """A recipe for each data set: this one under "" where it has one, else by the names of `tasks`."""
        if self.tasks is None:
            return {"": self}
        return {
            name: self.model_copy(update={"tasks": None, "data": task.data, "head": task.head or self.head})
            for name, task in self.tasks.items()
        }

    @property
    def strict(self) -> Recipe:
        """The same recipe, but the first bad row of any data set stops the run."""
        return self._with_data(lambda data: data.model_copy(update={"tolerance": 0.0}))

    @property
    def drawn(self) -> Recipe:
        """The same recipe, but `data.seed` says which rows are drawn: they stay the same with another seed."""
        return self._with_data(
            lambda data: data if data.seed is not None else data.model_copy(update={"seed": self.seed})
        )

    @property
    def metric(self) -> str:
        """The selection metric with `auto` resolved."""
        return METRICS[self.family][0] if self.selection.metric == "auto" else self.selection.metric

    @property
    def start(self) -> str | None:
        """The artifact that the prompt begins from. Methods without a prompt are baselines and begin from nothing."""
        return self.prompt.start if self.method in ("prompt", "shallow") else None

    @property
    def position_offset(self) -> int:
        """Added to the position of every real token; 0 without a prompt."""
        if self.method not in ("prompt", "shallow"):
            return 0
        return self.prompt.length if self.prompt.position_offset == "length" else self.prompt.position_offset

    def _with_data(self, change: Callable[[DataSection], DataSection]) -> Recipe:
        """The same recipe with a change in the data section of each data set."""
        if self.data is not None:
            return self.model_copy(update={"data": change(self.data)})
        tasks = {name: task.model_copy(update={"data": change(task.data)}) for name, task in (self.tasks or {}).items()}
        return self.model_copy(update={"tasks": tasks})


def _problems(recipe: Recipe) -> Iterator[str]:
    """What does not agree, as the wanted part of a refusal."""
    if (recipe.data is None) == (recipe.tasks is None):
        yield f"[data] or [tasks], one of them, not {'neither' if recipe.data is None else 'both'}"
    if recipe.tasks is not None and recipe.method != "prompt":
        yield f'method "prompt" beside [tasks]: a deep prompt is what they share, not "{recipe.method}"'
    for name in recipe.tasks or {}:
        if not is_name(name) or name in RESERVED:
            grammar = f"1 to {MAX_NAME_CHARS} of a-z 0-9 . _ - starting with a letter or digit"
            yield f"names in [tasks] of {grammar}, other than {', '.join(RESERVED)}, not {name!r}"
    yield from _method_problems(recipe)
    for name, part in recipe.parts.items():
        where = f"tasks.{name}." if name else ""
        yield from (f"{where}{problem}" for problem in _family_problems(part))
        yield from (f"{where}{problem}" for problem in check_verbalizer(part))


def _method_problems(recipe: Recipe) -> Iterator[str]:
    method, prompt = recipe.method, recipe.prompt
    if method == "shallow" and prompt.layers != "all":
        yield 'prompt.layers unset for method "shallow": it has vectors at the input and none in the layers'
    if method == "shallow" and prompt.parameterisation == "mlp":
        yield 'prompt.parameterisation "embedding" for method "shallow": the MLP makes deep prompts'
    if prompt.init == "labels" and recipe.family in WORDLESS_FAMILIES:
        yield f'prompt.init other than "labels": {recipe.family} has no labels with words'


def _family_problems(recipe: Recipe) -> Iterator[str]:
    family, allowed = recipe.family, METRICS[recipe.family]
    if recipe.selection.metric not in ("auto", "loss", *allowed):
        yield f'selection.metric that fits {family} ({", ".join(allowed)}, loss), not "{recipe.selection.metric}"'
    if family not in SENTENCE_FAMILIES and recipe.head.pooler not in ("auto", "none"):
        yield f'head.pooler "auto" or "none" for {family}, whose head reads tokens, not "{recipe.head.pooler}"'
    if family != TaskFamily.QUESTION_ANSWERING and recipe.answering != AnsweringSection():
        yield f"[answering] only for question-answering, not for {family}"
    if (
        family == TaskFamily.QUESTION_ANSWERING
        and recipe.max_tokens < recipe.answering.max_question_tokens + LEAST_TEXT
    ):
        least = recipe.answering.max_question_tokens + LEAST_TEXT
        yield f"max_tokens of at least {least} beside answering.max_question_tokens, which leave room for the text"
    if family != TaskFamily.SEMANTIC_ROLES and recipe.roles != RolesSection():
        yield f"[roles] only for semantic-role-labeling, not for {family}"
    if recipe.data is not None:
        yield from _data_problems(recipe, recipe.data)


def _data_problems(recipe: Recipe, data: DataSection) -> Iterator[str]:
    family, columns = recipe.family, len(data.text)
    if data.format not in ("auto", *FORMATS[family]):
        yield f'data.format {" or ".join(FORMATS[family])} for {family}, not "{data.format}"'
    if family == TaskFamily.TOKEN_CLASSIFICATION and columns != 1:
        yield f"data.text with one field of words, not {columns} fields"
    if family == TaskFamily.TEXT_CLASSIFICATION and columns not in (1, 2):
        yield f"data.text with one or two columns, not {columns}"
    if family == TaskFamily.MULTIPLE_CHOICE and not 3 <= columns <= MAX_CHOICES + 1:
        wanted = f'["premise", "choice1", "choice2"] and up to {MAX_CHOICES} choices'
        yield f"data.text with the premise and each choice, as {wanted}, not {list(data.text)}"
    if data.labels is not None and family in WORDLESS_FAMILIES:
        yield f"data.labels unset: {family} has none to fix"
    if data.labels is not None and len(set(data.labels)) != len(data.labels):
        yield f"data.labels without repetition, not {list(data.labels)}"
    if recipe.metric == "f1" and family == TaskFamily.TEXT_CLASSIFICATION and len(data.labels or "ab") != 2:
        yield 'selection.metric "macro_f1": "f1" is that of the last of two labels'
    if data.max_characters is not None and family != TaskFamily.TEXT_CLASSIFICATION:
        yield f"data.max_characters only for text-classification, not for {family}"
    words = any(source.words is not None for source in data.sources.values())
    if words and (family != TaskFamily.SEMANTIC_ROLES or data.layout != "conll2005"):
        yield 'words only beside props of data.layout = "conll2005"'
