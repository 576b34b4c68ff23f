"""Attention of DeBERTa, versions 1 to 3, is reproduced through the operator, with and without a prefix.

What each test computes beside the operator is transformers' own module, or the formula of P-tuning-v2's patched
DeBERTa: positional scores of own keys, padded with zeros over the prefix.

Shape letters: L tokens of a row, H heads, D head dim, Q entries of the position table, P prefix tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import DebertaConfig, DebertaModel, DebertaV2Config, DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from prefixbank.kernels.disentangled import disentangled_attention
from prefixbank.kernels.disentangled_positions import clamped_distances, log_bucket_distances
from prefixbank.kernels.plan import BatchPlan
from tests.kernel_cases import distance, make_prefix

if TYPE_CHECKING:
    from collections.abc import Callable

HEADS, DIM, WIDTH = 2, 16, 32
LENGTHS = [13, 1, 40, 13]
TINY = {
    "vocab_size": 32, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 1,
    "intermediate_size": 16, "max_position_embeddings": 64, "relative_attention": True, "type_vocab_size": 0,
}  # fmt: skip
LIMIT = 1e-6


class Layer(NamedTuple):
    """One attention layer of a tiny model, and its operands as a backbone would make them."""

    module: Any
    hidden_LM: Tensor
    q_LHD: Tensor
    k_LHD: Tensor
    v_LHD: Tensor
    pos_key_QHD: Tensor | None
    pos_query_QHD: Tensor | None
    distance_W: Tensor
    scale: float
    relative: Callable[[Tensor], Tensor]
    """Relative positions of a row's hidden states, as the model's encoder makes them."""
    table_QM: Tensor

    def attend(self, prefix: Any, plan: BatchPlan) -> Tensor:
        positions = (self.pos_key_QHD, self.pos_query_QHD, self.distance_W)
        own = (self.q_LHD, self.k_LHD, self.v_LHD)
        return disentangled_attention(*own, *positions, prefix, plan, scale=self.scale)

    def alone(self, hidden_LM: Tensor) -> Tensor:
        """What the module itself makes of one row: [L, H, D]."""
        row = hidden_LM[None]
        mask = torch.ones(1, 1, len(hidden_LM), len(hidden_LM))
        out, _ = self.module(row, mask, relative_pos=self.relative(row), rel_embeddings=self.table_QM)
        return out[0].unflatten(-1, (HEADS, DIM))


def heads_of(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.unflatten(-1, (HEADS, DIM))


def project(module: Any, name: str, table_QM: Tensor) -> Tensor | None:
    return heads_of(getattr(module, name)(table_QM)) if hasattr(module, name) else None


def randomised(model: Any) -> Any:
    """All parameters random: published biases are not zero, and a row of zeros hides a shifted index."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def first_version(types: str, span: int) -> Layer:
    """Version 1: one projection for q, k and v, biases for q and v apart, a clamp, every token its distance."""
    config = DebertaConfig(**TINY, pos_att_type=types, max_relative_positions=span, position_biased_input=False)
    model = randomised(DebertaModel(config))
    module, table_QM = model.encoder.layer[0].attention.self, model.encoder.get_rel_embedding()
    hidden_LM = torch.randn(sum(LENGTHS), WIDTH)
    q, k, v = module.in_proj(hidden_LM).view(-1, HEADS, 3 * DIM).split(DIM, -1)
    q, v = q + module.q_bias.view(HEADS, DIM), v + module.v_bias.view(HEADS, DIM)
    tables = (project(module, name, table_QM) for name in ("pos_proj", "pos_q_proj"))
    distances = clamped_distances(span if span > 0 else config.max_position_embeddings)
    scale = (DIM * (1 + len(config.pos_att_type))) ** -0.5
    return Layer(module, hidden_LM, q, k, v, *tables, distances, scale, model.encoder.get_rel_pos, table_QM)


def later_version(types: str, share: bool, span: int, buckets: int) -> Layer:
    """Versions 2 and 3: three projections, which position embeddings may share, and log buckets."""
    config = DebertaV2Config(
        **TINY, pos_att_type=types, max_relative_positions=span, share_att_key=share, position_buckets=buckets,
        norm_rel_ebd="layer_norm", position_biased_input=False,
    )  # fmt: skip
    model = randomised(DebertaV2Model(config))
    module, table_QM = model.encoder.layer[0].attention.self, model.encoder.get_rel_embedding()
    hidden_LM = torch.randn(sum(LENGTHS), WIDTH)
    q, k, v = (
        getattr(module, name)(hidden_LM).view(-1, HEADS, DIM) for name in ("query_proj", "key_proj", "value_proj")
    )
    own, apart = ("key_proj", "query_proj"), ("pos_key_proj", "pos_query_proj")
    there = [kind in config.pos_att_type for kind in ("c2p", "p2c")]
    names = own if share else apart
    tables = (
        project(module, name, table_QM) if is_there else None for name, is_there in zip(names, there, strict=True)
    )
    span = span if span > 0 else config.max_position_embeddings
    distances = log_bucket_distances(buckets, span) if buckets > 0 else clamped_distances(span)
    scale = (DIM * (1 + sum(there))) ** -0.5
    return Layer(module, hidden_LM, q, k, v, *tables, distances, scale, model.encoder.get_rel_pos, table_QM)


