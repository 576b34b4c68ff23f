"""Sections: the fields of a recipe, each with its default and a sentence of advice.

They refuse to know each other (`recipe.py` checks what must agree), files and backbones.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from prefixbank.model_store.errors import InvalidRecipe
from prefixbank.model_store.task_prompt import (
    MAX_ANSWER_TOKENS,
    MAX_ANSWERING_TOKENS,
    MAX_BEST,
    MAX_SEPARATOR_CHARS,
    MAX_TEMPLATE_CHARS,
)

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, le=10)]
Share = Annotated[float, Field(ge=0, lt=1)]
MOST_SEEDS = 2**31
Seed = Annotated[int, Field(ge=0, lt=MOST_SEEDS)]
Metric: TypeAlias = Literal["accuracy", "macro_f1", "matthews", "span_f1", "role_f1", "f1", "exact", "loss"]


class Section(BaseModel):
    """A part of a recipe: frozen, and a field it does not know is refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, serialize_by_alias=True
    )


class Source(Section):
    """One split of the data. A plain string in the recipe is its path."""

    path: str | None = None
    """File, relative to the recipe's folder."""
    words: str | None = None
    """The words file beside a CoNLL-2005 props file; other formats hold their words themselves."""
    hub: str | None = None
    """Data set on Hugging Face's hub, or a folder of Parquet, CSV or JSON files. It needs
    `pip install prefixbank[hub]`."""
    config: str | None = None
    """Which of the hub's data sets of that name, such as "boolq" of "super_glue"."""
    split: str = "train"
    """Split on the hub; its slices work too: "train[:90%]"."""
    revision: str | None = None
    """Commit, tag or branch on the hub. Pin it for results; "refs/convert/parquet" reads sets that come as a script."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns that the other splits name otherwise: their name here to the name there, `premise = "sentence1"`."""
    rows: tuple[Annotated[int, Field(ge=0)], Count] | None = None
    """Half-open slice [first, end) in file order. Cut one file into splits with it, and say so beside any number."""
    limit: Count | None = None
    """Take only so many rows, drawn with the seed. For learning curves and smoke runs; unset for results."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, found: Any) -> Any:
        return {"path": found} if isinstance(found, str) else found

    @model_validator(mode="after")
    def _is_a_file_or_on_the_hub(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"path or hub, one of them, not {'both' if self.path else 'neither'}")
        if self.hub is None and ((self.config, self.split, self.revision) != (None, "train", None)):
            raise ValueError("config, split and revision only beside hub")
        if self.words is not None and self.path is None:
            raise ValueError("words only beside the path of a props file")
        if self.rows is not None and self.rows[0] >= self.rows[1]:
            raise ValueError(f"rows [first, end) with first < end, not {list(self.rows)}")
        return self

    @property
    def name(self) -> str:
        """For messages and reports: the files, or where it lies on the hub. No other source has it."""
        if self.path is not None:
            return self.path if self.words is None else f"{self.path} with {self.words}"
        place = "/".join(part for part in (self.hub, self.config, self.split) if part)
        return f"hub:{place}" if self.revision is None else f"hub:{place}@{self.revision}"


class DataSection(Section):
    """Where rows come from and what their columns mean."""

    train: Source
    """Rows to learn from."""
    validation: Source | None = None
    """Rows to choose the epoch on. Unset: `carve` takes them from the training rows."""
    test: Source | None = None
    """Rows to report on; never used for any choice. Unset: the validation rows are reported, and the report says so."""
    carve: Annotated[float, Field(gt=0)] = 0.1
    """Validation rows taken from training when no validation file is given: a share below 1, or a number of rows.
    Questions about one text, and predicates of one sentence, stay together."""
    carve_test: Annotated[float, Field(ge=0)] = 0.0
    """Test rows taken from training, likewise, when no test file is given. What many settings were chosen on flatters
    them: carve some where a sweep would have nothing else to report."""
    seed: Seed | None = None
    """Draws what `limit`, `carve` and `carve_test` take. Unset: the recipe's own. The recipe that a sweep writes names
    it: whatever seed it is trained with, rows that chose the settings are none of those that are reported."""
    format: Literal["auto", "tsv", "csv", "jsonl", "json", "conll", "squad", "props"] = "auto"
    """`auto` goes by the family: SQuAD for answers, props for roles; for others by the file's ending: .tsv, .csv,
    .jsonl, .json, anything else is CoNLL columns, and so is a .tsv file of words and tags."""
    tolerance: Share = 0.01
    """Share of bad rows that a file may have: they are left out, and the report says how many. 0 stops at the first."""
    text: tuple[str, ...] = ("text",)
    """Input columns. One for single texts, two for pairs (first text first); for words the field of the word list;
    for multiple choice the premise and then each choice. Questions and props have columns of their own."""
    label: str = "label"
    """Column of the label, of the tag list, or of the number of the right choice, from 0."""
    question: str = ""
    """Multiple choice: column that names the connector, "cause" or "effect" as in COPA. Empty: nothing stands between
    premise and choice."""
    labels: tuple[str, ...] | None = None
    """Fixes the labels and their order. Unset: sorted from the training rows."""
    max_characters: Count | None = None
    """Texts: a row with a longer one is a bad row. For tables with lines that run together, such as some of MNLI."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Label in the file to label in the answers, such as `0 = "negative"`. Unlisted labels stay."""
    word_column: int = 0
    """CoNLL: column of the word; negative counts from the end."""
    word_prefix: str = ""
    """CoNLL: what every word of the file begins with and is no part of it, such as the "en:" of WikiANN."""
    tag_column: int = -1
    """CoNLL: column of the tag. -1 for CoNLL-2003 and WNUT17."""
    scheme: Literal["iob1", "iob2", "bilou", "iobes", "brackets"] = "iob2"
    """How the file writes spans. Training and answers use IOB2 whatever the file uses."""
    layout: Literal["propbank", "conll2012", "conll2005", "tagged"] = "propbank"
    """Props: which columns mean what. `tagged` is a line `index words ||| tags` per predicate, as P-tuning v2 used."""

    @property
    def sources(self) -> dict[str, Source]:
        """The splits that are given, by name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: source for name, source in found.items() if source is not None}


class LayerInterval(Section):
    """Neighbouring layers, counted from one end."""

    end: Literal["top", "bottom"] = Field(alias="from")
    """`top`: the layers nearest the head. They matter most, and nothing is computed below them on the way back."""
    count: Count
    """How many. Half of them from the top lose little on sentences and cost half as much."""


class PromptSection(Section):
    """The prompt: deep keys and values, or vectors before the text for method "shallow"."""

    length: Annotated[int, Field(ge=1, le=1024)] = 20
    """Prefix tokens per layer. Sentences: 2 to 20; sequence labelling wants 16 to 128."""
    layers: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] | LayerInterval = "all"
    """Prompted layers: all, numbers, or `{ from = "top", count = 3 }`. The upper half costs half as much to train
    and to hold and loses little on sentences."""
    position_offset: Annotated[int, Field(ge=0)] | Literal["length"] = 0
    """Shift of real positions. 0 leaves the backbone its whole input length; "length" is as published."""
    parameterisation: Literal["embedding", "mlp"] = "embedding"
    """Train the prompt itself, or an MLP that is folded away at export: with `init = "normal"` it makes the prompt, as
    published; with another start, what it makes is added to that. The paper finds the MLP better on some tasks and
    worse on others: try it when the embedding does not learn, with a lower rate."""
    mlp_width: Count = 512
    """Hidden width of the MLP, as published."""
    init: Literal["text", "random", "normal", "labels", "stored"] = "text"
    """Start: keys and values of training text; noise of the same scale (worse by points of F1); N(0, 0.02) as
    published; keys and values of the labels' words; or another prompt (`start`), best for little data."""
    start: str | None = None
    """For `stored`: the artifact's folder, relative to the recipe's. With the same labels its head is taken too."""
    dropout: Share = 0.0
    """Dropout on prefix values while training. Try 0.1 when validation falls while the training loss still does."""
    dropout_per: Literal["batch", "row"] = "batch"
    """One draw for all rows of a step, or one for each as published; the latter copies the prefix for every row."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Storage of the prefix. float16 keeps three more bits than bfloat16 at the same size."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if isinstance(self.layers, tuple) and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise ValueError(f'layers "all" or ascending layer numbers, not {list(self.layers)}')
        if (self.init == "stored") != (self.start is not None):
            raise ValueError('start, an artifact\'s folder, beside init = "stored", and only there')
        return self

    def resolve(self, num_layers: int) -> tuple[int, ...]:
        """The prompted layers of a backbone of so many, ascending.

        Raises:
            InvalidRecipe: the backbone has no such layers.
        """
        if self.layers == "all":
            return tuple(range(num_layers))
        if isinstance(self.layers, tuple):
            if self.layers[-1] >= num_layers:
                raise InvalidRecipe(f"prompt.layers: found layer {self.layers[-1]}, wanted 0 to {num_layers - 1}")
            return self.layers
        count = self.layers.count
        if count > num_layers:
            raise InvalidRecipe(f"prompt.layers: found {count} layers, wanted at most {num_layers}")
        return tuple(range(num_layers - count, num_layers) if self.layers.end == "top" else range(count))


class HeadSection(Section):
    """What turns hidden states into scores of labels."""

    kind: Literal["linear", "verbalizer"] = "linear"
    """A trained linear layer; or the backbone's own vocabulary head at a mask, restricted to a word for each label.
    A verbalizer starts from what the backbone knows: try it with a few hundred rows or fewer."""
    pooler: Literal["auto", "none", "backbone", "own"] = "auto"
    """What the linear head of a sentence task reads: the backbone's pooler, an own trained one, or the first state.

    `auto` takes the backbone's where it has one and `own` where not. Token tasks have none."""
    dropout: Share = 0.1
    """Dropout before the classifier while training, as published."""
    template: Annotated[str, Field(max_length=MAX_TEMPLATE_CHARS)] | None = None
    """Verbalizer: text around the inputs, with `{text}`, `{text_pair}` for pairs, and one `{mask}` for the label's
    word, such as "{text} It was {mask}.". Words as the backbone's training texts would put them do best."""
    words: dict[str, str] = Field(default_factory=dict)
    """Verbalizer: the word of each label, such as `negative = "terrible"`. Short common words that fit the template."""


