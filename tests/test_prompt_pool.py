"""The pool holds what it says it holds, evicts only what nobody leases, and never shows freed memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefixbank.kernels.plan import NO_PROMPT_SLOT, LayerPrefix
from prefixbank.kernels.quantise import dequantise, quantise
from prefixbank.model_store.errors import InvalidConfig, OverflowsHalf, PromptTooLarge
from prefixbank.model_store.task_prompt import (
    BackboneRef,
    Head,
    HeadSpec,
    Pooler,
    Preprocessing,
    TaskFamily,
    TaskPrompt,
)
from prefixbank.serving.pool_bytes import PoolBytes, Sizes
from prefixbank.serving.prompt_pool import PromptPool, Slot
from prefixbank.serving.runs import Runs
from prefixbank.serving.staging import StagedPrompt, as_views, stage

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS, HEADS, DIM, WIDTH = 3, 2, 4, 8
CPU = torch.device("cpu")
BACKBONE = BackboneRef(
    fingerprint="0" * 64, architecture="bert", num_layers=LAYERS, num_heads=HEADS, head_dim=DIM, width=WIDTH
)
TOKEN_NUMBERS, ROW_BYTES = 2 * HEADS * DIM, 4 * (WIDTH + 1)
STORED = (None, torch.int8, torch.float8_e4m3fn)
"""What a pool may store prefixes in; None is the backbone's dtype, here float32."""


def make_prompt(
    length: int,
    *,
    layers: tuple[int, ...] = (0, 1, 2),
    classes: int = 2,
    own_pooler: bool = False,
    seed: int = 0,
    shallow: int = 0,
) -> TaskPrompt:
    """A prompt of random numbers; one of `shallow` vectors has no layers."""
    random = torch.Generator().manual_seed(seed)
    layers, length = ((), 0) if shallow else (layers, length)
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
        shallow_PM=torch.randn(shallow, WIDTH, generator=random) if shallow else None,
    )


def staged(prompt: TaskPrompt, prefix_dtype: torch.dtype | None = None) -> StagedPrompt:
    return stage(prompt, torch.float32, CPU, prefix_dtype)


def make_pool(num_tokens: int = 480, num_rows: int = 64, prefix_dtype: torch.dtype | None = None) -> PromptPool:
    """A pool of exactly so many tokens and rows."""
    stored = prefix_dtype or torch.float32
    each, num_slots = PoolBytes.of(BACKBONE, stored, is_quantised=prefix_dtype is not None), 0
    for _ in range(5):  # what a budget pays for depends on its tables, and they on the budget
        budget = each.total(Sizes(num_tokens, num_rows, num_slots)) + 2
        share = (num_rows * ROW_BYTES + 1) / budget
        num_slots = each.sizes(budget, share).num_slots
    pool = PromptPool(BACKBONE, budget, dtype=torch.float32, device=CPU, prefix_dtype=prefix_dtype, head_share=share)
    assert (pool._tokens.capacity, pool._rows.capacity) == (num_tokens, num_rows)
    return pool


