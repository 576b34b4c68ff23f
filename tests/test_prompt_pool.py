"""The pool holds what it says it holds, evicts only what nobody leases, and never shows freed memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefixbank.kernels.plan import NO_PROMPT_SLOT
from prefixbank.model_store.errors import OverflowsHalf, PromptTooLarge
from prefixbank.model_store.task_prompt import (
    BackboneRef,
    Head,
    HeadSpec,
    Pooler,
    Preprocessing,
    TaskFamily,
    TaskPrompt,
)
from prefixbank.serving.prompt_pool import PromptPool, Slot
from prefixbank.serving.runs import Runs
from prefixbank.serving.staging import StagedPrompt, as_views, stage

LAYERS, HEADS, DIM, WIDTH = 3, 2, 4, 8
CPU = torch.device("cpu")
BACKBONE = BackboneRef(
    fingerprint="0" * 64, architecture="bert", num_layers=LAYERS, num_heads=HEADS, head_dim=DIM, width=WIDTH
)
TOKEN_BYTES, ROW_BYTES = 2 * HEADS * DIM * 4, 4 * (WIDTH + 1)


def make_prompt(
    length: int, *, layers: tuple[int, ...] = (0, 1, 2), classes: int = 2, own_pooler: bool = False, seed: int = 0
) -> TaskPrompt:
    random = torch.Generator().manual_seed(seed)
    spec = HeadSpec(pooler=Pooler.OWN, activation="tanh") if own_pooler else HeadSpec(pooler=Pooler.NONE)
    return TaskPrompt(
        family=TaskFamily.TEXT_CLASSIFICATION,
        labels=tuple(f"label {number}" for number in range(classes)),
        layers=layers,
        kv_N2HPD=torch.randn(len(layers), 2, HEADS, length, DIM, generator=random),
        position_offset=length,
        head=Head(
            spec,
            torch.randn(classes, WIDTH, generator=random),
            torch.randn(classes, generator=random),
            torch.randn(WIDTH, WIDTH, generator=random) if own_pooler else None,
            torch.randn(WIDTH, generator=random) if own_pooler else None,
        ),
        preprocessing=Preprocessing(max_tokens=64),
        backbone=BACKBONE,
    )


def staged(prompt: TaskPrompt) -> StagedPrompt:
    return stage(prompt, torch.float32, CPU)


def make_pool(num_tokens: int = 480, num_rows: int = 64) -> PromptPool:
    prefix, heads = num_tokens * TOKEN_BYTES, num_rows * ROW_BYTES
    budget = prefix + heads + 2
    return PromptPool(BACKBONE, budget, dtype=torch.float32, device=CPU, head_share=(heads + 1) / budget)


def assert_holds(pool: PromptPool, slot: Slot, prompt: TaskPrompt) -> None:
    """What a kernel reads through the tables, and a head through the arena, is the prompt."""
    for layer, prefix in enumerate(pool.layer_prefixes):
        start, length = int(prefix.slot_start_S[slot.number]), int(prefix.slot_length_S[slot.number])
        expected = prompt.prefix_length if layer in prompt.layers else 0
        assert length == expected
        if expected:
            k_HPD, v_HPD = prompt.kv_N2HPD[prompt.layers.index(layer)]
            assert torch.equal(prefix.pool_k_HND[:, start : start + length], k_HPD)
            assert torch.equal(prefix.pool_v_HND[:, start : start + length], v_HPD)
            assert start % 16 == 0
    classes = prompt.head.bias_C.numel()
    assert torch.equal(pool.head_rows_QM[slot.head.start :][:classes], prompt.head.weight_CM)
    assert torch.equal(pool.head_bias_Q[slot.head.start :][:classes], prompt.head.bias_C)
    if prompt.head.pooler_weight_MM is not None:
        assert torch.equal(pool.head_rows_QM[slot.pooler_start :][:WIDTH], prompt.head.pooler_weight_MM)
        assert torch.equal(pool.head_bias_Q[slot.pooler_start :][:WIDTH], prompt.head.pooler_bias_M)


def poison_free_memory(pool: PromptPool) -> None:
    """Whoever reads what is not his sees NaN."""
    for run in pool._tokens.free:
        pool._k_HND[:, run.start : run.end] = float("nan")
        pool._v_HND[:, run.start : run.end] = float("nan")
    for run in pool._rows.free:
        pool.head_rows_QM[run.start : run.end] = float("nan")
        pool.head_bias_Q[run.start : run.end] = float("nan")


@pytest.mark.parametrize("length", [1, 5, 16, 17, 64])
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,), (0, 2)])
def test_an_admitted_prompt_is_read_back_through_the_tables(length: int, layers: tuple[int, ...]) -> None:
    pool, prompt = make_pool(), make_prompt(length, layers=layers, own_pooler=True)
    poison_free_memory(pool)
    slot = pool.admit("a", staged(prompt))
    assert_holds(pool, slot, prompt)
    pool.check_integrity()


@pytest.mark.parametrize("layers", [(), (0, 1, 2)])
def test_a_prompt_without_prefix_takes_no_tokens(layers: tuple[int, ...]) -> None:
    pool, prompt = make_pool(), make_prompt(0, layers=layers)
    slot = pool.admit("a", staged(prompt))
    assert slot.prefix.length == 0
    assert_holds(pool, slot, prompt)
    pool.check_integrity()


def test_slot_zero_has_no_prefix_in_any_layer() -> None:
    pool = make_pool()
    numbers = [pool.admit(str(number), staged(make_prompt(3))).number for number in range(5)]
    assert NO_PROMPT_SLOT not in numbers
    assert all(prefix.slot_length_S[NO_PROMPT_SLOT] == 0 for prefix in pool.layer_prefixes)


def test_the_budget_is_kept() -> None:
    pool = PromptPool(BACKBONE, 100_000, dtype=torch.float32, device=CPU)
    arenas = (pool._k_HND, pool._v_HND, pool.head_rows_QM, pool.head_bias_Q)
    assert 0.95 * 100_000 < sum(arena.nbytes for arena in arenas) <= 100_000


def test_the_least_recently_used_prompt_goes_first() -> None:
    pool = make_pool(num_tokens=3 * 48)
    for name in "abc":
        pool.admit(name, staged(make_prompt(10)))
    pool.resident("a")
    pool.admit("d", staged(make_prompt(10)))
    assert [name in pool for name in "abcd"] == [True, False, True, True]
    assert pool.state().evictions["room"] == 1
    pool.check_integrity()


def test_a_leased_prompt_is_not_evicted() -> None:
    pool = make_pool(num_tokens=2 * 48)
    with pool.lease() as lease:
        lease.hold("a", staged(make_prompt(10)))
        pool.admit("b", staged(make_prompt(10)))
        assert pool.can_admit(staged(make_prompt(10)))
        pool.admit("c", staged(make_prompt(10)))
        assert "a" in pool
        assert "b" not in pool
        lease.verify()
    pool.check_integrity()


def test_a_full_pool_of_leased_prompts_can_admit_nothing() -> None:
    pool = make_pool(num_tokens=48)
    with pool.lease() as lease:
        lease.hold("a", staged(make_prompt(10)))
        assert not pool.can_admit(staged(make_prompt(1)))
        assert not lease.can_hold("b", staged(make_prompt(1)))
        assert lease.can_hold("a", staged(make_prompt(10)))
    assert pool.can_admit(staged(make_prompt(1)))


def test_head_rows_are_a_budget_of_their_own() -> None:
    pool = make_pool(num_rows=8)
    with pool.lease() as lease:
        lease.hold("a", staged(make_prompt(0, classes=5)))
        assert not pool.can_admit(staged(make_prompt(0, classes=4)))
        assert pool.can_admit(staged(make_prompt(0, classes=3)))


def test_two_leases_of_one_prompt_both_have_to_end() -> None:
    pool, prompt = make_pool(), staged(make_prompt(4))
    first, second = pool.lease(), pool.lease()
    first.hold("a", prompt)
    second.hold("a", prompt)
    first.release()
    assert not pool.drop("a")
    second.release()
    assert pool.drop("a")
    assert "a" not in pool
    pool.check_integrity()


def test_a_slot_given_away_under_a_lease_is_noticed() -> None:
    pool = make_pool()
    lease = pool.lease()
    slot = lease.hold("a", staged(make_prompt(4)))
    pool._evict(slot, "room")
    with pytest.raises(AssertionError, match="given away"):
        lease.verify()


def test_a_prompt_that_could_never_fit_is_refused_by_name() -> None:
    pool = make_pool(num_tokens=48, num_rows=4)
    with pytest.raises(PromptTooLarge, match="96 prefix tokens"):
        pool.check_fits(staged(make_prompt(17)))
    with pytest.raises(PromptTooLarge, match="10 head rows"):
        pool.check_fits(staged(make_prompt(1, own_pooler=True)))


def test_an_evicted_slot_reads_as_no_prefix() -> None:
    pool = make_pool()
    slot = pool.admit("a", staged(make_prompt(20)))
    pool.drop("a")
    assert all(prefix.slot_length_S[slot.number] == 0 for prefix in pool.layer_prefixes)


def test_values_that_overflow_in_the_pools_dtype_are_refused() -> None:
    prompt = make_prompt(2)
    prompt.kv_N2HPD[0, 1, 0, 0, 0] = 70_000.0
    assert stage(prompt, torch.bfloat16, CPU).kv_2HWD.dtype == torch.bfloat16
    with pytest.raises(OverflowsHalf, match=r"7e\+04"):
        stage(prompt, torch.float16, CPU)


@pytest.mark.parametrize("length", [0, 1, 16, 17])
@pytest.mark.parametrize("own_pooler", [False, True])
def test_a_staged_prompt_is_seen_as_the_prompt_it_was(length: int, own_pooler: bool) -> None:
    prompt = make_prompt(length, layers=(0, 2), own_pooler=own_pooler)
    same = as_views(prompt, staged(prompt))
    assert torch.equal(same.kv_N2HPD, prompt.kv_N2HPD)
    assert torch.equal(same.head.weight_CM, prompt.head.weight_CM)
    if own_pooler:
        assert torch.equal(same.head.pooler_weight_MM, prompt.head.pooler_weight_MM)
        assert torch.equal(same.head.pooler_bias_M, prompt.head.pooler_bias_M)


def test_compaction_makes_one_free_piece_and_keeps_every_prompt() -> None:
    pool = make_pool(num_tokens=6 * 48, num_rows=12)
    prompts = {name: make_prompt(10, seed=number) for number, name in enumerate("abcdef")}
    slots = {name: pool.admit(name, staged(prompt)) for name, prompt in prompts.items()}
    for name in "ace":
        pool.drop(name)
    assert pool.is_fragmented
    while pool.compact_step():
        pool.check_integrity()
    assert pool._tokens.largest_free == pool._tokens.num_free == 3 * 48
    for name in "bdf":
        assert_holds(pool, slots[name], prompts[name])


def test_compaction_leaves_leased_prompts_where_they_are() -> None:
    pool = make_pool()
    pool.admit("a", staged(make_prompt(10)))
    lease = pool.lease()
    slot = lease.hold("b", staged(make_prompt(10)))
    start = slot.prefix.start
    pool.drop("a")
    assert not pool.compact_step()
    assert slot.prefix.start == start


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60))
def test_runs_are_never_shared_and_never_lost(steps: list[tuple[bool, int]]) -> None:
    runs, held = Runs(40), []
    for takes, number in steps:
        if takes and runs.can_take(number):
            held.append(runs.take(number))
        elif not takes and held:
            runs.give_back(held.pop(number % len(held)))
        units = sorted(unit for run in (*held, *runs.free) for unit in range(run.start, run.end))
        assert units == list(range(40))
        assert all(a.end < b.start for a, b in zip(runs.free, runs.free[1:], strict=False)), "free neighbours"


LENGTHS = (0, 1, 5, 16, 17, 40)
PROMPTS = {
    f"r{number}": make_prompt(
        LENGTHS[number % 6], layers=((0, 1, 2), (1,), (0, 2))[number % 3], classes=1 + number % 5,
        own_pooler=number % 4 == 0, seed=number,
    )
    for number in range(12)
}  # fmt: skip
STAGED = {name: staged(prompt) for name, prompt in PROMPTS.items()}


class PoolMachine(RuleBasedStateMachine):
    """Leases, drops and compaction in any order: leased prompts read back exactly, free memory is NaN throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(num_tokens=16 * 18, num_rows=40)
        self.leases: list[tuple[dict[str, Slot], object]] = []
        poison_free_memory(self.pool)

    @rule(names=st.lists(st.sampled_from(sorted(PROMPTS)), min_size=1, max_size=5))
    def lease(self, names: list[str]) -> None:
        lease, held = self.pool.lease(), {}
        for name in names:
            if lease.can_hold(name, STAGED[name]):
                held[name] = lease.hold(name, STAGED[name])
        self.leases.append((held, lease))
        assert held or self.leases[:-1], "an idle pool can hold any prompt that fits"

    @precondition(lambda self: self.leases)
    @rule(pick=st.integers(0, 100))
    def release(self, pick: int) -> None:
        self.leases.pop(pick % len(self.leases))[1].release()

    @rule(name=st.sampled_from(sorted(PROMPTS)))
    def drop(self, name: str) -> None:
        leased = any(name in held for held, _ in self.leases)
        assert self.pool.drop(name) == (not leased)

    @rule()
    def compact(self) -> None:
        self.pool.compact_step()

    @invariant()
    def leased_prompts_are_intact(self) -> None:
        poison_free_memory(self.pool)
        self.pool.check_integrity()
        for held, lease in self.leases:
            lease.verify()
            for name, slot in held.items():
                assert_holds(self.pool, slot, PROMPTS[name])


PoolMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestPoolMachine = PoolMachine.TestCase
