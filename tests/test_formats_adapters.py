"""Folders that the adapters library saved, with the answers it gave: `tests/golden/make_adapters.py` made both."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.importer import import_prompt
from prefixbank.model_store.task_prompt import Pooler
from tests.format_cases import SPANS, TEXT, WORDS, assert_same, edit_json, exact_logits, save_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefixbank.model_store.backbones.backbone import Backbone

GOLDEN = Path(__file__).parent / "golden" / "adapters"
POOL = "bert.prefix_tuning.prefix_tunings."
CASES = {
    "bert-flat": (TEXT, (0, 1, 2), Pooler.OWN, "tanh"),
    "bert-mlp-tagging": (WORDS, (0, 2), Pooler.NONE, None),
    "bert-ejected-relu": (TEXT, (0, 1, 2), Pooler.OWN, "tanh"),
    "bert-pooler": (TEXT, (0, 1, 2), Pooler.BACKBONE, None),
    "bert-answering": (SPANS, (0, 1, 2), Pooler.NONE, None),
    "bert-static": (TEXT, (0, 1, 2), Pooler.BACKBONE, None),
    "roberta-mlp-linear": (TEXT, (0, 1, 2), Pooler.NONE, None),
    "distilbert-flat": (TEXT, (0, 1, 2), Pooler.OWN, "gelu"),
}


@pytest.fixture(scope="module")
def load() -> Callable[[str], Backbone]:
    loaded: dict[str, Backbone] = {}

    def load(name: str) -> Backbone:
        architecture = name.partition("-")[0]
        if architecture not in loaded:
            loaded[architecture] = load_backbone(str(GOLDEN / architecture))
        return loaded[architecture]

    return load


@pytest.fixture
def bert(load: Callable[[str], Backbone]) -> Backbone:
    return load("bert")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A copy of one case, to be edited."""
    return Path(shutil.copytree(GOLDEN / "saved" / "bert-flat", tmp_path / "bert-flat"))


def edit_method(folder: Path, **fields: Any) -> None:
    edit_config(folder / "adapter_config.json", **fields)


def edit_config(path: Path, **fields: Any) -> None:
    found = json.loads(path.read_text())
    edit_json(path, config=found["config"] | fields)


def edit_file(path: Path, changes: dict[str, torch.Tensor | None]) -> None:
    tensors = torch.load(path, weights_only=True) | changes
    save_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_the_library(load: Callable[[str], Backbone], name: str) -> None:
    backbone, folder = load(name), GOLDEN / "saved" / name
    prompt = import_prompt(folder, backbone).prompt
    expected = load_file(folder / "expected.safetensors")
    lengths = expected["attention_mask"].sum(1).tolist()
    rows = [row[:length].tolist() for row, length in zip(expected["input_ids"], lengths, strict=True)]
    family, layers, pooler, activation = CASES[name]
    answers = expected["logits"]
    wanted = list(answers) if family is TEXT else [row[:length] for row, length in zip(answers, lengths, strict=True)]
    assert_same(exact_logits(prompt, backbone, rows), wanted)
    assert (prompt.family, prompt.layers, prompt.position_offset) == (family, layers, 0)
    assert (prompt.head.spec.pooler, prompt.head.spec.activation) == (pooler, activation)


def test_positions_are_not_shifted(bert: Backbone, flat: Path) -> None:
    prompt = import_prompt(flat, bert).prompt
    shifted = dataclasses.replace(prompt, position_offset=prompt.prefix_length)
    [one], [other] = (exact_logits(each, bert, [[5, 6, 7]]) for each in (prompt, shifted))
    assert (one - other).abs().max() > 1e-2


def test_labels_are_the_heads(bert: Backbone, flat: Path) -> None:
    assert import_prompt(flat, bert).prompt.labels == ("bad", "so-so", "good")


def test_provenance_names_the_tool(bert: Backbone, flat: Path) -> None:
    provenance = import_prompt(flat, bert).prompt.provenance
    assert (provenance.source, provenance.software) == ("adapters", {"adapters": "1.3.0"})


def test_a_head_without_bias_has_a_bias_of_zero(bert: Backbone, flat: Path) -> None:
    edit_file(flat / "pytorch_model_head.bin", {"heads.task.1.bias": None, "heads.task.4.bias": None})
    edit_config(flat / "head_config.json", bias=False)
    assert not import_prompt(flat, bert).prompt.head.bias_C.any()


def test_gates_are_refused(bert: Backbone) -> None:
    with pytest.raises(NotRepresentable, match="gated prefixes depend on the input"):
        import_prompt(GOLDEN / "saved" / "bert-gated", bert)


