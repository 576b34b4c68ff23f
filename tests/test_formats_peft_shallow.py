"""PEFT's prompts at the input: imported they answer as PEFT's own model, exported PEFT's model answers as we do."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.utils import logging as transformers_logging

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import BackboneError, BackboneMismatch, NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.exporter import export_prompt
from prefixbank.model_store.formats.foreign import Format
from prefixbank.model_store.formats.importer import Choices, import_prompt
from prefixbank.model_store.task_prompt import Pooler, Preprocessing
from tests.format_cases import PREFIX, SPANS, TEXT, WORDS, assert_same, exact_logits, random_ids
from tests.prompt_cases import same_prompt
from tests.serving_cases import random_prompt
from tests.shallow_cases import shallow, verbalized
from tests.test_formats_peft import POOLERS, Saved, edit_weights, save
from tests.tiny import WIDTH, tiny_backbone_folder, tiny_lm_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

peft = pytest.importorskip("peft", reason="PEFT is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
"""PEFT 0.21 asks transformers 5.23 by an old name."""

KINDS = {
    "PromptTuning": {},
    "PromptEncoder": {"encoder_hidden_size": 16},
    "MultitaskPromptTuning": {"num_tasks": 3, "num_ranks": 2},
}
LSTM = {"encoder_hidden_size": 16, "encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1}
AUTO = {TEXT: AutoModelForSequenceClassification, WORDS: AutoModelForTokenClassification}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    """Load a tiny backbone once; the ELECTRA among them is not factorised."""
    parent, loaded = tmp_path_factory.mktemp("backbones"), {}

    def load(architecture: str) -> Backbone:
        make = tiny_lm_folder if architecture == "electra" else tiny_backbone_folder
        if architecture not in loaded:
            loaded[architecture] = load_backbone(str(make(parent, architecture)))
        return loaded[architecture]

    return load


@pytest.fixture
def bert(load: Callable[[str], Backbone]) -> Backbone:
    return load("bert")


@torch.no_grad()
def text_logits(saved: Saved, family: Any, row: list[int], task: int | None = None) -> Tensor:
    """What PEFT's model answers: of a row's tokens, those of the text."""
    tasks = {} if task is None else {"task_ids": torch.tensor([task])}
    logits = saved.model.double()(torch.tensor([row]), attention_mask=torch.ones(1, len(row)), **tasks).logits[0]
    return logits[PREFIX:] if family is WORDS else logits


@pytest.mark.parametrize("family", AUTO)
@pytest.mark.parametrize("architecture", POOLERS)
def test_prompt_tuning_answers_as_peft(
    load: Callable[[str], Backbone], tmp_path: Path, architecture: str, family: Any
) -> None:
    backbone = load(architecture)
    saved = save(backbone, tmp_path / "source", family, "PromptTuning")
    imported = import_prompt(saved.folder, backbone)
    prompt, rows = imported.prompt, random_ids()
    assert_same(exact_logits(prompt, backbone, rows), [text_logits(saved, family, row) for row in rows])
    assert imported.method == "PEFT PROMPT_TUNING"
    assert (prompt.layers, prompt.shallow_length, prompt.position_offset) == ((), PREFIX, PREFIX)
    assert prompt.head.spec.pools == ("prompt" if family is TEXT else "text")


@pytest.mark.parametrize("fields", [KINDS["PromptEncoder"], LSTM], ids=["mlp", "lstm"])
def test_p_tuning_is_its_encoders_output(bert: Backbone, tmp_path: Path, fields: dict[str, Any]) -> None:
    saved = save(bert, tmp_path / "source", TEXT, "PromptEncoder", **fields)
    imported, rows = import_prompt(saved.folder, bert), random_ids()
    assert imported.method == "PEFT P_TUNING"
    assert_same(exact_logits(imported.prompt, bert, rows), [text_logits(saved, TEXT, row) for row in rows])


def multitask(bert: Backbone, folder: Path, **fields: Any) -> Saved:
    """A saved multitask prompt whose tasks differ far more than PEFT's start makes them."""
    saved = save(bert, folder, TEXT, "MultitaskPromptTuning", **KINDS["MultitaskPromptTuning"] | fields)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in saved.model.named_parameters():
            if "prefix_task" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    saved.model.save_pretrained(folder)
    return saved


