"""P-tuning-v2 checkpoints: the imported prompt answers as the published model; what is not that model is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import BackboneMismatch, LabelsMismatch, NotRepresentable, SourceInvalid
from prefixbank.model_store.formats import ptuning_v2
from prefixbank.model_store.formats.importer import Choices, import_prompt
from prefixbank.model_store.task_prompt import BackboneRef, Pooler
from tests.format_cases import (
    CHOICES,
    PREFIX,
    SPANS,
    TEXT,
    WORDS,
    Published,
    assert_same,
    edit_json,
    exact_logits,
    random_ids,
    save_tensors,
)
from tests.prompt_cases import same_prompt
from tests.tiny import LAYERS, WIDTH, tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskFamily

CLASSES = {TEXT: 3, WORDS: 5, SPANS: 2, CHOICES: 1}
FLAT = 2 * LAYERS * WIDTH


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture(scope="module")
def bert(folders: Path) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(folders, "bert")))


@pytest.fixture(scope="module")
def roberta(folders: Path) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(folders, "roberta")))


def published(backbone: Backbone, family: TaskFamily = TEXT, projected: int | None = None) -> Published:
    torch.manual_seed(0)  # for the pooler that RoBERTa's files lack
    return Published(backbone.ref.name, family, CLASSES[family], projected)


def source(backbone: Backbone, folder: Path, family: TaskFamily = TEXT) -> Path:
    return published(backbone, family).save(folder)


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of the checkpoint by name (`__` for a dot); None removes."""
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("projected", [None, 7], ids=["plain", "projected"])
def test_answers_are_those_of_the_published_model(
    folders: Path, tmp_path: Path, architecture: str, family: TaskFamily, projected: int | None
) -> None:
    backbone = load_backbone(str(tiny_backbone_folder(folders, architecture)))
    model = published(backbone, family, projected)
    prompt = import_prompt(model.save(tmp_path / "source"), backbone).prompt
    rows = random_ids()
    wanted = [model.double().logits(row) for row in rows]
    assert_same(exact_logits(prompt, backbone, rows), wanted)
    assert (prompt.family, prompt.position_offset, prompt.prefix_length) == (family, PREFIX, PREFIX)


def test_positions_are_shifted(bert: Backbone, tmp_path: Path) -> None:
    """The test above would not notice an offset that changes nothing."""
    prompt = import_prompt(source(bert, tmp_path / "source"), bert).prompt
    unshifted = dataclasses.replace(prompt, position_offset=0)
    [one], [other] = (exact_logits(each, bert, random_ids()[:1]) for each in (prompt, unshifted))
    assert (one - other).abs().max() > 1e-2


def test_a_roberta_classifier_brings_its_own_pooler(roberta: Backbone, tmp_path: Path) -> None:
    """It reads a frozen pooler that the hub's files of today lack: each load would make another."""
    model = published(roberta)
    head = import_prompt(model.save(tmp_path / "source"), roberta).prompt.head
    assert (head.spec.pooler, head.spec.activation) == (Pooler.OWN, "tanh")
    assert torch.equal(head.pooler_weight_MM, model.base.pooler.dense.weight)


