"""Sources whose parts contradict each other or the backbone: refused by name, never half of them believed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import (
    BackboneMismatch,
    FormatError,
    LabelsMismatch,
    NotRepresentable,
    SourceInvalid,
)
from prefixbank.model_store.formats.exporter import export_prompt
from prefixbank.model_store.formats.foreign import Format
from prefixbank.model_store.formats.importer import Choices, import_prompt
from prefixbank.model_store.task_prompt import Pooler
from tests.format_cases import PREFIX, SPANS, TEXT, Published, edit_json, save_tensors
from tests.serving_cases import random_prompt
from tests.tiny import POSITIONS, tiny_backbone_folder

if TYPE_CHECKING:
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt

ADAPTERS = Path(__file__).parent / "golden" / "adapters"
POOL = "bert.prefix_tuning.prefix_tunings.task.self_prefix.control_trans"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("backbones"), "bert")))


@pytest.fixture(scope="module")
def adapted() -> Backbone:
    return load_backbone(str(ADAPTERS / "bert"))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ADAPTERS / "saved" / "bert-flat", tmp_path / "bert-flat"))


def published(backbone: Backbone, family: Any = TEXT, projected: int | None = None) -> Published:
    return Published(backbone.ref.name, family, 2 if family is SPANS else 3, projected)


def prompt_of(backbone: Backbone) -> TaskPrompt:
    return random_prompt(backbone, PREFIX, seed=7, pooler=Pooler.BACKBONE, num_labels=3)


def bare(source: Path) -> Path:
    """The folder without the encoder's tensors, as an export writes it."""
    path = source / "pytorch_model.bin"
    kept = {n: t for n, t in torch.load(path, weights_only=True).items() if n.startswith(("prefix_enc", "classifier"))}
    save_tensors(kept, path)
    return source


@pytest.mark.parametrize("whole", [True, False], ids=["with its encoder", "alone"])
@pytest.mark.parametrize(
    "said",
    [
        {"num_attention_heads": 8},
        {"hidden_size": 64},
        {"hidden_act": "relu"},
        {"layer_norm_eps": 0.1},
        {"position_embedding_type": "relative_key"},
    ],
    ids=str,
)
def test_a_config_of_another_encoder_is_refused(
    bert: Backbone, tmp_path: Path, said: dict[str, Any], *, whole: bool
) -> None:
    source = published(bert).save(tmp_path / "source", **said)
    with pytest.raises(BackboneMismatch, match=rf"{next(iter(said))} is .* in the source's config"):
        import_prompt(source if whole else bare(source), bert)


def test_a_config_that_says_what_the_backbone_is_is_fine(bert: Backbone, tmp_path: Path) -> None:
    said = {
        "num_attention_heads": bert.ref.num_heads,
        "hidden_act": bert.model.config.hidden_act,
        "_name_or_path": None,
    }
    source = published(bert).save(tmp_path / "source", **said)
    assert import_prompt(bare(source), bert).prompt.prefix_length == PREFIX


def test_a_prefix_alone_is_of_the_architecture_that_its_config_names(tmp_path: Path) -> None:
    roberta = load_backbone(str(tiny_backbone_folder(tmp_path, "roberta")))
    torch.manual_seed(0)
    source = published(roberta).save(tmp_path / "source", model_type="xlm-roberta")
    path = source / "pytorch_model.bin"
    save_tensors({n: t for n, t in torch.load(path).items() if not n.startswith("roberta.e")}, path)
    with pytest.raises(BackboneMismatch, match=r"of a 'xlm-roberta'; the backbone is a 'roberta'"):
        import_prompt(source, roberta)


