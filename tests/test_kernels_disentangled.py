"""Disentangled attention on the CPU equals its definition, forward and backward, whatever a row is beside."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank.kernels.attention import Route
from prefixbank.kernels.disentangled_positions import Positions
from prefixbank.kernels.plan import BatchPlan, LayerPrefix, Mode
from prefixbank.kernels.quantise import quantise
from tests.disentangled_cases import NAMES, TERMS, DisentangledCase, make_disentangled
from tests.kernel_cases import DTYPES, GRADIENT_TOLERANCE, TOLERANCE, distance, every_edge, int32
from tests.kernel_cases import poisoned_memory as poisoned_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.usefixtures("poisoned_memory")

LONG = ([300, 129, 300, 40, 40], [5, 0, 5, 1, 1])
"""Rows of several blocks of queries, and rows that meet in one product."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", TERMS, ids="+".join)
def test_every_pair_of_edge_lengths_equals_the_definition(dtype: torch.dtype, terms: Sequence[str]) -> None:
    case = make_disentangled(*every_edge(), dtype=dtype, terms=terms)
    assert distance(case.run(), case.wide().run(Route.REFERENCE)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_longer_than_a_block_of_queries_equal_the_definition(dtype: torch.dtype) -> None:
    case = make_disentangled(*LONG, heads=16, dim=32, dtype=dtype)
    assert distance(case.run(), case.wide().run(Route.REFERENCE)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", TERMS, ids="+".join)
def test_every_gradient_equals_that_of_the_definition(dtype: torch.dtype, terms: Sequence[str]) -> None:
    case = make_disentangled(*every_edge(), dtype=dtype, terms=terms)
    found, exact = case.gradients(), case.wide().gradients(Route.REFERENCE)
    assert list(found) == [name for name in NAMES if name in case.leaves]
    distances = {name: distance(found[name], exact[name]) for name in found}
    assert all(each <= GRADIENT_TOLERANCE[dtype] for each in distances.values()), distances


def test_gradients_of_long_rows_are_summed_over_blocks() -> None:
    case = make_disentangled(*LONG, heads=16)
    found, exact = case.gradients(), case.wide().gradients(Route.REFERENCE)
    distances = {name: distance(found[name], exact[name]) for name in found}
    assert all(each <= GRADIENT_TOLERANCE[torch.float32] for each in distances.values()), distances


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_asked_for_alone_is_the_one_computed_with_all(name: str) -> None:
    case = make_disentangled([5, 17, 30], [1, 2, 3])
    assert distance(case.gradients(names=[name])[name], case.gradients()[name]) <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_batch_gives_the_same_gradients_again(dtype: torch.dtype) -> None:
    case = make_disentangled(*every_edge(), dtype=dtype)
    first, again = case.gradients(), case.gradients()
    assert all(torch.equal(first[name], again[name]) for name in NAMES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_alone_gives_the_bits_it_gives_in_company(dtype: torch.dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    lengths, slots = [13, 13, 13, 1, 0, 65, 129, 40, 40, 300], [1, 1, 2, 3, 3, 0, 5, 5, 5, 4]
    case = make_disentangled(lengths, slots, heads=4, dim=32, dtype=dtype)
    together = case.run()
    for row in range(len(lengths)):
        alone, tokens = case.rows([row])
        assert torch.equal(alone.run(), together[tokens]), f"row {row}"
    torch.set_num_threads(before)


def test_permuting_the_rows_permutes_the_answers() -> None:
    case = make_disentangled([5, 17, 5, 30, 1], [1, 2, 3, 4, 0])
    moved, tokens = case.rows([3, 0, 4, 2, 1])
    assert torch.equal(moved.run(), case.run()[tokens])


def test_tokens_of_no_row_give_zero() -> None:
    case = make_disentangled([3, 5, 4], [1, 2, 3])
    shorter = case.with_plan(BatchPlan.build([3, 5], [1, 2]))
    out = shorter.run()
    assert distance(out, shorter.run(Route.REFERENCE)) <= TOLERANCE[torch.float32]
    assert not out[8:].any()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_a_batch_without_tokens_gives_an_empty_answer(lengths: list[int]) -> None:
    case = make_disentangled(lengths, [1] * len(lengths))
    assert case.run().shape == (0, 2, 16)
    assert not case.gradients()["pos_key"].any()


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_a_pool_of_one_byte_per_number_is_read_by_its_scales(stored: torch.dtype) -> None:
    case = make_disentangled([5, 17, 3], [1, 0, 2], [0, 16, 5])
    quantised = with_stored_pool(case, stored)
    assert distance(quantised.run(), quantised.run(Route.REFERENCE)) <= TOLERANCE[torch.float32]
    assert 0 < distance(quantised.run(), case.run()) < 0.1


def with_stored_pool(case: DisentangledCase, stored: torch.dtype) -> DisentangledCase:
    """The same slots in one byte per number; each slot has its own scales."""
    pool_k, pool_v, start, length, _ = case.case.prefix
    scale = torch.ones(len(start), 2, pool_k.shape[0])
    pools = [torch.zeros(pool.shape, dtype=stored) for pool in (pool_k, pool_v)]
    for slot, (first, count) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
        for side, pool in enumerate((pool_k, pool_v)):
            pools[side][:, first : first + count], scale[slot, side] = quantise(pool[:, first : first + count], stored)
    return replace(case, case=replace(case.case, prefix=LayerPrefix(*pools, start, length, scale)))


def test_one_distance_may_outweigh_all_others_by_far() -> None:
    """Scores of +10,000 for the token before, by position alone."""
    case = make_disentangled([8], [1], [0, 16], terms=["c2p"])
    key = torch.zeros(16, 2, 16)
    key[9] = 10_000 / (case.scale * 16)
    case = case.with_leaves(case.leaves | {"q": torch.ones(8, 2, 16), "pos_key": key})
    assert torch.equal(case.run()[1:], case.case.v_THD[:-1])


@pytest.mark.parametrize(
    ("wanted", "broken"),
    [
        ("that is prefix_attention", lambda p: Positions(None, None, p.distance_W)),
        ("wanted [Q, 2, 16]", lambda p: p._replace(pos_key_QHD=p.pos_key_QHD[:, :1])),
        ("wanted [Q, 2, 16]", lambda p: p._replace(pos_query_QHD=p.pos_query_QHD[1:])),
        ("wanted torch.float32 as q", lambda p: p._replace(pos_key_QHD=p.pos_key_QHD.double())),
        ("wanted int32 [2 * reach + 1]", lambda p: p._replace(distance_W=p.distance_W.long())),
        ("wanted int32 [2 * reach + 1]", lambda p: p._replace(distance_W=p.distance_W[1:])),
        ("wanted cpu", lambda p: p._replace(distance_W=p.distance_W.to("meta"))),
    ],
)
def test_positions_that_do_not_fit_are_refused(wanted: str, broken: Callable[[Positions], Positions]) -> None:
    case = make_disentangled([3], [1])
    case = replace(case, positions=broken(case.positions))
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 the message is what is tested
        case.run()
    assert wanted in str(refusal.value)


def test_a_plan_of_another_mode_is_refused() -> None:
    case = make_disentangled([3], [1])
    with pytest.raises(ValueError, match="mode is CAUSAL, wanted FULL"):
        case.with_plan(BatchPlan.build([3], [1], mode=Mode.CAUSAL)).run()


@pytest.mark.parametrize("terms", TERMS[::2], ids="+".join)
def test_torch_accepts_the_operator(terms: Sequence[str]) -> None:
    case = make_disentangled([3, 0, 5], [1, 2, 3], dtype=torch.float64, terms=terms)
    case = case.with_leaves({name: torch.nan_to_num(x).requires_grad_() for name, x in case.leaves.items()})
    tensors = (*case.case.packed, *case.positions, *case.case.prefix, *case.plan.indices)
    scalars = (case.scale, *case.plan.tiling, True, Route.CPU.value)
    torch.library.opcheck(torch.ops.prefixbank.disentangled_attention.default, (*tensors, *scalars))


def test_the_tables_of_positions_need_not_be_dense() -> None:
    case = make_disentangled([30], [1])
    assert case.positions.pos_key_QHD is not None
    assert not case.positions.pos_key_QHD.is_contiguous()
    dense = case.with_leaves({name: x.contiguous() for name, x in case.leaves.items()})
    assert torch.equal(case.run(), dense.run())


def test_slots_in_use_are_as_in_plain_attention() -> None:
    case = make_disentangled([3], [1], [0, 5])
    case = replace(case, case=replace(case.case, prefix=case.case.prefix._replace(slot_length_S=int32([0, 6]))))
    with pytest.raises(ValueError, match="slot 1 is pool tokens 16 to 22 of 21"):
        case.run()
