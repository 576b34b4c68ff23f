"""A captured graph answers for whatever batch and prefixes its memory now holds, and nothing waits or compiles."""

from __future__ import annotations

import random

import pytest
import torch

from prefixbank.kernels.attention import Route, prefix_attention
from prefixbank.kernels.plan import BatchPlan, Capacity, Mode, Tiling
from tests.gpu.device import (
    DEVICE,
    DTYPES,
    ON_GPU,
    Recorded,
    counted_compilations,
    make_case,
    on_gpu,
    run,
    waiting_is_an_error,
)
from tests.kernel_cases import PREFIX_LENGTHS, Case

TOKENS, ROWS = (2048, 64) if ON_GPU else (48, 6)
SOME_DTYPES = on_gpu(DTYPES, rehearsed=[torch.bfloat16])
TILINGS = on_gpu([Tiling(16), Tiling(64), Tiling(128), Tiling(16, 4)], rehearsed=[Tiling(16), Tiling(16, 2)])


def random_rows(seed: int, most_tokens: int = TOKENS) -> tuple[list[int], list[int]]:
    """Lengths and slots of at most `ROWS` rows, in any order."""
    chance = random.Random(seed)
    lengths: list[int] = []
    for _ in range(chance.randrange(ROWS + 1)):
        room = most_tokens - sum(lengths)
        lengths.append(min(room, chance.choice([0, 1, chance.randrange(1, max(2, most_tokens // 8))])))
    return lengths, [chance.randrange(len(PREFIX_LENGTHS)) for _ in lengths]


def plan_of(rows: tuple[list[int], list[int]], tiling: Tiling, mode: Mode = Mode.FULL) -> BatchPlan:
    capacity = Capacity.of(TOKENS, ROWS, tiling.block_m)
    context = [length // 3 for length in rows[0]]
    return BatchPlan.build(*rows, mode=mode, context=context, device=DEVICE, tiling=tiling, capacity=capacity)


def static_case(tiling: Tiling, dtype: torch.dtype, mode: Mode = Mode.FULL) -> Case:
    """Memory for any batch of `TOKENS` in `ROWS`, as a captured graph needs it; it holds one full batch."""
    capacity = Capacity.of(TOKENS, ROWS, tiling.block_m)
    return make_case([TOKENS], [1], dtype=dtype, mode=mode, tiling=tiling, capacity=capacity)


def attend(case: Case, plan: BatchPlan) -> torch.Tensor:
    return prefix_attention(*case.packed, case.prefix, plan, scale=case.scale, route=Route.TRITON)


@pytest.mark.parametrize("dtype", SOME_DTYPES)
@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("mode", on_gpu(list(Mode), rehearsed=[Mode.PREFIX_LM]))
def test_a_replay_equals_the_eager_call_for_any_batch(dtype: torch.dtype, tiling: Tiling, mode: Mode) -> None:
    case = static_case(tiling, dtype, mode)
    recorded = Recorded(lambda: attend(case, case.plan))
    for seed in range(6 if ON_GPU else 2):
        plan = plan_of(random_rows(seed), tiling, mode)
        case.plan.overwrite(plan)
        for x in case.packed:
            x.copy_(torch.randn_like(x))
        recorded.out.fill_(torch.nan)
        assert torch.equal(recorded.replay(), attend(case, plan)), f"seed {seed}"


def test_a_slot_loaded_between_replays_is_what_the_next_replay_reads() -> None:
    case = static_case(Tiling(16), torch.bfloat16)
    recorded = Recorded(lambda: attend(case, case.plan))
    before = recorded.replay().clone()
    start, length = int(case.prefix.slot_start_S[1]), int(case.prefix.slot_length_S[1])
    for pool in case.prefix[:2]:
        pool[:, start : start + length] = torch.randn_like(pool[:, start : start + length])
    after = recorded.replay().clone()
    assert not torch.equal(after, before)
    assert torch.equal(after, run(case))


def test_a_slot_moved_between_replays_is_found_where_it_now_lies() -> None:
    case = static_case(Tiling(16), torch.bfloat16)
    recorded = Recorded(lambda: attend(case, case.plan))
    case.prefix.slot_start_S[1], case.prefix.slot_length_S[1] = case.prefix.slot_start_S[5], 48
    assert torch.equal(recorded.replay(), run(case))


def test_nothing_waits_for_the_device() -> None:
    """Neither a plan that is built and sent, nor the forward, nor the backward."""
    case = static_case(Tiling(16), torch.bfloat16)
    leaves = [x.detach().requires_grad_() for x in case.differentiated]
    leafy = case.with_tensors(leaves)
    projection = torch.randn(case.q_THD.shape, device=DEVICE).to(case.q_THD.dtype)
    for attempt in range(2):
        with waiting_is_an_error():
            plan = plan_of(random_rows(attempt), Tiling(16))
            case.plan.overwrite(plan)
            attend(case, case.plan)
            torch.autograd.grad(attend(leafy, case.plan), leaves, projection)


def test_a_hundred_random_batches_compile_nothing_new() -> None:
    def attend_to(seed: int) -> None:
        lengths, slots = random_rows(seed)
        attend(make_case([*lengths, 5], [*slots, 1], tiling=Tiling(64), dtype=torch.bfloat16), _plan(lengths, slots))

    def _plan(lengths: list[int], slots: list[int]) -> BatchPlan:
        return BatchPlan.build([*lengths, 5], [*slots, 1], device=DEVICE, tiling=Tiling(64))

    attend_to(0)
    with counted_compilations() as compiled:
        for seed in range(100 if ON_GPU else 3):
            attend_to(seed)
    assert compiled == []


@pytest.mark.skipif(not ON_GPU, reason="an interpreter compiles nothing")
def test_compilations_are_counted_at_all() -> None:
    from prefixbank.kernels.gpu import forward

    forward.attend.device_caches.clear()
    with counted_compilations() as compiled:
        run(make_case([5], [1]))
    assert "attend" in compiled
