"""Questions, choices and roles from other tools: prompts that serve, prepared as their authors prepared them."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from prefixbank.cli import main
from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable, SettingsMismatch, SourceInvalid
from prefixbank.model_store.formats.exporter import export_prompt
from prefixbank.model_store.formats.foreign import Format
from prefixbank.model_store.formats.importer import Choices, import_prompt
from prefixbank.model_store.formats.preparation import preprocessing_for
from prefixbank.model_store.store import PromptStore
from prefixbank.model_store.task_prompt import AnsweringSpec, RolesSpec, TaskFamily
from prefixbank.model_store.tasks import task_module
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.serving.predict import Predictor
from tests.family_prompts import ROLE_LABELS, family_input, family_prompt, family_tasks, same
from tests.format_cases import CHOICES, SPANS, TEXT, WORDS, Published, edit_json
from tests.prompt_cases import same_prompt
from tests.tiny import POSITIONS, SENTENCES, tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

ROLES = TaskFamily.SEMANTIC_ROLES
HOME = Address("acme", "home")
PREFIX = 6
CLASSES = {SPANS: 2, CHOICES: 1, WORDS: len(ROLE_LABELS), TEXT: 3}
AS_WORDS = {"id2label": {str(number): label for number, label in enumerate(ROLE_LABELS)}}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")))


def published(backbone: Backbone, family: TaskFamily) -> Published:
    return Published(backbone.ref.name, family, CLASSES[family])


def imported(backbone: Backbone, folder: Path, family: TaskFamily, **said: Any) -> TaskPrompt:
    """The prompt of a P-tuning-v2 checkpoint; roles lie in one of token classification."""
    carrier = WORDS if family is ROLES else family
    config = AS_WORDS if carrier is WORDS else {}
    source = published(backbone, carrier).save(folder, **config)
    choices = Choices(family=ROLES if family is ROLES else None, **said)
    return import_prompt(source, backbone, choices).prompt


def test_questions_are_prepared_as_published(backbone: Backbone, tmp_path: Path) -> None:
    prompt = imported(backbone, tmp_path / "source", SPANS)
    prep = prompt.preprocessing
    assert (prep.max_tokens, prep.pair, prep.text_fields) == (384, True, ("question", "context"))
    assert prep.answering == AnsweringSpec(stride=128, num_best=20, max_answer_tokens=30, null_threshold=None)
    assert not prep.add_prefix_space


def test_windows_are_no_longer_than_the_positions_that_are_left(backbone: Backbone, tmp_path: Path) -> None:
    source = published(backbone, SPANS).save(tmp_path / "source")
    assert import_prompt(source, backbone, Choices(max_tokens=400)).prompt.preprocessing.max_tokens == 400
    for offset, longest in ((0, 384), (128, 384), (200, 312)):
        assert preprocessing_for(SPANS, offset, None, backbone, Choices()).max_tokens == longest


def test_the_user_says_whether_there_are_questions_without_an_answer(backbone: Backbone, tmp_path: Path) -> None:
    prompt = imported(backbone, tmp_path / "source", SPANS, null_threshold=0.0)
    assert prompt.preprocessing.answering == AnsweringSpec(null_threshold=0.0)
    with pytest.raises(SettingsMismatch, match="answering belongs to question-answering"):
        imported(backbone, tmp_path / "other", TEXT, null_threshold=0.0)


def test_choices_take_a_premise_and_a_choice(backbone: Backbone, tmp_path: Path) -> None:
    prep = imported(backbone, tmp_path / "source", CHOICES).preprocessing
    assert (prep.max_tokens, prep.pair, prep.text_fields) == (POSITIONS - PREFIX, True, ("premise", "choice"))
    assert prep.answering is None


@pytest.mark.parametrize("family", [SPANS, CHOICES])
def test_two_texts_cannot_be_one(backbone: Backbone, tmp_path: Path, family: TaskFamily) -> None:
    with pytest.raises(NotRepresentable, match="takes two texts, and one was said"):
        imported(backbone, tmp_path / "source", family, pair=False)


def test_roles_are_classes_of_tokens_until_they_are_named(backbone: Backbone, tmp_path: Path) -> None:
    source = published(backbone, WORDS).save(tmp_path / "source", **AS_WORDS)
    assert import_prompt(source, backbone).prompt.family is WORDS
    prompt = import_prompt(source, backbone, Choices(family=ROLES)).prompt
    assert (prompt.family, prompt.labels) == (ROLES, ROLE_LABELS)
    assert (prompt.preprocessing.roles, prompt.preprocessing.add_prefix_space) == (RolesSpec(), True)


@pytest.mark.parametrize("family", [SPANS, CHOICES, ROLES])
def test_an_imported_prompt_is_served_with_the_published_models_answers(
    backbone: Backbone, tmp_path: Path, family: TaskFamily
) -> None:
    """The published model's own logits, decoded, against a server's answer; long texts in several windows."""
    said = {"max_tokens": 40} if family is SPANS else {}
    prompt = imported(backbone, tmp_path / "source", family, **said)
    model = published(backbone, WORDS if family is ROLES else family).double()
    module, prep = task_module(family, prompt.preprocessing), prompt.preprocessing
    asked = module.parse_parameters({})
    inputs = family_input(prompt, " ".join(SENTENCES))
    (item,) = module.parse_inputs(inputs, prep, asked).items
    rows = module.encode_rows(TextTokenizer(backbone.tokenizer), prep, item, asked, max_tokens=prep.max_tokens)
    assert len(rows) > 1
    model.base.embeddings.token_type_embeddings.weight.data[1] = model.base.embeddings.token_type_embeddings.weight[0]
    logits = [model.logits(row.token_ids.tolist()).float().numpy() for row in rows]
    wanted = module.arrange([module.decode(logits, rows, prompt.labels, asked)], asked, batched=False)
    with Predictor(without_segments(backbone), {HOME: prompt}) as predictor:
        found = predictor.answer(HOME, inputs).value
    assert same(found, wanted)


def without_segments(backbone: Backbone) -> Backbone:
    """The backbone with one type embedding for both texts, as the restated model is asked without segments."""
    model = copy.deepcopy(backbone.model)
    types = model.embeddings.token_type_embeddings.weight
    types.data[1] = types.data[0]
    return dataclasses.replace(backbone, model=model)


@pytest.mark.parametrize("target", [Format.PEFT, Format.PTUNING_V2])
def test_settings_survive_the_journey(backbone: Backbone, tmp_path: Path, target: Format) -> None:
    tasks = {
        address: prompt
        for address, prompt in family_tasks(backbone).items()
        if prompt.layers and not (target is Format.PEFT and prompt.family in (CHOICES, SPANS))
    }
    assert {prompt.family for prompt in tasks.values()} >= ({ROLES} if target is Format.PEFT else {SPANS, ROLES})
    for address, prompt in tasks.items():
        export_prompt(prompt, target, tmp_path / address.name)
        again = import_prompt(tmp_path / address.name, backbone).prompt
        assert same_prompt(again, prompt)


@pytest.mark.parametrize("target", [Format.PEFT, Format.PTUNING_V2])
def test_without_the_sidecar_roles_must_be_named(backbone: Backbone, tmp_path: Path, target: Format) -> None:
    prompt = family_prompt(backbone, ROLES, PREFIX, seed=3, roles=RolesSpec(separator="|"))
    export_prompt(prompt, target, tmp_path / "out")
    (tmp_path / "out" / "prefixbank.json").unlink()
    assert import_prompt(tmp_path / "out", backbone).prompt.family is WORDS
    named = import_prompt(tmp_path / "out", backbone, Choices(family=ROLES, labels=ROLE_LABELS)).prompt
    assert (named.family, named.labels, named.preprocessing.roles) == (ROLES, ROLE_LABELS, RolesSpec())


def test_a_sidecar_of_longer_rows_than_the_backbone_has_positions_for_is_refused(
    backbone: Backbone, tmp_path: Path
) -> None:
    export_prompt(family_prompt(backbone, ROLES, PREFIX, seed=3), Format.PTUNING_V2, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "prefixbank.json").read_text())["preprocessing"]
    edit_json(tmp_path / "out" / "prefixbank.json", preprocessing=told | {"max_tokens": 5000})
    with pytest.raises(BackboneMismatch, match="5000 are wanted"):
        import_prompt(tmp_path / "out", backbone)


def test_a_sidecar_of_another_family_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    export_prompt(family_prompt(backbone, ROLES, PREFIX, seed=3), Format.PTUNING_V2, tmp_path / "out")
    edit_json(tmp_path / "out" / "prefixbank.json", family="question-answering")
    with pytest.raises(SourceInvalid, match="sidecar says question-answering; the source's own files say token"):
        import_prompt(tmp_path / "out", backbone)


def test_the_command_takes_in_questions_and_serves_them(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, store = published(backbone, SPANS).save(tmp_path / "source"), tmp_path / "store"
    where = ["--backbone", backbone.ref.name, "--store", str(store)]
    options = ["--task", "acme/squad", "--null-threshold", "0", "--promote"]
    assert main(["import", str(source), *where, *options]) == 0
    told = capsys.readouterr()
    assert "question-answering with 2 classes" in told.err
    address = Address("acme", "squad")
    prompt = PromptStore(store).load(address, told.out.split()[0])
    assert prompt.preprocessing.answering == AnsweringSpec(null_threshold=0.0)
    lines = tmp_path / "lines.jsonl"
    lines.write_text(json.dumps({"question": "who flew to Oslo?", "context": " ".join(SENTENCES * 3)}))
    assert main(["predict", "acme/squad", *where, "--input", str(lines)]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"score", "start", "end", "answer"}
