"""GLM's prefixes fold to the keys and values that its own layers would have made of them, in both variants."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.errors import NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.detect import detect
from prefixbank.model_store.formats.foreign import Format
from prefixbank.model_store.formats.glm import EMBEDDING, Variant, read_kv
from prefixbank.model_store.formats.importer import import_prompt
from tests.format_cases import PARITY, save_tensors
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

LAYERS, HEADS, DIM, PREFIX, TOKENS = 3, 4, 8, 6, 11
WIDTH = HEADS * DIM


def checkpoint(stem: str = "") -> dict[str, Tensor]:
    """A random GLM with a prefix, as far as attention goes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {EMBEDDING: (PREFIX, LAYERS * WIDTH)}
    for layer in range(LAYERS):
        name = f"{stem}transformer.layers.{layer}."
        shapes |= {f"{name}input_layernorm.weight": (WIDTH,), f"{name}input_layernorm.bias": (WIDTH,)}
        shapes |= {f"{name}attention.query_key_value.weight": (3 * WIDTH, WIDTH)}
        shapes |= {f"{name}attention.query_key_value.bias": (3 * WIDTH,)}
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def attend(q_TM: Tensor, k_XM: Tensor, v_XM: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, head by head."""
    q, k, v = (x.unflatten(1, (HEADS, DIM)).transpose(0, 1) for x in (q_TM, k_XM, v_XM))
    return ((q @ k.transpose(1, 2) / DIM**0.5).softmax(-1) @ v).transpose(0, 1).flatten(1)


def published_attention(tensors: dict[str, Tensor], layer: int, x_TM: Tensor, p_PM: Tensor, variant: Variant) -> Tensor:
    """One layer's attention over [prefix ; tokens], restated: the prefix is memory before, or joins after, the norm."""
    norm, norm_bias, weight, bias = (
        tensors[f"transformer.layers.{layer}.{name}"].double()
        for name in (
            *("input_layernorm.weight", "input_layernorm.bias"),
            *("attention.query_key_value.weight", "attention.query_key_value.bias"),
        )
    )
    if variant is Variant.BEFORE_NORM:
        joined = functional.layer_norm(torch.cat([p_PM, x_TM]), (WIDTH,), norm, norm_bias, 1e-5)
    else:
        joined = torch.cat([p_PM, functional.layer_norm(x_TM, (WIDTH,), norm, norm_bias, 1e-5)])
    q, k, v = functional.linear(joined, weight, bias).chunk(3, dim=1)
    return attend(q[PREFIX:], k, v)


def served_attention(tensors: dict[str, Tensor], layer: int, x_TM: Tensor, kv_2HPD: Tensor) -> Tensor:
    """The same layer over plain keys and values before its own."""
    name = f"transformer.layers.{layer}."
    norm, norm_bias = (tensors[f"{name}input_layernorm.{part}"].double() for part in ("weight", "bias"))
    weight, bias = (tensors[f"{name}attention.query_key_value.{part}"].double() for part in ("weight", "bias"))
    normed = functional.layer_norm(x_TM, (WIDTH,), norm, norm_bias, 1e-5)
    q, k, v = functional.linear(normed, weight, bias).chunk(3, dim=1)
    prefix_k, prefix_v = kv_2HPD.double().transpose(1, 2).flatten(2)
    return attend(q, torch.cat([prefix_k, k]), torch.cat([prefix_v, v]))


@pytest.mark.parametrize("variant", Variant)
def test_folded_keys_and_values_attend_as_the_prefix_would(variant: Variant) -> None:
    tensors = checkpoint()
    kv_L2HPD = read_kv(tensors, HEADS, variant)
    assert kv_L2HPD.shape == (LAYERS, 2, HEADS, PREFIX, DIM)
    x_TM = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hidden_PLM = tensors[EMBEDDING].double().view(PREFIX, LAYERS, WIDTH)
    for layer in range(LAYERS):
        wanted = published_attention(tensors, layer, x_TM, hidden_PLM[:, layer], variant)
        torch.testing.assert_close(served_attention(tensors, layer, x_TM, kv_L2HPD[layer]), wanted, atol=PARITY, rtol=0)


def test_the_variants_differ() -> None:
    one, other = (read_kv(checkpoint(), HEADS, variant) for variant in Variant)
    assert (one - other).abs().max() > 0.01


def test_names_may_have_a_class_before_them() -> None:
    plain, wrapped = (read_kv(checkpoint(stem), HEADS, Variant.AFTER_NORM) for stem in ("", "glm."))
    assert torch.equal(plain, wrapped)


@pytest.mark.parametrize("with_lstm", [False, True], ids=["mlp", "lstm"])
def test_the_prefix_encoders_own_network_is_folded_too(with_lstm: bool) -> None:
    """Each layer's vectors pass through it as one sequence."""
    torch.manual_seed(4)
    tensors = checkpoint()
    lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, bidirectional=True)
    mlp = nn.Sequential(nn.Linear((1 + with_lstm) * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    parts = {"mlp_head": mlp} | ({"lstm_head": lstm} if with_lstm else {})
    for part, module in parts.items():
        tensors |= {f"prefix_encoder.{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    hidden_PLM = tensors[EMBEDDING].view(PREFIX, LAYERS, WIDTH)
    with torch.no_grad():
        one = [lstm(hidden_PLM[:, [layer]])[0] if with_lstm else hidden_PLM[:, [layer]] for layer in range(LAYERS)]
        passed = torch.cat([mlp(x) for x in one], dim=1).flatten(1)
    bare = {name: tensor for name, tensor in tensors.items() if "_head." not in name} | {EMBEDDING: passed}
    found, wanted = (read_kv(each, HEADS, Variant.AFTER_NORM) for each in (tensors, bare))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (EMBEDDING, None),
        (EMBEDDING, torch.zeros(PREFIX, WIDTH)),
        ("transformer.layers.0.attention.query_key_value.weight", None),
        ("transformer.layers.1.attention.query_key_value.bias", torch.zeros(WIDTH)),
        ("transformer.layers.2.input_layernorm.bias", None),
        ("prefix_encoder.mlp_head.0.weight", torch.zeros(3, 3)),
        ("prefix_encoder.lstm_head.weight_ih_l0", torch.zeros(3, 3)),
    ],
)
def test_a_malformed_checkpoint_is_refused(name: str, tensor: Tensor | None) -> None:
    changed = checkpoint() | {name: tensor}
    with pytest.raises(SourceInvalid):
        read_kv({key: value for key, value in changed.items() if value is not None}, HEADS, Variant.BEFORE_NORM)


def test_glm_is_recognised_and_refused_until_it_is_served(tmp_path: Path) -> None:
    save_tensors(checkpoint(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "glm"}))
    assert detect(tmp_path) is Format.GLM
    backbone = load_backbone(str(tiny_backbone_folder(tmp_path, "bert")))
    with pytest.raises(NotRepresentable, match="serves no GLM backbone"):
        import_prompt(tmp_path, backbone)


def test_chatglm_is_a_decoder(tmp_path: Path) -> None:
    tensors = {"transformer.prefix_encoder.embedding.weight": torch.zeros(PREFIX, 2 * LAYERS * WIDTH)}
    save_tensors(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(NotRepresentable, match="ChatGLM, a decoder"):
        detect(tmp_path)
