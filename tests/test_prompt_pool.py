"""The pool holds what it says it holds, evicts only what nobody leases, and never shows freed memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank.kernels.plan import NO_PROMPT_SLOT
from prefixbank.model_store.errors import InvalidConfig, OverflowsHalf, PromptTooLarge
from prefixbank.serving.prompt_pool import PromptPool
from prefixbank.serving.staging import as_views, stage
from tests.pool_cases import (
    BACKBONE,
    CPU,
    HEADS,
    LAYERS,
    ROW_BYTES,
    STORED,
    TOKEN_NUMBERS,
    assert_holds,
    make_pool,
    make_prompt,
    poison_free_memory,
    staged,
)

if TYPE_CHECKING:
    from collections.abc import Callable


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
