"""Any order of leases, drops and compaction leaves every leased prompt as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefixbank.serving.runs import Runs
from tests.pool_cases import (
    assert_holds,
    make_pool,
    make_prompt,
    poison_free_memory,
    staged,
)

if TYPE_CHECKING:
    from prefixbank.serving.prompt_pool import Slot


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
