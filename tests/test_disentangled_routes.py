"""Disentangled attention: every route equals the definition, which equals DeBERTa as transformers computes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, build_relative_position

from prefixbank.kernels.attention import Route
from prefixbank.kernels.disentangled import disentangled_attention
from prefixbank.kernels.disentangled_positions import clamped_distances, log_bucket_distances
from prefixbank.kernels.plan import BatchPlan, Tiling
from tests.kernel_cases import GRADIENT_TOLERANCE, TOLERANCE, Case, distance, make_case
from tests.kernel_cases import poisoned_memory as poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SPAN = 6
ROWS = [17, 0, 1, 16, 3], [5, 1, 0, 2, 5]
ROUTES = [Route.CPU, Route.TRITON]
TERMS = [(True, True), (True, False), (False, True)]
NAMES = ("q", "k", "v", "pool_k", "pool_v", "pos_key", "pos_query")


def tables(heads: int, dtype: torch.dtype, terms: tuple[bool, bool] = (True, True)) -> list[torch.Tensor | None]:
    torch.manual_seed(9)
    return [torch.randn(2 * SPAN, heads, 16).to(dtype) if there else None for there in terms]


def run(case: Case, positions: list[torch.Tensor | None], route: Route) -> torch.Tensor:
    distances = clamped_distances(SPAN)
    return disentangled_attention(
        *case.packed, *positions, distances, case.prefix, case.plan, scale=case.scale, route=route
    )


def exact(case: Case, positions: list[torch.Tensor | None]) -> torch.Tensor:
    wide = [None if x is None else x.double() for x in positions]
    return run(case.with_tensors([x.double() for x in case.differentiated]), wide, Route.REFERENCE)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_route_equals_the_definition(route: Route, terms: tuple[bool, bool], dtype: torch.dtype) -> None:
    case, positions = make_case(*ROWS, heads=2, dtype=dtype), tables(2, dtype, terms)
    assert distance(run(case, positions, route), exact(case, positions)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("route", ROUTES)
def test_every_gradient_equals_that_of_the_definition(route: Route) -> None:
    case, positions = make_case(*ROWS, heads=2), tables(2, torch.float32)
    leaves = [x.detach().requires_grad_() for x in (*case.differentiated, *positions) if x is not None]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    found = torch.autograd.grad(run(case.with_tensors(leaves), [*leaves[5:]], route).sin().sum(), leaves)
    wanted = torch.autograd.grad(run(case.with_tensors(wide), [*wide[5:]], Route.REFERENCE).sin().sum(), wide)
    distances = {name: distance(*pair) for name, *pair in zip(NAMES, found, wanted, strict=True)}
    assert all(off <= 2 * GRADIENT_TOLERANCE[torch.float32] for off in distances.values()), distances


@pytest.mark.parametrize("route", ROUTES)
def test_a_row_has_the_same_bits_alone(route: Route) -> None:
    case, positions = make_case(*ROWS, heads=2), tables(2, torch.float32)
    together = run(replace(case, plan=BatchPlan.build(*ROWS, tiling=Tiling(16))), positions, route)
    alone = case.with_tensors([*(x[:17] for x in case.packed), *case.prefix[:2]])
    alone = replace(alone, plan=BatchPlan.build([17], [5], tiling=Tiling(16)))
    assert torch.equal(run(alone, positions, route), together[:17])


@pytest.mark.parametrize("buckets", [-1, 4])
@pytest.mark.parametrize("terms", TERMS)
def test_the_definition_is_deberta_as_transformers_computes_it(buckets: int, terms: tuple[bool, bool]) -> None:
    """The self-attention module of DeBERTa v2 and v3 on one row of 23 tokens, without a prefix."""
    kinds = [kind for kind, there in zip(("c2p", "p2c"), terms, strict=True) if there]
    torch.manual_seed(0)
    config = DebertaV2Config(
        hidden_size=32, num_attention_heads=2, relative_attention=True, max_relative_positions=8,
        position_buckets=buckets, pos_att_type=kinds, share_att_key=True,
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    module = DisentangledSelfAttention(config).eval()
    span = buckets if buckets > 0 else 8
    hidden, relative = torch.randn(1, 23, 32), torch.randn(2 * span, 32)
    where = build_relative_position(hidden, hidden, bucket_size=buckets, max_position=8)
    wanted, _ = module(hidden, torch.ones(1, 1, 23, 23), relative_pos=where, rel_embeddings=relative)
    q, k, v = (proj(hidden)[0].view(23, 2, 16) for proj in (module.query_proj, module.key_proj, module.value_proj))
    case = make_case([23], [0], heads=2)
    pos = [module.key_proj(relative), module.query_proj(relative)]
    positions = [x.view(-1, 2, 16) if there else None for x, there in zip(pos, terms, strict=True)]
    distances = log_bucket_distances(buckets, 8) if buckets > 0 else clamped_distances(8)
    for route in (Route.REFERENCE, *ROUTES):
        found = disentangled_attention(
            q, k, v, *positions, distances, case.prefix, case.plan, scale=(16 * (1 + len(kinds))) ** -0.5, route=route
        )
        assert distance(found.flatten(1).detach(), wanted[0].detach()) <= TOLERANCE[torch.float32], route