@pytest.mark.parametrize("fault", ["stale", "missing"])
def test_shards_hold_what_their_index_says(bert: Backbone, tmp_path: Path, fault: str) -> None:
    source = published(bert).save(tmp_path / "source")
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    (source / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    shards = {"one.bin": names[: len(names) // 2], "two.bin": names[len(names) // 2 :]}
    index = {name: file for file, held in shards.items() for name in held}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    for file, held in shards.items():
        save_tensors({name: tensors[name] for name in held}, source / file)
    assert import_prompt(source, bert).prompt.prefix_length == PREFIX
    name = names[0]
    held = {name: tensors[name] for name in shards["two.bin"]} | {name: torch.zeros_like(tensors[name])}
    save_tensors(held, source / "two.bin")
    if fault == "missing":
        save_tensors({n: tensors[n] for n in shards["one.bin"] if n != name}, source / "one.bin")
    with pytest.raises(SourceInvalid, match=rf"disagree about '{name}'"):
        import_prompt(source, bert)


def test_a_sidecar_speaks_for_the_file_that_is_read(bert: Backbone, tmp_path: Path) -> None:
    export_prompt(prompt_of(bert), Format.PTUNING_V2, tmp_path / "out")
    tensors = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    changed = {name: tensor.float() + 1 for name, tensor in tensors.items()}
    save_tensors(changed, tmp_path / "out" / "model.safetensors")
    with pytest.raises(SourceInvalid, match=r"speaks of pytorch_model\.bin, and model\.safetensors is what is read"):
        import_prompt(tmp_path / "out", bert)


def test_a_revision_does_not_depend_on_how_the_backbone_is_named(bert: Backbone, tmp_path: Path) -> None:
    export_prompt(prompt_of(bert), Format.PTUNING_V2, tmp_path / "out")
    moved = load_backbone(os.path.relpath(bert.ref.name))
    assert moved.ref.name != bert.ref.name
    assert import_prompt(tmp_path / "out", moved).prompt.backbone == bert.ref


@pytest.mark.parametrize(
    "name",
    [
        "bert.invertible_adapters.task.F.0.weight",
        "bert.encoder.layer.0.output.adapters.task.adapter_down.0.weight",
        "bert.encoder.layer.0.attention.self.query.loras.task.lora_A",
        "bert.embeddings.word_embeddings.weight",
    ],
)
def test_what_an_adapter_trains_beside_its_prefix_is_refused(adapted: Backbone, flat: Path, name: str) -> None:
    tensors = torch.load(flat / "pytorch_adapter.bin", weights_only=True)
    save_tensors(tensors | {name: torch.ones(2)}, flat / "pytorch_adapter.bin")
    with pytest.raises(NotRepresentable, match="also trains"):
        import_prompt(flat, adapted)


def test_copies_of_an_adapters_pool_are_copies(adapted: Backbone, flat: Path) -> None:
    tensors = torch.load(flat / "pytorch_adapter.bin", weights_only=True)
    copies = {name: tensor * 9 for name, tensor in tensors.items() if name != POOL}
    save_tensors(tensors | copies, flat / "pytorch_adapter.bin")
    with pytest.raises(NotRepresentable, match="also trains"):
        import_prompt(flat, adapted)
    save_tensors({POOL: tensors[POOL], f"{POOL}.4.weight": torch.ones(1)}, flat / "pytorch_adapter.bin")
    with pytest.raises(NotRepresentable, match="also trains"):
        import_prompt(flat, adapted)


def test_a_head_has_the_bias_and_the_classes_that_its_config_says(adapted: Backbone, flat: Path) -> None:
    tensors = torch.load(flat / "pytorch_model_head.bin", weights_only=True)
    config = json.loads((flat / "head_config.json").read_text())["config"]
    edit_json(flat / "head_config.json", config=config | {"num_labels": 9, "label2id": None})
    with pytest.raises(SourceInvalid, match="num_labels is 9; the head has 3 classes"):
        import_prompt(flat, adapted)
    edit_json(flat / "head_config.json", config=config)
    save_tensors(
        {name: t for name, t in tensors.items() if name != "heads.task.4.bias"}, flat / "pytorch_model_head.bin"
    )
    with pytest.raises(SourceInvalid, match=r"has no '4\.bias'"):
        import_prompt(flat, adapted)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_a_projection_is_of_floating_point_numbers(bert: Backbone, tmp_path: Path, dtype: torch.dtype) -> None:
    source = published(bert, projected=7).save(tmp_path / "source")
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    name = "prefix_encoder.embedding.weight"
    save_tensors(tensors | {name: tensors[name].to(dtype)}, source / "pytorch_model.bin")
    with pytest.raises(SourceInvalid, match=r"floating-point|plain dense"):
        import_prompt(source, bert)


def test_tensors_without_numbers_are_refused(bert: Backbone, tmp_path: Path) -> None:
    source = published(bert).save(tmp_path / "source")
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    tensors["classifier.weight"] = tensors["classifier.weight"].to("meta")
    torch.save(tensors, source / "pytorch_model.bin")
    with pytest.raises(FormatError, match="is no plain dense tensor"):
        import_prompt(source, bert)


def test_labels_of_a_family_that_has_none_are_refused(bert: Backbone, tmp_path: Path) -> None:
    source = published(bert, SPANS).save(tmp_path / "source")
    with pytest.raises(LabelsMismatch, match="2 labels were given; question-answering has none"):
        import_prompt(source, bert, Choices(labels=("a", "b")))


@pytest.mark.parametrize(("family", "least"), [(TEXT, 3), (SPANS, 5)])
def test_a_prompt_that_answers_nothing_is_refused(bert: Backbone, tmp_path: Path, family: Any, least: int) -> None:
    source = published(bert, family).save(tmp_path / "source")
    with pytest.raises(BackboneMismatch, match=f"of up to {least - 1} tokens are wanted; the shortest .* has {least}"):
        import_prompt(source, bert, Choices(max_tokens=least - 1))
    assert import_prompt(source, bert, Choices(max_tokens=least)).prompt.preprocessing.max_tokens == least < POSITIONS


def test_a_prompt_is_exported_into_the_folder_at_hand(
    bert: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_prompt(prompt_of(bert), Format.PTUNING_V2, Path())
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "config.json",
        "prefixbank.json",
        "pytorch_model.bin",
    ]
