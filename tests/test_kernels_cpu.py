"""What only the CPU route does: leave out the shift of the scores, cut long rows, and share a layout among layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank.kernels import cpu, cpu_backward, cpu_runs
from prefixbank.kernels.operands import Operands
from prefixbank.kernels.reference import reference_attention
from tests.kernel_cases import (
    DTYPES,
    GRADIENT_TOLERANCE,
    TOLERANCE,
    VIEWS,
    Case,
    distance,
    every_edge,
    make_case,
    make_prefix,
)
from tests.kernel_cases import poisoned_memory as poisoned_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.kernels.plan import Mode

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def _forget_layouts() -> None:
    cpu_runs.joined_runs.cache_clear()
    cpu_runs.runs_of_slots.cache_clear()


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut rows of 20 tokens between heads, and those of 60 between queries."""
    _forget_layouts()
    monkeypatch.setattr(cpu_runs, "RUN_BYTES", 16_000)
    monkeypatch.setattr(cpu_runs, "BLOCK_BYTES", 8_000)
    monkeypatch.setattr(cpu_runs, "QUERY_STEP", 8)
    yield
    _forget_layouts()


@pytest.fixture
def _low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ordinary scores be too large for some of the rows."""
    monkeypatch.setattr(cpu, "LIMIT", 64.0)
    monkeypatch.setattr(cpu_backward, "LIMIT", 64.0)


def _gradients(case: Case, *, of_definition: bool = False) -> list[torch.Tensor]:
    leaves = [x.detach().to(torch.float64 if of_definition else x.dtype).requires_grad_() for x in case.differentiated]
    out = case.with_tensors(leaves).exact() if of_definition else case.with_tensors(leaves).run()
    projection = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return list(torch.autograd.grad(out, leaves, projection))


def _assert_right(case: Case) -> None:
    dtype = case.q_THD.dtype
    assert distance(case.run(), case.exact()) <= TOLERANCE[dtype]
    pairs = zip(_gradients(case), _gradients(case, of_definition=True), strict=True)
    assert all(distance(found, exact) <= GRADIENT_TOLERANCE[dtype] for found, exact in pairs)


def _runs(case: Case) -> cpu_runs.Runs:
    operands = Operands(*case.packed, *case.prefix, *case.plan.indices)
    return cpu_runs.joined_runs(cpu_runs.read_slots(operands, item_bytes=8)[1])


@pytest.mark.usefixtures("_low_limit")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_rows_whose_scores_are_shifted_equal_the_definition(dtype: torch.dtype, mode: Mode, window: int) -> None:
    _assert_right(make_case(*every_edge(), dtype=dtype, mode=mode, window=window))


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_rows_cut_between_heads_and_queries_equal_the_definition(dtype: torch.dtype, mode: Mode, window: int) -> None:
    _assert_right(make_case(*every_edge(), dtype=dtype, mode=mode, window=window))


@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_gradients_of_many_scores_are_multiplied_in_bf16(
    mode: Mode, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_backward, "FEW_SCORES", 0)
    _assert_right(make_case(*every_edge(), dtype=torch.bfloat16, mode=mode, window=window))


@pytest.mark.usefixtures("_small_blocks")
def test_small_blocks_cut_rows_both_ways() -> None:
    blocks = [run.blocks for run in _runs(make_case(*every_edge())).each]
    assert any(block.num_heads < 3 for run in blocks for block in run)
    assert any(block.query for run in blocks for block in run)
    assert all(len(run) == 1 for run in blocks if run[0].run.num_rows > 1)


@pytest.mark.usefixtures("_small_blocks", "_low_limit")
def test_blocks_of_one_row_may_differ_in_whether_they_are_shifted() -> None:
    case = make_case([60, 60], [1, 2], dtype=torch.float64)
    case.q_THD[20:40] *= 4
    _assert_right(case)


def test_scores_of_hundreds_have_their_gradients() -> None:
    case = make_case([9, 9, 30], [2, 2, 1], dtype=torch.float64)
    case.q_THD[9:18] *= 64
    case.q_THD[18:] = -64 * case.q_THD[18:].abs()
    case.k_THD[18:].abs_()
    for found, exact in zip(_gradients(case), _gradients(case, of_definition=True), strict=True):
        assert distance(found, exact) <= GRADIENT_TOLERANCE[torch.float32]


@pytest.mark.usefixtures("_low_limit")
def test_a_shift_is_part_of_the_log_sum_exp() -> None:
    case = make_case(*every_edge(), dtype=torch.float64)
    _, lse = torch.ops.prefixbank.prefix_attention(*case.arguments(with_lse=True))
    _, wanted = reference_attention(*case.packed, case.prefix, case.plan, scale=case.scale)
    assert distance(lse, wanted) <= TOLERANCE[torch.float64]


def test_layers_whose_prefixes_are_equally_long_share_a_layout() -> None:
    case = make_case([5, 5, 9], [1, 2, 0])
    elsewhere = case.prefix._replace(slot_start_S=case.prefix.slot_start_S - 1)
    longer = make_prefix([0, 3, 15], 3, 16)
    assert _runs(case) is _runs(Case(*case.packed, elsewhere, case.plan))
    assert _runs(case) != _runs(Case(*case.packed, longer, case.plan))