def test_gates_are_refused_whatever_the_config_says(bert: Backbone, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "saved" / "bert-gated", tmp_path / "gated"))
    edit_method(folder, use_gating=False)
    with pytest.raises(NotRepresentable, match="holds prefix_gates"):
        import_prompt(folder, bert)


def test_an_encoder_decoders_prefixes_are_refused(bert: Backbone, flat: Path) -> None:
    edit_file(flat / "pytorch_adapter.bin", {f"{POOL}task.cross_prefix.control_trans": torch.ones(3)})
    with pytest.raises(NotRepresentable, match=r"cross_prefix.* an encoder-decoder's"):
        import_prompt(flat, bert)


@pytest.mark.parametrize("fields", [{"architecture": "lora"}, {"architecture": "union"}, {"architecture": None}])
def test_other_methods_are_refused(bert: Backbone, flat: Path, fields: dict[str, Any]) -> None:
    edit_method(flat, **fields)
    with pytest.raises(NotRepresentable, match="an adapter of architecture"):
        import_prompt(flat, bert)


def test_another_architecture_is_refused(load: Callable[[str], Backbone], flat: Path) -> None:
    with pytest.raises(BackboneMismatch, match="of a 'bert'; the backbone is a 'roberta'"):
        import_prompt(flat, load("roberta"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"head_type": "multilabel_classification"}, "multilabel_classification"),
        ({"layers": 3}, "of 3 layers has no equal"),
        ({"use_pooler": True}, "of 2 layers behind the model's pooler"),
        ({"activation_function": "relu"}, "a head with activation 'relu'"),
        ({"head_type": "tagging"}, "a tagging head of 2 layers"),
        ({"head_type": "dependency_parsing"}, "dependency_parsing"),
    ],
)
def test_heads_without_an_equal_are_refused(bert: Backbone, flat: Path, fields: dict[str, Any], said: str) -> None:
    edit_config(flat / "head_config.json", **fields)
    with pytest.raises(NotRepresentable, match=said):
        import_prompt(flat, bert)


def test_a_multiple_choice_head_scores_each_choice(bert: Backbone, flat: Path) -> None:
    edit_config(flat / "head_config.json", head_type="multiple_choice")
    one = {"heads.task.4.weight": torch.ones(1, 16), "heads.task.4.bias": torch.ones(1)}
    edit_file(flat / "pytorch_model_head.bin", one)
    prompt = import_prompt(flat, bert).prompt
    assert (prompt.family.value, prompt.labels, prompt.head.spec.pooler) == ("multiple-choice", ("score",), Pooler.OWN)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("pytorch_adapter.bin", {f"{POOL}task.self_prefix.control_trans": None}, "of 0 adapters"),
        ("pytorch_adapter.bin", {f"{POOL}other.self_prefix.control_trans": torch.ones(3)}, "of 2 adapters"),
        ("pytorch_adapter.bin", {f"{POOL}task.self_prefix.control_trans": torch.ones(7)}, "not 5 equal tokens"),
        ("pytorch_model_head.bin", {"heads.task.1.weight": None}, "no '1.weight'"),
    ],
)
def test_a_malformed_folder_is_refused(
    bert: Backbone, flat: Path, file: str, changes: dict[str, torch.Tensor | None], said: str
) -> None:
    edit_file(flat / file, changes)
    with pytest.raises(SourceInvalid, match=said):
        import_prompt(flat, bert)


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"prefix_length": 7}, SourceInvalid, "not 7 equal tokens"),
        ({"prefix_length": 0}, SourceInvalid, "not 0 equal tokens"),
        ({"leave_out": [0, 1, 2]}, SourceInvalid, "leaves no layer"),
        ({"leave_out": [1]}, BackboneMismatch, "2 layers of"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_refused(
    bert: Backbone, flat: Path, fields: dict[str, Any], kind: type[Exception], said: str
) -> None:
    edit_method(flat, **fields)
    with pytest.raises(kind, match=said):
        import_prompt(flat, bert)


def test_a_non_linearity_that_is_not_known_is_refused(bert: Backbone, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "saved" / "bert-mlp-tagging", tmp_path / "mlp"))
    edit_method(folder, non_linearity="swish")
    with pytest.raises(NotRepresentable, match="swish"):
        import_prompt(folder, bert)


def test_an_adapter_without_a_head_is_refused(bert: Backbone, flat: Path) -> None:
    (flat / "head_config.json").unlink()
    with pytest.raises(SourceInvalid, match="with_head=True"):
        import_prompt(flat, bert)