@pytest.mark.parametrize("task", [0, 2])
def test_a_multitask_prompt_is_folded_for_the_task_that_is_chosen(bert: Backbone, tmp_path: Path, task: int) -> None:
    saved, rows = multitask(bert, tmp_path / "source"), random_ids()
    prompt = import_prompt(saved.folder, bert, Choices(source_task=task)).prompt
    assert_same(exact_logits(prompt, bert, rows), [text_logits(saved, TEXT, row, task) for row in rows])
    assert prompt.provenance.recipe["task"] == task


def test_a_prompt_of_several_tasks_is_not_guessed_about(bert: Backbone, tmp_path: Path) -> None:
    folder = multitask(bert, tmp_path / "source").folder
    with pytest.raises(NotRepresentable, match=r"prompts of 3 tasks, .* choose with --source-task 0 to 2"):
        import_prompt(folder, bert)
    with pytest.raises(SourceInvalid, match="task 3 was chosen; the source holds tasks 0 to 2"):
        import_prompt(folder, bert, Choices(source_task=3))


def test_one_task_needs_no_choice(bert: Backbone, tmp_path: Path) -> None:
    saved, rows = multitask(bert, tmp_path / "source", num_tasks=1), random_ids()
    prompt = import_prompt(saved.folder, bert).prompt
    assert_same(exact_logits(prompt, bert, rows), [text_logits(saved, TEXT, row, 0) for row in rows])


@pytest.mark.parametrize("kind", ["PromptTuning", "PrefixTuning"])
def test_a_task_is_chosen_only_where_there_are_several(bert: Backbone, tmp_path: Path, kind: str) -> None:
    saved = save(bert, tmp_path / "source", TEXT, kind)
    with pytest.raises(SourceInvalid, match=r"task 1 was chosen, and a source of PEFT .* holds one"):
        import_prompt(saved.folder, bert, Choices(source_task=1))


@pytest.mark.parametrize("changes", [{"prefix_task_cols": torch.zeros(3, PREFIX + 1, 2)}, {"prefix_task_rows": None}])
def test_a_malformed_multitask_prompt_is_refused(
    bert: Backbone, tmp_path: Path, changes: dict[str, Tensor | None]
) -> None:
    folder = multitask(bert, tmp_path / "source").folder
    edit_weights(folder, **changes)
    with pytest.raises(SourceInvalid, match=r"do not follow|no 'prefix_task_rows'"):
        import_prompt(folder, bert, Choices(source_task=0))


@pytest.mark.parametrize("kind", KINDS)
def test_question_answering_at_the_input_is_refused(bert: Backbone, tmp_path: Path, kind: str) -> None:
    folder = save(bert, tmp_path / "source", SPANS, kind, **KINDS[kind]).folder
    with pytest.raises(NotRepresentable, match="positions counted from the first virtual token"):
        import_prompt(folder, bert, Choices(source_task=0) if kind.startswith("Multi") else None)


@pytest.mark.parametrize(
    ("embeddings", "error", "said"),
    [
        (torch.zeros(PREFIX, WIDTH + 8), BackboneMismatch, r"takes \[P, 32\]"),
        (torch.zeros(PREFIX, WIDTH, dtype=torch.int64), SourceInvalid, "holds torch.int64"),
        (torch.zeros(PREFIX - 1, WIDTH), SourceInvalid, "num_virtual_tokens is 6"),
        (torch.zeros(0, WIDTH), SourceInvalid, "num_virtual_tokens is 6"),
    ],
)
def test_another_prompt_than_the_config_says_is_refused(
    bert: Backbone, tmp_path: Path, embeddings: Tensor, error: type[Exception], said: str
) -> None:
    folder = save(bert, tmp_path / "source", TEXT, "PromptTuning").folder
    edit_weights(folder, prompt_embeddings=embeddings)
    with pytest.raises(error, match=said):
        import_prompt(folder, bert)


def test_a_backbone_with_factorised_embeddings_takes_none(
    load: Callable[[str], Backbone], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save(load("electra"), tmp_path / "source", WORDS, "PromptTuning").folder
    factorised = load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("factorised"), "electra")))
    with pytest.raises(BackboneError, match="neither shallow prompts nor verbalizer heads"):
        import_prompt(folder, factorised)