def stored_prefix(prefix: LayerPrefix, slot: Slot) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a slot as a kernel reads them."""
    lent = slice(int(prefix.slot_start_S[slot.number]), int((prefix.slot_start_S + prefix.slot_length_S)[slot.number]))
    kv_2HPD = (prefix.pool_k_HND[:, lent], prefix.pool_v_HND[:, lent])
    if prefix.slot_scale_S2H is None:
        return kv_2HPD
    k_HPD, v_HPD = (
        dequantise(x, scale_H) for x, scale_H in zip(kv_2HPD, prefix.slot_scale_S2H[slot.number], strict=True)
    )
    return k_HPD, v_HPD


def assert_holds(pool: PromptPool, slot: Slot, prompt: TaskPrompt) -> None:
    """What a kernel reads through the tables, and a head through the arena, is the prompt as it was quantised."""
    stored, kv_N2HPD = pool.prefix_dtype, prompt.kv_N2HPD
    if stored != torch.float32:
        kv_N2HPD = dequantise(*quantise(kv_N2HPD, stored))
    for layer, prefix in enumerate(pool.layer_prefixes):
        start, length = int(prefix.slot_start_S[slot.number]), int(prefix.slot_length_S[slot.number])
        expected = prompt.prefix_length if layer in prompt.layers else 0
        assert length == expected
        if expected:
            found_HPD, wanted_HPD = stored_prefix(prefix, slot), kv_N2HPD[prompt.layers.index(layer)]
            assert torch.equal(found_HPD[0], wanted_HPD[0])
            assert torch.equal(found_HPD[1], wanted_HPD[1])
            assert start % 16 == 0
    classes = prompt.head.bias_C.numel()
    assert torch.equal(pool.head_rows_QM[slot.head.start :][:classes], prompt.head.weight_CM)
    assert torch.equal(pool.head_bias_Q[slot.head.start :][:classes], prompt.head.bias_C)
    if prompt.head.pooler_weight_MM is not None:
        assert torch.equal(pool.head_rows_QM[slot.pooler_start :][:WIDTH], prompt.head.pooler_weight_MM)
        assert torch.equal(pool.head_bias_Q[slot.pooler_start :][:WIDTH], prompt.head.pooler_bias_M)
    assert slot.num_virtual == prompt.shallow_length
    if prompt.shallow_PM is not None:
        assert torch.equal(pool.head_rows_QM[slot.virtual_start :][: slot.num_virtual], prompt.shallow_PM)


def poison_free_memory(pool: PromptPool) -> None:
    """Whoever reads what is not his sees NaN, or in int8 the largest number times NaN."""
    for run in pool._tokens.free:
        for arena_HND in (pool._k_HND, pool._v_HND):
            arena_HND[:, run.start : run.end].view(torch.uint8)[:] = 0x7F  # in a float of one byte or two: NaN
            if pool.prefix_dtype == torch.float32:
                arena_HND[:, run.start : run.end] = float("nan")
    if pool._scale_LS2H is not None:
        pool._scale_LS2H[:, pool._numbers] = float("nan")
    for run in pool._rows.free:
        pool.head_rows_QM[run.start : run.end] = float("nan")
        pool.head_bias_Q[run.start : run.end] = float("nan")


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("length", [1, 5, 16, 17, 64])
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,), (0, 2)])
def test_an_admitted_prompt_is_read_back_through_the_tables(
    length: int, layers: tuple[int, ...], stored: torch.dtype | None
) -> None:
    pool, prompt = make_pool(prefix_dtype=stored), make_prompt(length, layers=layers, own_pooler=True)
    poison_free_memory(pool)
    slot = pool.admit("a", staged(prompt, stored))
    assert_holds(pool, slot, prompt)
    pool.check_integrity()


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("layers", [(), (0, 1, 2)])
def test_a_prompt_without_prefix_takes_no_tokens(layers: tuple[int, ...], stored: torch.dtype | None) -> None:
    pool, prompt = make_pool(prefix_dtype=stored), make_prompt(0, layers=layers)
    slot = pool.admit("a", staged(prompt, stored))
    assert slot.prefix.length == 0
    assert_holds(pool, slot, prompt)
    pool.check_integrity()


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("own_pooler", [False, True])
def test_a_shallow_prompt_lies_behind_its_head_and_takes_no_prefix(
    own_pooler: bool, stored: torch.dtype | None
) -> None:
    pool, prompt = make_pool(prefix_dtype=stored), make_prompt(0, shallow=5, own_pooler=own_pooler)
    poison_free_memory(pool)
    slot = pool.admit("a", staged(prompt, stored))
    assert (slot.prefix.length, slot.head.length) == (0, 2 + 8 * own_pooler + 5)
    assert_holds(pool, slot, prompt)
    pool.check_integrity()


def test_the_vectors_of_a_shallow_prompt_are_rows_of_the_heads_budget() -> None:
    pool = make_pool(num_rows=10)
    before = pool.state().num_bytes
    pool.admit("a", staged(make_prompt(0, shallow=5)))
    assert pool.state().num_bytes - before == 7 * ROW_BYTES + LAYERS * 2 * 4
    pool.admit("b", staged(make_prompt(0, shallow=4)))
    assert pool.state().evictions["room"] == 1
    with pytest.raises(PromptTooLarge, match="11 head rows"):
        pool.check_fits(staged(make_prompt(0, shallow=9)))


def test_slot_zero_has_no_prefix_in_any_layer() -> None:
    pool = make_pool()
    numbers = [pool.admit(str(number), staged(make_prompt(3))).number for number in range(5)]
    assert NO_PROMPT_SLOT not in numbers
    assert all(prefix.slot_length_S[NO_PROMPT_SLOT] == 0 for prefix in pool.layer_prefixes)


def held_bytes(pool: PromptPool) -> int:
    arenas = (pool._k_HND, pool._v_HND, pool.head_rows_QM, pool.head_bias_Q)
    tables = (pool._start_LS, pool._length_LS, pool._scale_LS2H)
    return sum(tensor.nbytes for tensor in (*arenas, *tables) if tensor is not None)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("budget", [50_000, 2**20])
def test_the_budget_is_kept_tables_included(stored: torch.dtype | None, budget: int) -> None:
    pool = PromptPool(BACKBONE, budget, dtype=torch.float32, device=CPU, prefix_dtype=stored)
    assert 0.95 * budget < held_bytes(pool) <= budget


def test_a_prompt_in_one_byte_takes_half_of_what_it_takes_in_two() -> None:
    taken = []
    for stored in (None, torch.int8):
        pool = PromptPool(BACKBONE, 2**20, dtype=torch.bfloat16, device=CPU, prefix_dtype=stored)
        assert pool.state().num_bytes == 0
        pool.admit("a", stage(make_prompt(64, classes=1), torch.bfloat16, CPU, stored))
        taken.append(pool.state().num_bytes - ROW_BYTES)
    tables, scales = LAYERS * 2 * 4, LAYERS * 2 * HEADS * 4
    assert taken[0] == LAYERS * 64 * TOKEN_NUMBERS * 2 + tables
    assert taken[1] == LAYERS * 64 * TOKEN_NUMBERS + tables + scales


def test_a_prompt_staged_for_another_dtype_is_not_admitted() -> None:
    with pytest.raises(AssertionError, match="staged for another pool"):
        make_pool().admit("a", staged(make_prompt(5), torch.int8))
    with pytest.raises(AssertionError, match="staged for another pool"):
        make_pool(prefix_dtype=torch.int8).admit("a", staged(make_prompt(5)))


@pytest.mark.parametrize("spoil", [torch.Tensor.zero_, lambda x: x.mul_(2), lambda x: x.fill_(float("nan"))])
def test_a_scale_that_is_not_its_slots_is_noticed(spoil: Callable[[torch.Tensor], object]) -> None:
    pool = make_pool(prefix_dtype=torch.int8)
    slot = pool.admit("a", staged(make_prompt(5), torch.int8))
    pool.check_integrity()
    spoil(pool.layer_prefixes[1].slot_scale_S2H[slot.number, 1, 0])
    with pytest.raises(AssertionError, match="scale"):
        pool.check_integrity()


def test_a_slot_that_changes_hands_takes_the_scales_of_the_next_prompt() -> None:
    pool, loud, quiet = make_pool(prefix_dtype=torch.int8), make_prompt(5), make_prompt(5, layers=(1,), seed=1)
    loud.kv_N2HPD.mul_(100)
    first = pool.admit("loud", staged(loud, torch.int8))
    pool.drop("loud")
    second = pool.admit("quiet", staged(quiet, torch.int8))
    assert second.number == first.number
    assert_holds(pool, second, quiet)
    assert all((pool.layer_prefixes[layer].slot_scale_S2H[second.number] == 1).all() for layer in (0, 2))
    pool.check_integrity()


def test_a_gpu_that_cannot_read_fp8_is_refused_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(InvalidConfig, match="float8_e4m3fn, wanted int8 or auto: cuda cannot read it"):
        PromptPool(
            BACKBONE,
            2**20,
            dtype=torch.bfloat16,
            device=torch.device("cuda"),
            prefix_dtype=torch.float8_e4m3fn,
        )


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


def test_a_shallow_prompt_that_overflows_in_the_backbones_dtype_is_refused() -> None:
    prompt = make_prompt(0, shallow=2)
    assert prompt.shallow_PM is not None
    prompt.shallow_PM[1, 0] = 70_000.0
    assert stage(prompt, torch.bfloat16, CPU).num_virtual == 2
    with pytest.raises(OverflowsHalf, match=r"the shallow prompt reaches 7e\+04"):
        stage(prompt, torch.float16, CPU)


def test_what_overflows_in_the_backbones_dtype_is_refused_however_it_is_stored() -> None:
    prompt = make_prompt(2)
    prompt.kv_N2HPD[0, 1, 0, 0, 0] = 70_000.0
    assert stage(prompt, torch.bfloat16, CPU, torch.int8).kv_2HWD.dtype == torch.int8
    with pytest.raises(OverflowsHalf, match=r"7e\+04"):
        stage(prompt, torch.float16, CPU, torch.int8)


def test_a_quantised_prefix_cannot_be_read_as_the_prompts() -> None:
    prompt = make_prompt(17, layers=(0, 2), own_pooler=True)
    same = as_views(prompt, staged(prompt, torch.int8))
    assert same.kv_N2HPD.shape == prompt.kv_N2HPD.shape
    assert torch.equal(same.head.weight_CM, prompt.head.weight_CM)
    with pytest.raises(NotImplementedError, match="meta"):
        same.kv_N2HPD.cpu()


def test_the_bytes_of_a_staged_prompt_include_its_scales() -> None:
    plain, quantised = (staged(make_prompt(16), stored) for stored in (None, torch.int8))
    assert quantised.kv_2HWD.nbytes * 4 == plain.kv_2HWD.nbytes
    assert quantised.num_bytes == plain.num_bytes - 3 * quantised.kv_2HWD.nbytes + LAYERS * 2 * HEADS * 4


@pytest.mark.parametrize("length", [0, 1, 16, 17])
@pytest.mark.parametrize("own_pooler", [False, True])
@pytest.mark.parametrize("shallow", [0, 3])
def test_a_staged_prompt_is_seen_as_the_prompt_it_was(length: int, own_pooler: bool, shallow: int) -> None:
    prompt = make_prompt(length, layers=(0, 2), own_pooler=own_pooler, shallow=shallow)
    same = as_views(prompt, staged(prompt))
    assert same.shallow_length == shallow
    if same.shallow_PM is not None:
        assert torch.equal(same.shallow_PM, prompt.shallow_PM)
    assert torch.equal(same.kv_N2HPD, prompt.kv_N2HPD)
    assert torch.equal(same.head.weight_CM, prompt.head.weight_CM)
    if own_pooler:
        assert torch.equal(same.head.pooler_weight_MM, prompt.head.pooler_weight_MM)
        assert torch.equal(same.head.pooler_bias_M, prompt.head.pooler_bias_M)


@pytest.mark.parametrize("stored", STORED)
def test_compaction_makes_one_free_piece_and_keeps_every_prompt(stored: torch.dtype | None) -> None:
    pool = make_pool(num_tokens=6 * 48, num_rows=12, prefix_dtype=stored)
    prompts = {name: make_prompt(10, seed=number) for number, name in enumerate("abcdef")}
    slots = {name: pool.admit(name, staged(prompt, stored)) for name, prompt in prompts.items()}
    for name in "ace":
        pool.drop(name)
    assert pool.is_fragmented
    while pool.compact_step():
        pool.check_integrity()
    assert pool._tokens.largest_free == pool._tokens.num_free == 3 * 48
    for name in "bdf":
        assert_holds(pool, slots[name], prompts[name])


def test_compaction_moves_the_vectors_of_shallow_prompts_with_their_heads() -> None:
    pool = make_pool(num_rows=24)
    prompts = {name: make_prompt(0, shallow=4, seed=ord(name)) for name in "abc"}
    prompts["d"] = make_prompt(0, shallow=2, classes=1, seed=9)
    slots = {name: pool.admit(name, staged(prompt)) for name, prompt in prompts.items()}
    for name in "ac":
        pool.drop(name)
    while pool.compact_step():
        poison_free_memory(pool)
        pool.check_integrity()
    assert pool._rows.largest_free == pool._rows.num_free == 24 - 6 - 3
    for name in "bd":
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
        own_pooler=number % 4 == 0, seed=number, shallow=number if number in (3, 4, 9) else 0,
    )
    for number in range(12)
}  # fmt: skip


class PoolMachine(RuleBasedStateMachine):
    """Leases, drops and compaction in any order: leased prompts read back exactly, free memory is NaN throughout."""

    stored: torch.dtype | None = None

    def __init__(self) -> None:
        super().__init__()
        self.staged = {name: staged(prompt, self.stored) for name, prompt in PROMPTS.items()}
        self.pool = make_pool(num_tokens=16 * 18, num_rows=40, prefix_dtype=self.stored)
        self.leases: list[tuple[dict[str, Slot], object]] = []
        poison_free_memory(self.pool)

    @rule(names=st.lists(st.sampled_from(sorted(PROMPTS)), min_size=1, max_size=5))
    def lease(self, names: list[str]) -> None:
        lease, held = self.pool.lease(), {}
        for name in names:
            if lease.can_hold(name, self.staged[name]):
                held[name] = lease.hold(name, self.staged[name])
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


class QuantisedPoolMachine(PoolMachine):
    stored = torch.int8


PoolMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
QuantisedPoolMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestPoolMachine = PoolMachine.TestCase
TestQuantisedPoolMachine = QuantisedPoolMachine.TestCase