FIRST = [("c2p|p2c", 8), ("c2p|p2c", -1), ("c2p", 8), ("p2c", 8), ("c2p|p2c", 40)]
LATER = [
    ("c2p|p2c", True, -1, 8), ("p2c|c2p", False, 24, 8), ("c2p", True, -1, 8), ("p2c", True, -1, 8),
    ("c2p", False, -1, -1), ("p2c", False, 8, -1), ("c2p|p2c", True, 8, -1),
]  # fmt: skip


@pytest.fixture(params=[*FIRST, *LATER], ids=str)
def layer(request: pytest.FixtureRequest) -> Layer:
    with torch.no_grad():
        return first_version(*request.param) if len(request.param) == 2 else later_version(*request.param)


@torch.no_grad()
def test_a_layer_of_the_model_is_reproduced(layer: Layer) -> None:
    plan = BatchPlan.build(LENGTHS, [0] * len(LENGTHS))
    out = layer.attend(make_prefix([0], HEADS, DIM), plan)
    wanted = torch.cat([layer.alone(row) for row in layer.hidden_LM.split(LENGTHS)])
    assert distance(out, wanted) <= LIMIT


@torch.no_grad()
def test_prefix_keys_are_scored_without_positions(layer: Layer) -> None:
    lent = [5, 17, 0, 17]
    prefix = make_prefix([0, 5, 17], HEADS, DIM)
    plan = BatchPlan.build(LENGTHS, [{0: 0, 5: 1, 17: 2}[length] for length in lent])
    out = layer.attend(prefix, plan)
    rows = zip(*(x.split(LENGTHS) for x in (layer.hidden_LM, layer.q_LHD, layer.k_LHD, layer.v_LHD)), strict=True)
    wanted = []
    for (hidden, q, k, v), slot in zip(rows, plan.slot_R.tolist(), strict=True):
        start, length = int(prefix.slot_start_S[slot]), int(prefix.slot_length_S[slot])
        lent_k, lent_v = (pool[:, start : start + length] for pool in prefix[:2])
        scaled_HLD, keys_HLD = q.transpose(0, 1) * layer.scale, k.transpose(0, 1)
        scores = scaled_HLD @ torch.cat([lent_k, keys_HLD], 1).mT
        scores = scores + torch.nn.functional.pad(_positional(layer, hidden, q, k), (length, 0))
        values = torch.cat([lent_v, v.transpose(0, 1)], 1)
        wanted.append((scores.softmax(-1) @ values).transpose(0, 1))
    assert distance(out, torch.cat(wanted)) <= LIMIT


def _positional(layer: Layer, hidden_LM: Tensor, q_LHD: Tensor, k_LHD: Tensor) -> Tensor:
    """The module's own positional scores of a row [H, L, L], scaled."""
    q, k, relative = q_LHD.transpose(0, 1), k_LHD.transpose(0, 1), layer.relative(hidden_LM[None])
    factor = round(1 / (layer.scale**2 * DIM))
    if hasattr(layer.module, "in_proj"):
        scores = layer.module.disentangled_att_bias(
            q[None] * layer.scale, k[None], relative, layer.table_QM.clone(), factor
        )
        return scores[0]  # type: ignore[no-any-return]
    return layer.module.disentangled_attention_bias(q, k, relative, layer.table_QM, factor)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("buckets", "longest"),
    [(256, 512), (32, 128), (2, 4), (2, 1000), (3, 20), (4, 1000), (5, 33), (8, 600), (16, 64), (255, 512), (320, 512)],
)
def test_log_buckets_are_those_of_transformers_at_every_distance(buckets: int, longest: int) -> None:
    table = log_bucket_distances(buckets, longest)
    reach, far = len(table) // 2, torch.arange(-5000, 5001)
    wanted = (make_log_bucket_position(far, buckets, longest).long() + buckets).clamp(0, 2 * buckets - 1)
    assert torch.equal(table[far.clamp(-reach, reach) + reach].long(), wanted)


def test_clamped_distances_stop_at_both_ends_of_the_table() -> None:
    assert clamped_distances(2).tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize(("buckets", "longest"), [(1, 8), (0, 8), (8, 5), (8, 4)])
def test_buckets_that_reach_farther_than_the_longest_distance_are_refused(buckets: int, longest: int) -> None:
    with pytest.raises(ValueError, match="buckets up to"):
        log_bucket_distances(buckets, longest)


def test_a_span_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="span is 0"):
        clamped_distances(0)