class AnsweringSection(Section):
    """Question answering: windows and spans. The defaults are the published ones; rows are `max_tokens` long."""

    stride: Annotated[int, Field(ge=0, le=MAX_ANSWERING_TOKENS)] = 128
    """Tokens that neighbouring windows share; at most half of what a window holds of the text."""
    max_question_tokens: Annotated[int, Field(ge=1, le=MAX_ANSWERING_TOKENS)] = 64
    """Longer questions are cut."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=MAX_ANSWER_TOKENS)] = 30
    """Longest answer."""
    num_best: Annotated[int, Field(ge=1, le=MAX_BEST)] = 20
    """Spans that share the probability."""
    unanswerable: bool | Literal["auto"] = "auto"
    """Whether there may be no answer, as in SQuAD 2.0. `auto`: where a training question has none. The threshold is
    tuned on validation rows."""


class RolesSection(Section):
    """Semantic roles: how a predicate is shown."""

    separator: Annotated[str, Field(min_length=1, max_length=MAX_SEPARATOR_CHARS)] = "[SEP]"
    """Stands between the sentence and its verb. The published runs wrote "[SEP]" for every backbone."""


class OptimiserSection(Section):
    """AdamW with warm-up, decay and clipping."""

    prompt_rate: Rate = 1e-2
    """Learning rate of the prefix. It decides most: try 5e-3, 1e-2, 2e-2, 5e-2 before anything else."""
    head_rate: Rate = 5e-3
    """Learning rate of the head; a tenth of the prompt's to equal to it."""
    backbone_rate: Rate = 3e-5
    """Learning rate of the backbone in full fine-tuning; the other methods leave it frozen."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Passes over the training rows. Prompts want more than fine-tuning: 10 to 100 on small sets."""
    epoch_rows: Count | None = None
    """Rows that make an epoch; unset: all. On a large set, after all rows is late to validate for the first time:
    epochs of so many rows go through the set in turn, and the rate's schedule counts them."""
    batch_rows: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rows per step; premises with all their choices, where there are choices. Where a run is short, prompts learn more
    from 4 or 8 than from 32 with as many tokens: more steps. Trials in a pack keep the machine busy all the same."""
    schedule: Literal["linear", "exponential", "constant"] = "linear"
    """After the warm-up: linear decay to zero, as published for sentences; times `gamma` after every epoch, as
    published for tags, roles and answers; or no decay."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Exponential: what is left of the rate after each epoch."""
    warmup: Share = 0.06
    """Share of all steps in which the rate climbs from zero. 0 as published."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Longest gradient over prefix and head together."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay. Zero as published; pulling keys towards zero is not a neutral act."""
    backbone_dropout: bool | Share = False
    """Keep the backbone's own hidden dropouts active, as published; a number takes the place of their share. Off by
    default: short runs on small backbones reach more without; turn it on for runs of many epochs and for full
    fine-tuning."""


class SelectionSection(Section):
    """Which epoch is kept."""

    metric: Literal["auto"] | Metric = "auto"
    """Judged on validation rows. `auto`: accuracy for labels and choices, span micro-F1 for words, F1 of answers, F1 of
    roles as srl-eval counts. Where one label is rare, macro_f1, matthews or (of two labels, the last one's) f1."""
    patience: Count | None = None
    """Stop after so many epochs without a better one. Unset: run all, since the rate's decay is planned for all."""


class ReportSection(Section):
    """What the report shows beside numbers."""

    mistakes: Annotated[int, Field(ge=0)] = 20
    """Worst mistakes shown with their texts. 0 keeps every text of the data out of the report."""


class TaskSection(Section):
    """One data set of several that share a prompt."""

    data: DataSection
    """Where its rows come from."""
    head: HeadSection | None = None
    """Its head. Unset: the recipe's."""