EXPORTED = [
    ("bert", TEXT, Pooler.BACKBONE, None),
    ("bert", WORDS, Pooler.NONE, None),
    ("roberta", TEXT, Pooler.OWN, "tanh"),
    ("electra", TEXT, Pooler.OWN, "gelu"),
    ("distilbert", WORDS, Pooler.NONE, None),
]


def make(backbone: Backbone, family: Any = TEXT, pooler: Pooler = Pooler.BACKBONE, **fields: Any) -> TaskPrompt:
    """A shallow prompt that PEFT's model would answer as."""
    spec = {"pools": "prompt" if family is TEXT else "text"} | fields.pop("spec", {})
    prompt = random_prompt(backbone, 0, seed=7, family=family, pooler=pooler, notes="kept")
    prompt = shallow(prompt, PREFIX, fields.pop("offset", None), **spec)
    return dataclasses.replace(prompt, preprocessing=Preprocessing(max_tokens=99), metrics={"accuracy": 0.5}, **fields)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("architecture", "family", "pooler", "activation"), EXPORTED)
def test_what_is_exported_is_imported_again(
    load: Callable[[str], Backbone],
    tmp_path: Path,
    architecture: str,
    family: Any,
    pooler: Pooler,
    activation: str | None,
    dtype: torch.dtype,
) -> None:
    prompt = make(load(architecture), family, pooler, spec={"activation": activation})
    assert prompt.shallow_PM is not None
    prompt = dataclasses.replace(prompt, shallow_PM=prompt.shallow_PM.to(dtype))
    export_prompt(prompt, Format.PEFT, tmp_path / "out")
    assert same_prompt(import_prompt(tmp_path / "out", load(architecture)).prompt, prompt)


@pytest.mark.parametrize(("architecture", "family", "pooler", "activation"), EXPORTED)
def test_peft_answers_as_we_do(
    load: Callable[[str], Backbone],
    tmp_path: Path,
    architecture: str,
    family: Any,
    pooler: Pooler,
    activation: str | None,
) -> None:
    backbone, rows = load(architecture), random_ids()
    prompt = make(backbone, family, pooler, spec={"activation": activation})
    export_prompt(prompt, Format.PEFT, tmp_path / "out")
    transformers_logging.set_verbosity_error()
    model = AUTO[family].from_pretrained(backbone.ref.name, num_labels=len(prompt.labels))
    tuned = Saved(peft.PeftModel.from_pretrained(model, tmp_path / "out").eval(), tmp_path / "out")
    assert_same(exact_logits(prompt, backbone, rows), [text_logits(tuned, family, row) for row in rows])


@pytest.mark.parametrize(
    ("target", "fields", "said"),
    [
        (Format.PEFT, {"offset": 0}, "the position offset is 0, and PEFT shifts positions by P, 6 here"),
        (Format.PEFT, {"spec": {"pools": "text"}}, "the head reads the text's first token, and PEFT the prompt's"),
        (Format.PEFT, {"family": SPANS, "pooler": Pooler.NONE}, "positions counted from the first virtual token"),
        (Format.PTUNING_V2, {}, "the prompt is shallow, and P-tuning-v2's own embed their input twice"),
    ],
)
def test_shallow_prompts_that_it_would_answer_otherwise_are_refused(
    bert: Backbone, tmp_path: Path, target: Format, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(NotRepresentable, match=said):
        export_prompt(make(bert, **fields), target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_architecture_whose_classifiers_are_others_is_refused(
    load: Callable[[str], Backbone], tmp_path: Path
) -> None:
    with pytest.raises(NotRepresentable, match="no prompt tuning of modernbert; it has bert, "):
        export_prompt(make(load("modernbert"), WORDS, Pooler.NONE), Format.PEFT, tmp_path / "out")


@pytest.mark.parametrize("target", [Format.PEFT, Format.PTUNING_V2])
def test_words_at_masks_are_not_exported(bert: Backbone, tmp_path: Path, target: Format) -> None:
    prompt = verbalized(bert, random_prompt(bert, PREFIX, seed=1), Pooler.NONE)
    with pytest.raises(NotRepresentable, match="scores words at masks"):
        export_prompt(prompt, target, tmp_path / "out")
