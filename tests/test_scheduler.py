"""The scheduler loses nothing, keeps order within a tenant, shares turns between tenants, and refuses honestly."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefixbank.model_store.errors import DeadlineExceeded, Overloaded, ShuttingDown
from prefixbank.serving.scheduler import QUANTUM_TOKENS, Entry, Scheduler


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeEncoding:
    num_tokens: int


@dataclass
class FakePrompt:
    num_virtual: int


def entry(clock: FakeClock, tenant: str = "a", tokens: int = 10, timeout_s: float = 1e9, virtual: int = 0) -> Entry:
    payload = FakeEncoding(tokens), FakePrompt(virtual)
    return Entry(*payload, Future(), tenant, clock.now + timeout_s, clock.now)  # type: ignore[arg-type]


def scheduler(clock: FakeClock, budget: int = 100, rows: int = 1000, queued: int = 10**9) -> Scheduler:
    return Scheduler(budget, rows, queued, clock)


def drained(queue: Scheduler) -> list[list[Entry]]:
    batches = []
    while batch := queue.next_batch():
        batches.append(batch)
    queue.check_integrity()
    return batches


def test_an_empty_queue_gives_an_empty_batch() -> None:
    assert scheduler(FakeClock()).next_batch() == []


def test_a_batch_stays_within_the_token_budget() -> None:
    clock = FakeClock()
    queue = scheduler(clock, budget=25)
    queue.submit(*(entry(clock) for _ in range(5)))
    assert [len(batch) for batch in drained(queue)] == [2, 2, 1]


def test_the_vectors_of_a_shallow_prompt_cost_what_tokens_cost() -> None:
    clock = FakeClock()
    queue = scheduler(clock, budget=25)
    queue.submit(*(entry(clock, tokens=4, virtual=6 * (i % 2)) for i in range(4)))
    assert [[e.num_tokens for e in batch] for batch in drained(queue)] == [[4, 10, 4], [10]]


def test_a_batch_stays_within_the_row_cap() -> None:
    clock = FakeClock()
    queue = scheduler(clock, rows=3)
    queue.submit(*(entry(clock, tokens=1) for _ in range(7)))
    assert [len(batch) for batch in drained(queue)] == [3, 3, 1]


def test_an_entry_larger_than_the_budget_runs_alone() -> None:
    clock = FakeClock()
    queue = scheduler(clock, budget=50)
    queue.submit(entry(clock, tokens=10), entry(clock, tokens=400), entry(clock, tokens=10))
    assert [[e.num_tokens for e in batch] for batch in drained(queue)] == [[10], [400], [10]]


def test_entries_of_one_request_are_all_queued_or_none() -> None:
    clock = FakeClock()
    queue = scheduler(clock, queued=25)
    queue.submit(entry(clock))
    with pytest.raises(Overloaded):
        queue.submit(entry(clock), entry(clock))
    assert queue.state().depth == 1


def test_a_request_larger_than_the_queue_is_taken_when_the_queue_is_empty() -> None:
    clock = FakeClock()
    queue = scheduler(clock, queued=25)
    queue.submit(entry(clock, tokens=1000))
    assert len(queue.next_batch()) == 1


def test_retry_advice_is_queued_tokens_over_the_recent_drain_rate() -> None:
    clock = FakeClock()
    queue = scheduler(clock, budget=100, queued=500)
    queue.submit(*(entry(clock, tokens=100) for _ in range(5)))
    for _ in range(4):  # 100 tokens each half second
        queue.next_batch()
        clock.now += 0.5
    queue.submit(*(entry(clock, tokens=100) for _ in range(4)))
    with pytest.raises(Overloaded) as refusal:
        queue.submit(entry(clock))
    assert refusal.value.retry_after_s == pytest.approx(500 / 200)


def test_idle_time_does_not_count_as_slow_draining() -> None:
    clock = FakeClock()
    queue = scheduler(clock, queued=100)
    queue.submit(entry(clock, tokens=100))
    queue.next_batch()
    assert queue.next_batch() == []
    clock.now += 3600
    queue.submit(entry(clock, tokens=100))
    with pytest.raises(Overloaded) as refusal:
        queue.submit(entry(clock))
    assert refusal.value.retry_after_s == 1.0


def test_a_late_entry_is_told_so_when_the_batch_is_formed() -> None:
    clock = FakeClock()
    queue = scheduler(clock)
    late, fine = entry(clock, timeout_s=1.0), entry(clock)
    queue.submit(late, fine)
    clock.now += 1.0
    assert queue.next_batch() == [fine]
    with pytest.raises(DeadlineExceeded, match=r"waited 1\.000 s"):
        late.future.result(0)


def test_a_cancelled_entry_is_dropped() -> None:
    clock = FakeClock()
    queue = scheduler(clock)
    gone, fine = entry(clock), entry(clock)
    queue.submit(gone, fine)
    assert gone.future.cancel()
    assert queue.next_batch() == [fine]
    assert queue.state().tokens == 0


def test_an_entry_in_a_batch_can_no_longer_be_cancelled() -> None:
    clock = FakeClock()
    queue = scheduler(clock)
    queue.submit(entry(clock))
    (taken,) = queue.next_batch()
    assert not taken.future.cancel()


def test_a_closed_scheduler_refuses_but_gives_what_it_has() -> None:
    clock = FakeClock()
    queue = scheduler(clock)
    queue.submit(entry(clock))
    queue.close()
    with pytest.raises(ShuttingDown):
        queue.submit(entry(clock))
    assert len(queue.next_batch()) == 1


def test_a_tenant_with_long_rows_gets_no_more_tokens_than_one_with_short_rows() -> None:
    clock = FakeClock()
    queue = scheduler(clock, budget=512)
    queue.submit(*(entry(clock, "long", tokens=500) for _ in range(40)))
    queue.submit(*(entry(clock, "short", tokens=10) for _ in range(2000)))
    tokens = {"long": 0, "short": 0}
    for _ in range(20):
        for taken in queue.next_batch():
            tokens[taken.tenant] += taken.num_tokens
    assert abs(tokens["long"] - tokens["short"]) <= 500 + QUANTUM_TOKENS


@given(flood=st.integers(1, 300), tenants=st.integers(1, 5), tokens=st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_a_quiet_tenant_waits_at_most_one_round_of_turns(flood: int, tenants: int, tokens: int) -> None:
    clock = FakeClock()
    queue = scheduler(clock, budget=64)
    for number in range(tenants):
        queue.submit(*(entry(clock, f"flood{number}", tokens) for _ in range(flood)))
    queue.next_batch()
    queue.submit(entry(clock, "quiet", tokens=QUANTUM_TOKENS))
    before = 0
    for batch in iter(queue.next_batch, []):
        order = [taken.tenant for taken in batch]
        before += sum(tokens for name in order[: order.index("quiet") if "quiet" in order else None])
        if "quiet" in order:
            break
    assert before <= tenants * (QUANTUM_TOKENS + tokens)


class QueueMachine(RuleBasedStateMachine):
    """Random submissions, batches, cancellations and waiting: every entry leaves once, in its tenant's order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.queue = Scheduler(60, 5, 400, self.clock)
        self.waiting: list[Entry] = []
        self.served: list[Entry] = []
        self.accepted: list[Entry] = []

    @rule(
        tenant=st.sampled_from("abc"),
        tokens=st.lists(st.integers(1, 90), min_size=1, max_size=4),
        wait=st.integers(1, 9),
    )
    def submit(self, tenant: str, tokens: list[int], wait: int) -> None:
        entries = [entry(self.clock, tenant, count, wait) for count in tokens]
        queued = self.queue.state().tokens
        if queued and queued + sum(tokens) > 400:
            with pytest.raises(Overloaded):
                self.queue.submit(*entries)
            return
        self.queue.submit(*entries)
        self.accepted += entries
        self.waiting += entries

    @rule()
    def form(self) -> None:
        batch = self.queue.next_batch()
        assert len(batch) <= 5
        assert len(batch) == 1 or sum(one.num_tokens for one in batch) <= 60
        assert all(one.deadline > self.clock.now for one in batch)
        if not batch:
            assert self.queue.state().depth == 0
        self.served += batch
        self.waiting = [one for one in self.waiting if one not in batch and not one.future.done()]

    @precondition(lambda self: self.waiting)
    @rule(pick=st.integers(0, 10**6))
    def cancel(self, pick: int) -> None:
        assert self.waiting[pick % len(self.waiting)].future.cancel()

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def books_agree(self) -> None:
        self.queue.check_integrity()
        assert self.queue.state().depth >= sum(not one.future.done() for one in self.waiting)

    @invariant()
    def order_is_kept_within_a_tenant(self) -> None:
        for tenant in "abc":
            numbers = [self.accepted.index(one) for one in self.served if one.tenant == tenant]
            assert all(first < second for first, second in pairwise(numbers))

    def teardown(self) -> None:
        while self.queue.next_batch():
            pass
        assert all(one.future.done() or one.future.running() for one in self.waiting), "an entry is lost"


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestQueueMachine = QueueMachine.TestCase