def test_berts_pooler_is_the_backbones_unless_it_differs(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    assert import_prompt(folder, bert).prompt.head.spec.pooler is Pooler.BACKBONE
    edit_tensors(folder, bert__pooler__dense__bias=torch.ones(WIDTH))
    head = import_prompt(folder, bert).prompt.head
    assert head.spec.pooler is Pooler.OWN
    assert torch.equal(head.pooler_bias_M, torch.ones(WIDTH))


@pytest.mark.parametrize("file", ["model.safetensors", "shards.bin", "shards.safetensors"])
def test_every_kind_of_file_gives_the_same_prompt(bert: Backbone, tmp_path: Path, file: str) -> None:
    model = published(bert)
    wanted = import_prompt(model.save(tmp_path / "bin"), bert).prompt
    folder = tmp_path / "other"
    if file.startswith("shards"):
        save_shards(model, folder, file.partition(".")[2])
    else:
        model.save(folder, file=file)
    assert same_prompt(import_prompt(folder, bert).prompt, wanted)


def save_shards(model: Published, folder: Path, suffix: str) -> None:
    name = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}[suffix]
    model.save(folder, file=name)
    (folder / name).unlink()
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for number, (key, tensor) in enumerate(model.state_dict().items()):
        parts[number % 2][key] = tensor
    for number, part in enumerate(parts):
        save_tensors(part, folder / f"part-{number}.{suffix}")
    weight_map = {key: f"part-{number}.{suffix}" for number, part in enumerate(parts) for key in part}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_importing_twice_is_one_revision(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    assert same_prompt(import_prompt(folder, bert).prompt, import_prompt(folder, bert).prompt)


def test_labels_come_from_the_config_unless_chosen(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    assert import_prompt(folder, bert).prompt.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    edit_json(folder / "config.json", id2label={"0": "no", "2": "yes", "1": "perhaps"})
    assert import_prompt(folder, bert).prompt.labels == ("no", "perhaps", "yes")
    assert import_prompt(folder, bert, Choices(labels=("a", "b", "c"))).prompt.labels == ("a", "b", "c")
    with pytest.raises(LabelsMismatch, match="2 labels were given; the head has 3"):
        import_prompt(folder, bert, Choices(labels=("a", "b")))


def test_preprocessing_is_what_the_positions_leave_unless_chosen(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    prep = import_prompt(folder, bert).prompt.preprocessing
    assert (prep.max_tokens, prep.pair, prep.add_prefix_space) == (512 - PREFIX, False, False)
    chosen = Choices(max_tokens=99, pair=True, add_prefix_space=True)
    prep = import_prompt(folder, bert, chosen).prompt.preprocessing
    assert (prep.max_tokens, prep.pair, prep.add_prefix_space) == (99, True, True)
    with pytest.raises(BackboneMismatch, match="6 of 512 positions go to the prefix; 506 are left, and 507 are wanted"):
        import_prompt(folder, bert, Choices(max_tokens=507))


def test_words_get_a_space_before_as_published(roberta: Backbone, tmp_path: Path) -> None:
    prompt = import_prompt(source(roberta, tmp_path / "source", WORDS), roberta).prompt
    assert prompt.preprocessing.add_prefix_space


def test_the_evidence_says_what_was_compared(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    count = len(bert.model.state_dict())
    assert import_prompt(folder, bert).backbone_evidence.startswith(
        f"the source's {count} encoder tensors are those of"
    )


def test_a_checkpoint_in_half_precision_holds_the_same_backbone(bert: Backbone, tmp_path: Path) -> None:
    folder = published(bert).half().save(tmp_path / "source")
    prompt = import_prompt(folder, bert).prompt
    assert prompt.kv_N2HPD.dtype is torch.float16
    assert prompt.head.weight_CM.dtype is torch.float32
    assert prompt.head.spec.pooler is Pooler.BACKBONE


def test_counters_saved_by_old_versions_are_passed_over(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    edit_tensors(folder, bert__embeddings__position_ids=torch.arange(512)[None])
    assert import_prompt(folder, bert).prompt.layers == (0, 1, 2)


def test_another_backbone_is_refused(bert: Backbone, folders: Path, tmp_path: Path) -> None:
    other = load_backbone(str(tiny_backbone_folder(folders, "bert", seed=1)))
    with pytest.raises(BackboneMismatch, match=r"of the encoder differ .* made for another backbone"):
        import_prompt(source(bert, tmp_path / "source"), other)


def test_one_changed_number_of_the_encoder_is_refused(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    bias = bert.model.state_dict()["encoder.layer.1.output.dense.bias"].clone()
    bias[3] += 1e-6
    edit_tensors(folder, bert__encoder__layer__1__output__dense__bias=bias)
    with pytest.raises(BackboneMismatch, match=r"1 of \d+ tensors .*'encoder.layer.1.output.dense.bias'"):
        import_prompt(folder, bert)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("bert__encoder__layer__1__output__dense__bias", None),
        ("bert__encoder__layer__9__output__dense__bias", torch.zeros(WIDTH)),
        ("bert__encoder__layer__1__output__dense__bias", torch.zeros(WIDTH + 1)),
        ("prefix_encoder__embedding__weight", torch.zeros(PREFIX, FLAT + WIDTH)),
        ("prefix_encoder__embedding__weight", torch.zeros(PREFIX, 2, WIDTH)),
        ("classifier__weight", torch.zeros(3, WIDTH + 1)),
        ("bert__pooler__dense__weight", torch.zeros(WIDTH, WIDTH + 1)),
    ],
)
def test_another_shape_is_another_backbone(
    bert: Backbone, tmp_path: Path, name: str, tensor: torch.Tensor | None
) -> None:
    folder = source(bert, tmp_path / "source")
    edit_tensors(folder, **{name: tensor})
    with pytest.raises(BackboneMismatch):
        import_prompt(folder, bert)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prefix_encoder__trans__0__weight": torch.zeros(7, WIDTH)}, "no 'prefix_encoder.trans.0.bias'"),
        ({"classifier__weight": None}, "no 'classifier.weight'"),
        ({"classifier__bias": torch.zeros(4)}, "not a matrix and its bias"),
        ({"classifier__bias": torch.zeros(3, dtype=torch.int64)}, "holds torch.int64"),
        ({"prefix_encoder__embedding__weight": torch.zeros(PREFIX, FLAT, dtype=torch.int8)}, "holds torch.int8"),
        ({"prefix_encoder__embedding__weight": torch.zeros(PREFIX + 1, FLAT)}, "pre_seq_len is 6"),
    ],
)
def test_a_malformed_checkpoint_is_refused(
    bert: Backbone, tmp_path: Path, changes: dict[str, torch.Tensor | None], said: str
) -> None:
    folder = source(bert, tmp_path / "source")
    edit_tensors(folder, **changes)
    with pytest.raises(SourceInvalid, match=said):
        import_prompt(folder, bert)


def test_a_projection_that_does_not_fit_is_refused(bert: Backbone, tmp_path: Path) -> None:
    folder = published(bert, TEXT, 7).save(tmp_path / "source")
    edit_tensors(folder, prefix_encoder__trans__2__weight=torch.zeros(FLAT, 8))
    with pytest.raises(SourceInvalid, match="do not follow from each other"):
        import_prompt(folder, bert)


def test_a_projection_that_is_promised_and_absent_is_refused(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    edit_json(folder / "config.json", prefix_projection=True)
    with pytest.raises(SourceInvalid, match="prefix_projection is true"):
        import_prompt(folder, bert)


def test_what_else_was_trained_is_not_left_out(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    edit_tensors(folder, gate__weight=torch.zeros(3))
    with pytest.raises(NotRepresentable, match=r"also trains 'gate\.weight'"):
        import_prompt(folder, bert)


def test_the_shallow_baseline_is_refused(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    edit_tensors(folder, prefix_encoder__embedding__weight=None, prefix_encoder__weight=torch.zeros(PREFIX, WIDTH))
    with pytest.raises(NotRepresentable, match="--prompt"):
        import_prompt(folder, bert)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_answers_that_no_family_gives_are_refused(bert: Backbone, tmp_path: Path, problem: str) -> None:
    folder = source(bert, tmp_path / "source")
    edit_json(folder / "config.json", problem_type=problem)
    with pytest.raises(NotRepresentable, match=problem):
        import_prompt(folder, bert)


def test_one_output_is_a_regression(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    edit_tensors(folder, classifier__weight=torch.zeros(1, WIDTH), classifier__bias=torch.zeros(1))
    with pytest.raises(NotRepresentable, match="a regression"):
        import_prompt(folder, bert)


def test_another_architecture_is_refused(bert: Backbone, roberta: Backbone, tmp_path: Path) -> None:
    with pytest.raises(BackboneMismatch, match="is of a 'bert'; the backbone is a 'roberta'"):
        import_prompt(source(bert, tmp_path / "source"), roberta)


def test_an_architecture_that_it_never_prompted_is_refused(bert: Backbone, folders: Path, tmp_path: Path) -> None:
    electra = load_backbone(str(tiny_backbone_folder(folders, "electra")))
    with pytest.raises(NotRepresentable, match="no models of 'electra'"):
        import_prompt(source(bert, tmp_path / "source"), electra)


def test_without_a_config_the_family_must_be_said(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source", WORDS)
    (folder / "config.json").unlink()
    with pytest.raises(SourceInvalid, match="say it with --family"):
        import_prompt(folder, bert)
    assert import_prompt(folder, bert, Choices(family=WORDS)).prompt.family is WORDS


def test_another_family_than_the_sources_is_refused(bert: Backbone, tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="--family says text-classification; the source's own files say token"):
        import_prompt(source(bert, tmp_path / "source", WORDS), bert, Choices(family=TEXT))


def test_the_name_that_configs_write_is_kept(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source")
    edit_json(folder / "config.json", _name_or_path="bert-large-cased")
    assert import_prompt(folder, bert).prompt.provenance.recipe["made_for"] == "bert-large-cased"


def test_spans_are_told_by_their_outputs(bert: Backbone, tmp_path: Path) -> None:
    folder = source(bert, tmp_path / "source", SPANS)
    (folder / "config.json").unlink()
    prompt = import_prompt(folder, bert).prompt
    assert (prompt.family, prompt.labels) == (SPANS, ("start", "end"))


def test_deberta_trains_its_pooler(tmp_path: Path) -> None:
    """Read without a backbone: that DeBERTa is served is another part's concern."""
    ref = BackboneRef(
        fingerprint="ab" * 32, architecture="deberta", num_layers=LAYERS, num_heads=4, head_dim=8, width=WIDTH
    )
    tensors = {
        "prefix_encoder.embedding.weight": torch.randn(PREFIX, FLAT),
        "classifier.weight": torch.randn(3, WIDTH),
        "classifier.bias": torch.randn(3),
        "pooler.dense.weight": torch.randn(WIDTH, WIDTH),
        "pooler.dense.bias": torch.randn(WIDTH),
        "deberta.encoder.layer.0.attention.self.q_bias": torch.randn(WIDTH),
    }
    save_tensors(tensors, tmp_path / "pytorch_model.bin")
    config = {"architectures": ["DebertaPrefixForSequenceClassification"], "model_type": "deberta"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    foreign = ptuning_v2.read(tmp_path, ref)
    assert foreign.head.pooler is not None
    assert getattr(foreign.head.pooler, "activation", None) == "gelu"
    assert list(foreign.frozen) == ["encoder.layer.0.attention.self.q_bias"]
    edit_json(tmp_path / "config.json", pooler_hidden_act="swish")
    with pytest.raises(NotRepresentable, match="swish"):
        ptuning_v2.read(tmp_path, ref)
