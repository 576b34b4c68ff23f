"""Engine: the thread that owns device, backbone and pool.

A step decides (take entries, lease their prompts, pack), computes, and accounts (release, complete futures). The
forward runs on a lane of its own, so that one batch is packed while one runs. Nothing that a batch does ends the
engine: a failure fails that batch's entries and is logged.
It refuses to know stores, addresses, text and answers.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prefixbank.model_store.errors import NonFiniteLogits, ShuttingDown, StepFailed
from prefixbank.model_store.tasks import read_positions
from prefixbank.serving.batch import Batch, BatchRow
from prefixbank.serving.compute import compute_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.serving.prompt_pool import Lease, PromptPool, Slot
    from prefixbank.serving.scheduler import Entry, Scheduler

logger = logging.getLogger(__name__)


class BatchReport(NamedTuple):
    """What one batch was and cost."""

    num_tokens: int
    num_tasks: int
    """Distinct prompts."""
    pipelines: tuple[str, ...]
    """Task family of each row."""
    waited_s: tuple[float, ...]
    """Time in the queue of each row."""
    forward_s: float
    num_failed: int
    """Rows that got an error instead of logits."""


class _Computed(NamedTuple):
    rows: list[NDArray[np.float32]]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Step:
    """A batch on its way, with the promises that it will settle."""

    entries: list[Entry]
    lease: Lease
    formed: float
    computed: Future[_Computed]


class Engine:
    """Takes entries from the scheduler until that is closed and empty.

    Args:
        on_batch: is told, on the engine's thread, about each batch.
        clock: the scheduler's clock.
    """

    def __init__(
        self,
        backbone: Backbone,
        pool: PromptPool,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float],
        on_batch: Callable[[BatchReport], None] = lambda report: None,
    ) -> None:
        self._backbone = backbone
        self._pool = pool
        self._scheduler = scheduler
        self._clock = clock
        self._on_batch = on_batch
        self._deferred: list[Entry] = []  # taken from the queue, waiting for room in the pool
        self._running: _Step | None = None
        self._unwanted: deque[str] = deque()  # revisions to drop when the engine is idle
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.num_failed_steps = 0

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Refuse new entries, finish what is queued within the timeout, refuse the rest, and end the thread."""
        self._scheduler.close()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            _fail_pending(self._scheduler.drain(), ShuttingDown("the engine shut down before this row's turn"))
            self._thread.join()
        self._lane.shutdown()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def forget(self, revision: str) -> None:
        """Drop a revision's slot when the engine is idle; until then it ages like the others. Safe from any thread."""
        self._unwanted.append(revision)

    def _run(self) -> None:
        has_more = True
        while has_more:
            try:
                has_more = self.step()
            except Exception:
                self.num_failed_steps += 1
                logger.exception("a step failed outside any batch. This is a bug.")

    def step(self) -> bool:
        """Decide and start one batch, account for the one before; False when the engine has nothing left to do."""
        started = self._start_next()
        finished, self._running = self._running, started
        if finished is not None:
            self._account(finished)
            return True
        return started is not None or self._idle()

    def _start_next(self) -> _Step | None:
        """Decide the next batch and hand it to the lane; None when nothing waits or nothing finds room yet."""
        entries = self._deferred or self._scheduler.next_batch()
        self._deferred = []
        if not entries:
            return None
        lease = self._pool.lease()
        placed: list[Entry] = []
        try:
            placed, slots = self._place(entries, lease)
            if not placed:
                assert self._running is not None, "an idle pool has no room for one prompt. This is a bug."
                return None
            lease.verify()
            batch = Batch.pack([_row(entry, slot) for entry, slot in zip(placed, slots, strict=True)], self._backbone)
        except Exception as error:
            lease.release()
            self._deferred = []
            self._report_failure(entries, error)
            return None
        return _Step(placed, lease, self._clock(), self._lane.submit(self._compute, batch))

    def _place(self, entries: Sequence[Entry], lease: Lease) -> tuple[list[Entry], list[Slot]]:
        """Lease the slots of as many entries as the pool has room for; the others are deferred, in order."""
        placed, slots = [], []
        for entry in entries:
            prompt = entry.prompt
            if lease.can_hold(prompt.revision, prompt.staged):
                slots.append(lease.hold(prompt.revision, prompt.staged))
                placed.append(entry)
            else:
                self._deferred.append(entry)
        return placed, slots

    def _compute(self, batch: Batch) -> _Computed:
        """Runs on the lane: reads the pool, changes nothing."""
        began = self._clock()
        rows = batch.split(compute_logits(batch, self._backbone, self._pool))
        return _Computed(rows, self._clock() - began)

    def _account(self, step: _Step) -> None:
        """Settle every promise of a batch; never raises."""
        try:
            rows, seconds = step.computed.result()
            step.lease.verify()
        except Exception as error:
            self._report_failure(step.entries, error)
            return
        finally:
            step.lease.release()
        num_failed = sum(_settle(entry, row) for entry, row in zip(step.entries, rows, strict=True))
        self._on_batch(
            BatchReport(
                sum(entry.num_tokens for entry in step.entries),
                len({entry.prompt.revision for entry in step.entries}),
                tuple(entry.prompt.task.family for entry in step.entries),
                tuple(step.formed - entry.enqueued for entry in step.entries),
                seconds,
                num_failed,
            )
        )

    def _idle(self) -> bool:
        """Tidy the pool while nothing waits, then sleep until something does; False when nothing will."""
        while self._unwanted:
            self._pool.drop(self._unwanted.popleft())
        while self._pool.is_fragmented and not self._scheduler.has_work and self._pool.compact_step():
            pass
        return self._scheduler.wait_for_work() or not self._scheduler.closed

    def _report_failure(self, entries: Sequence[Entry], error: Exception) -> None:
        self.num_failed_steps += 1
        revisions = sorted({entry.prompt.revision for entry in entries})
        logger.error("a batch of %d rows failed; revisions %s", len(entries), revisions, exc_info=error)
        for entry in entries:
            entry.future.set_exception(StepFailed(f"the engine failed on this batch: {type(error).__name__}"))


def _row(entry: Entry, slot: Slot) -> BatchRow:
    features, prompt = entry.encoding.features, entry.prompt
    assert slot.revision == prompt.revision, f"{prompt.revision} got the slot of {slot.revision}. This is a bug."
    return BatchRow(
        features.token_ids,
        features.type_ids,
        prompt.task.position_offset,
        slot,
        prompt.task.head.spec,
        read_positions(prompt.module, features),
        prompt.module.is_token_level,
    )


def _settle(entry: Entry, row: NDArray[np.float32]) -> bool:
    """Complete one entry; whether it failed."""
    if np.isfinite(row).all():
        entry.future.set_result(row)
        return False
    revision = entry.prompt.revision
    logger.error("revision %s gave logits that are not finite", revision)
    entry.future.set_exception(NonFiniteLogits(f"revision {revision} gave logits that are not finite"))
    return True


def _fail_pending(entries: Sequence[Entry], error: ShuttingDown) -> None:
    for entry in entries:
        if entry.future.set_running_or_notify_cancel():
            entry.future.set_exception(error)
