"""Every recipe of the paper against the published hyper-parameters: run_script/*.sh of THUDM/P-tuning-v2 at b1520c9."""

from pathlib import Path
from typing import NamedTuple

import pytest

from prefixbank.model_store.task_prompt import TaskFamily
from prefixbank.trainer.readers.tables import Row
from prefixbank.trainer.readers.texts import text_example
from prefixbank.trainer.recipe import Recipe, load

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "recipes" / "paper"
CASED, UNCASED = "google-bert/bert-large-cased", "google-bert/bert-large-uncased"
ROBERTA = "FacebookAI/roberta-large"


class Script(NamedTuple):
    """What a script passes to run.py."""

    model: str
    batch: int
    rate: float
    length: int
    dropout: float
    epochs: int
    max_tokens: int
    seed: int


FREE = 512
"""Tags and roles ignore --max_seq_length: the model's 512 positions, of which the prompt takes its length."""
SCRIPTS = {
    "boolq_bert": Script(CASED, 32, 5e-3, 40, 0.1, 100, 128, 11),
    "boolq_roberta": Script(ROBERTA, 32, 7e-3, 8, 0.1, 100, 128, 11),
    "copa_bert": Script(CASED, 16, 1e-2, 16, 0.1, 80, 128, 44),
    "copa_roberta": Script(ROBERTA, 16, 9e-3, 8, 0.1, 120, 128, 11),
    "rte_bert": Script(CASED, 32, 1e-2, 20, 0.1, 60, 128, 11),
    "rte_roberta": Script(ROBERTA, 32, 5e-3, 128, 0.1, 100, 128, 11),
    "wic_bert": Script(CASED, 16, 1e-4, 20, 0.1, 80, 128, 44),
    "wic_roberta": Script(ROBERTA, 32, 1e-2, 8, 0.1, 50, 128, 11),
    "wsc_bert": Script(CASED, 16, 5e-3, 20, 0.1, 80, 128, 44),
    "wsc_roberta": Script(ROBERTA, 16, 1e-2, 8, 0.1, 10, 128, 44),
    "conll03_roberta": Script(ROBERTA, 16, 3e-2, 11, 0.1, 30, FREE, 11),
    "conll04_bert": Script(UNCASED, 32, 2e-2, 128, 0.2, 40, FREE, 11),
    "conll04_roberta": Script(ROBERTA, 32, 6e-2, 144, 0.1, 80, FREE, 11),
    "ontonotes_bert": Script(UNCASED, 16, 1e-2, 16, 0.1, 30, FREE, 11),
    "ontonotes_roberta": Script(ROBERTA, 16, 7e-3, 48, 0.1, 60, FREE, 14),
    "conll05_roberta": Script(ROBERTA, 16, 6e-3, 224, 0.1, 15, FREE, 11),
    "conll12_bert": Script(ROBERTA, 16, 5e-3, 128, 0.1, 45, FREE, 11),  # the script's own mistake
    "conll12_roberta": Script(ROBERTA, 32, 5e-3, 64, 0.1, 45, FREE, 11),
    "squad_roberta": Script(ROBERTA, 8, 5e-3, 16, 0.2, 30, 384, 11),
    "squad_v2_roberta": Script(ROBERTA, 8, 5e-3, 8, 0.2, 10, 384, 11),
}
SENTENCES = (TaskFamily.TEXT_CLASSIFICATION, TaskFamily.MULTIPLE_CHOICE)


WIC = {"word": "place", "sentence1": "Do you want to come over to my place?", "sentence2": "A nice place.", "label": 0}
WSC = {"text": "Mark told Pete many lies about himself.", "span1_text": "Mark", "span2_text": "himself", "label": 1}


def recipe(name: str) -> Recipe:
    return load(FOLDER / f"{name}.toml")


def texts(name: str, fields: dict[str, object]) -> tuple[str, ...]:
    """What a recipe makes of a row of SuperGLUE."""
    data = recipe(name).data
    assert data is not None
    return text_example(Row(Path("hub"), 1, fields), data, data.labels).texts


def test_every_script_has_a_recipe_and_every_recipe_a_script() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.toml")) == sorted(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recipe_has_its_scripts_numbers(name: str) -> None:
    one, script = recipe(name), SCRIPTS[name]
    taken = script.length if script.max_tokens == FREE else 0
    assert one.optimiser.prompt_rate == one.optimiser.head_rate
    assert script == Script(
        one.backbone,
        one.optimiser.batch_rows,
        one.optimiser.prompt_rate,
        one.prompt.length,
        one.prompt.dropout,
        one.optimiser.epochs,
        one.max_tokens + taken,
        one.seed,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recipe_does_what_all_scripts_do(name: str) -> None:
    one = recipe(name)
    prompt, optimiser = one.prompt, one.optimiser
    assert (one.method, one.dtype, one.head.kind, prompt.layers) == ("prompt", "float32", "linear", "all")
    assert (prompt.init, prompt.position_offset, prompt.dropout_per) == ("normal", "length", "row")
    assert (optimiser.warmup, optimiser.clip_norm, optimiser.weight_decay) == (0, 1, 0)
    assert optimiser.schedule == ("linear" if one.family in SENTENCES else "exponential")
    assert optimiser.gamma == 0.95


@pytest.mark.parametrize("name", SCRIPTS)
def test_one_dropout_acts_on_prompt_backbone_and_head_but_on_no_answers(name: str) -> None:
    one, share = recipe(name), SCRIPTS[name].dropout
    acts = one.optimiser.backbone_dropout
    assert acts is True if share == 0.1 else acts == share, "the backbones' own share is 0.1"
    assert one.head.dropout == (0 if one.family == TaskFamily.QUESTION_ANSWERING else share)


def test_only_wic_with_bert_trains_an_mlp() -> None:
    with_mlp = [name for name in SCRIPTS if recipe(name).prompt.parameterisation == "mlp"]
    assert (with_mlp, recipe("wic_bert").prompt.mlp_width) == (["wic_bert"], 512)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_test_split_is_reported_where_the_authors_had_one(name: str) -> None:
    one = recipe(name)
    assert one.data is not None
    assert one.data.validation is not None, "they never carved one"
    has_test = one.family in (TaskFamily.TOKEN_CLASSIFICATION, TaskFamily.SEMANTIC_ROLES)
    assert (one.data.test is not None) == has_test


def test_wic_is_put_as_a_question_to_roberta_and_as_two_marked_sentences_to_bert() -> None:
    question = "Does place have the same meaning in both sentences?"
    assert texts("wic_roberta", WIC) == (f"{WIC['sentence1']} {WIC['sentence2']} {question}",)
    assert texts("wic_bert", WIC) == (f"place: {WIC['sentence1']}", f"place: {WIC['sentence2']}")


@pytest.mark.parametrize("name", ["wsc_bert", "wsc_roberta"])
def test_wsc_names_the_pronoun_before_the_text(name: str) -> None:
    assert texts(name, WSC) == ("himself: Mark told Pete many lies about himself.", "Mark")
