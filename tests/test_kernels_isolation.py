"""A row's numbers do not depend on the rows it shares a batch with: bit for bit, in every dtype.

Bits are compared for the same number of threads; another number may cut a product elsewhere.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixbank.kernels import cpu, cpu_backward, cpu_runs
from prefixbank.kernels.operands import Operands
from prefixbank.kernels.plan import BatchPlan, Mode
from tests.kernel_cases import DTYPES, TOLERANCE, VIEWS, Case, distance, every_edge, make_case

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def _chosen(case: Case, rows: Sequence[int]) -> tuple[Case, Tensor]:
    """Return the batch of these rows alone, in this order, and their tokens in the batch they come from."""
    bounds, slots, context = case.plan.row_start_R1.tolist(), case.plan.slot_R.tolist(), case.plan.context_R.tolist()
    lengths = [bounds[row + 1] - bounds[row] for row in rows]
    plan = BatchPlan.build(
        lengths, [slots[row] for row in rows], mode=case.plan.mode, context=[context[row] for row in rows]
    )
    tokens = torch.cat([torch.arange(bounds[row], bounds[row + 1]) for row in rows])
    q, k, v = (x[tokens] for x in case.packed)
    return Case(q, k, v, case.prefix, plan, case.window), tokens


def _gradients(case: Case) -> tuple[Tensor, ...]:
    """Of the sum of squared outputs: what flows back to a token does not depend on its place."""
    leaves = [x.detach().clone().requires_grad_() for x in case.differentiated]
    return torch.autograd.grad(case.with_tensors(leaves).run().float().square().sum(), leaves)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [2, 12])
def test_a_row_alone_gives_the_bits_it_gives_in_company(dtype: torch.dtype, heads: int) -> None:
    case = make_case(*every_edge(), heads=heads, dim=32, dtype=dtype)
    together = case.run()
    for row in range(case.plan.num_rows):
        alone, tokens = _chosen(case, [row])
        assert torch.equal(alone.run(), together[tokens]), f"row {row}"


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_row_alone_gives_the_bits_it_gives_in_company(dtype: torch.dtype) -> None:
    case = make_case([300, 20, 300, 129, 300], [5, 5, 5, 0, 5], heads=16, dim=64, dtype=dtype)
    together = case.run()
    for row in range(5):
        alone, tokens = _chosen(case, [row])
        assert torch.equal(alone.run(), together[tokens]), f"row {row}"


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_whose_scores_are_shifted_changes_no_bit_of_others(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "LIMIT", 64.0)
    case = make_case([13] * 6 + [40] * 2, [1, 1, 2, 0, 0, 5, 5, 5], heads=4, dim=32, dtype=dtype)
    case.q_THD[13:39] *= 3
    together = case.run()
    for row in range(case.plan.num_rows):
        alone, tokens = _chosen(case, [row])
        assert torch.equal(alone.run(), together[tokens]), f"row {row}"


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_slot_alone_have_the_gradients_they_have_beside_others(dtype: torch.dtype) -> None:
    """A batch once took the arithmetic of its mean run: in bf16 a trial packed learned otherwise than alone."""
    case = make_case([9, 9, 120, 120, 120, 5], [1, 1, 2, 2, 2, 0], heads=12, dim=32, dtype=dtype)
    prefixes = case.prefix.slot_length_S.tolist()
    few, many = (12 * rows * own * (own + prefixes[slot]) for rows, own, slot in ((2, 9, 1), (3, 120, 2)))
    assert few < cpu_backward.FEW_SCORES < many
    together = _gradients(case)
    for rows, slot in (([0, 1], 1), ([2, 3, 4], 2), ([5], 0)):
        alone, tokens = _chosen(case, rows)
        begin, length = (int(table[slot]) for table in (case.prefix.slot_start_S, case.prefix.slot_length_S))
        for found, wanted in zip(_gradients(alone)[:3], together[:3], strict=True):
            assert torch.equal(found, wanted[tokens]), f"slot {slot}"
        for found, wanted in zip(_gradients(alone)[3:], together[3:], strict=True):
            lent = slice(begin, begin + length)
            assert torch.equal(found[:, lent], wanted[:, lent]), f"slot {slot}"


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dim", [8, 40, 48, 80])
def test_every_head_dim_keeps_the_bits_of_a_row(dim: int) -> None:
    case = make_case([1, 5, 5, 5, 12, 33, 33, 77], [1, 1, 2, 3, 0, 5, 5, 2], heads=5, dim=dim)
    together = case.run()
    for row in range(case.plan.num_rows):
        alone, tokens = _chosen(case, [row])
        assert torch.equal(alone.run(), together[tokens]), f"row {row}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_permuting_the_rows_permutes_the_answers(dtype: torch.dtype, mode: Mode, window: int) -> None:
    case = make_case(*every_edge(), dtype=dtype, mode=mode, window=window)
    order = random.Random(1).sample(range(case.plan.num_rows), case.plan.num_rows)
    permuted, tokens = _chosen(case, order)
    assert torch.equal(permuted.run(), case.run()[tokens])


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    prefix_lengths = draw(st.lists(st.integers(0, 20), min_size=1, max_size=5))
    rows = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, len(prefix_lengths) - 1)), min_size=1))
    return make_case(
        [length for length, _ in rows],
        [slot for _, slot in rows],
        prefix_lengths,
        heads=draw(st.integers(1, 3)),
        dim=draw(st.sampled_from([8, 16])),  # a lone number near 0 has no meaningful relative error
        mode=draw(st.sampled_from(Mode)),
        window=draw(st.integers(0, 6)),
        seed=draw(st.integers(0, 100)),
    )


@settings(deadline=None, max_examples=60)
@given(_cases())
def test_any_batch_equals_the_definition(case: Case) -> None:
    assert distance(case.run(), case.exact()) <= TOLERANCE[torch.float32]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_many_slots_share_one_product_and_keep_their_bits(dtype: torch.dtype) -> None:
    lengths, slots = [24] * 60 + [7] * 9 + [24] * 3, [*sorted([1, 2, 3, 4] * 15), 0, 1, 1, 2, 2, 3, 4, 5, 5, 3, 2, 1]
    case = make_case(lengths, slots, [0, 20, 20, 20, 20, 33], heads=12, dim=32, dtype=dtype)
    together = case.run()
    assert distance(together, case.exact()) < TOLERANCE[dtype]
    for row in range(case.plan.num_rows):
        alone, tokens = _chosen(case, [row])
        assert torch.equal(alone.run(), together[tokens]), f"row {row}"


def test_buckets_that_differ_in_the_slot_alone_are_joined() -> None:
    case = make_case([24] * 6 + [7], [1, 1, 2, 3, 4, 5, 1], [0, 20, 20, 20, 20, 33])
    operands = Operands(*case.packed, *case.prefix, *case.plan.indices)
    runs = cpu_runs.joined_runs(cpu_runs.read_slots(operands, item_bytes=4)[1])
    assert [(run.num_rows, run.length, run.prefix) for run in runs.each] == [(5, 24, 20), (1, 24, 33), (1, 7, 20)]
