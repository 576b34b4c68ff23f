"""PromptPool: the device memory for prefixes and heads, managed by bytes.

One arena of keys and one of values shared by all layers, one arena of head rows, where shallow prompts lie too. A slot
is a contiguous run of the first two with all prompted layers of one prompt back to back, and a run of the third. A
leased slot stays; the least recently used of the others goes when room is needed. What is freed cannot be read: its
slot's lengths are zero. Prefixes may be quantised; then a table holds what each slot's keys and values are times.
It refuses to know tasks, tenants, stores, batches and metrics, and belongs to one thread.

Shape letters: L layers, H heads, N pool tokens, D head dim, S slots, Q head rows, M model width, W tokens of a run.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch

from prefixbank.kernels.plan import NO_PROMPT_SLOT, LayerPrefix
from prefixbank.kernels.quantise import can_read
from prefixbank.model_store.errors import InvalidConfig, PromptTooLarge
from prefixbank.serving.pool_bytes import PoolBytes, Sizes
from prefixbank.serving.runs import Run, Runs, widest_gap
from prefixbank.serving.staging import aligned
from prefixbank.serving.tier import TierState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from prefixbank.model_store.task_prompt import BackboneRef
    from prefixbank.serving.staging import StagedPrompt


@dataclass(eq=False, slots=True)
class Slot:
    """Where one resident prompt lies. Only the pool changes it, and never while it is leased."""

    number: int
    """Index into the slot tables."""
    revision: str
    prefix: Run
    """Tokens of the K/V arenas."""
    head: Run
    """Rows of the head arena: the classifier, then an own pooler, then the vectors of a shallow prompt."""
    layers: tuple[int, ...]
    prefix_length: int
    num_classes: int
    scale_N2H: Tensor | None
    """On the host, of the prompted layers; None where prefixes are stored as they are."""
    num_virtual: int
    """Vectors of a shallow prompt."""
    num_leases: int = 0

    @property
    def pooler_start(self) -> int:
        """First row of an own pooler."""
        return self.head.start + self.num_classes

    @property
    def virtual_start(self) -> int:
        """First vector of a shallow prompt."""
        return self.head.end - self.num_virtual


class PromptPool:
    """Prefixes and heads on one device within `budget_bytes`, of which `head_share` is for heads.

    Args:
        dtype: the backbone's.
        prefix_dtype: int8 or float8_e4m3fn to store prefixes quantised; None for `dtype`.

    Raises:
        InvalidConfig: when the device cannot read prefixes of `prefix_dtype`.
    """

    def __init__(
        self,
        backbone: BackboneRef,
        budget_bytes: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        prefix_dtype: torch.dtype | None = None,
        head_share: float = 0.25,
    ) -> None:
        if prefix_dtype is not None and not can_read(prefix_dtype, device):
            name = str(prefix_dtype).removeprefix("torch.")
            raise InvalidConfig(
                f"prefix_dtype: found {name}, wanted int8 or auto: {device} cannot read it (a GPU needs compute "
                f"capability 8.9)"
            )
        layers, heads, dim, width = backbone.num_layers, backbone.num_heads, backbone.head_dim, backbone.width
        self.prefix_dtype = stored = prefix_dtype or dtype
        self._bytes = PoolBytes.of(backbone, stored, is_quantised=prefix_dtype is not None)
        num_tokens, num_rows, num_slots = self._bytes.sizes(budget_bytes, head_share)
        self._k_HND = _zeros((heads, num_tokens, dim), stored, device)
        self._v_HND = _zeros((heads, num_tokens, dim), stored, device)
        self.head_rows_QM = _zeros((num_rows, width), torch.float32, device)
        self.head_bias_Q = _zeros((num_rows,), torch.float32, device)
        self._start_LS = torch.zeros(layers, num_slots, dtype=torch.int32, device=device)
        self._length_LS = torch.zeros_like(self._start_LS)
        self._scale_LS2H = None if prefix_dtype is None else torch.ones(layers, num_slots, 2, heads, device=device)
        scales = [None] * layers if self._scale_LS2H is None else self._scale_LS2H
        self.layer_prefixes = [
            LayerPrefix(self._k_HND, self._v_HND, *tables)
            for tables in zip(self._start_LS, self._length_LS, scales, strict=True)
        ]

        self._tokens = Runs(num_tokens)
        self._rows = Runs(num_rows)
        self._numbers = [number for number in range(num_slots - 1, -1, -1) if number != NO_PROMPT_SLOT]
        self._slots: OrderedDict[str, Slot] = OrderedDict()  # least recently used first
        self._hits = self._misses = 0
        self._evictions: Counter[str] = Counter()

    def __contains__(self, revision: str) -> bool:
        return revision in self._slots

    def check_fits(self, prompt: StagedPrompt) -> None:
        """Raise PromptTooLarge when even an empty pool could not hold the prompt. Safe from any thread."""
        for needed, capacity, unit in (
            (prompt.num_tokens, self._tokens.capacity, "prefix tokens"),
            (prompt.num_rows, self._rows.capacity, "head rows"),
        ):
            if needed > capacity:
                raise PromptTooLarge(f"the prompt needs {needed} {unit} of pool memory, and the pool has {capacity}")

    def lease(self) -> Lease:
        """An empty lease: hold slots through it, and release it when the batch is done."""
        return Lease(self)

    def can_admit(self, prompt: StagedPrompt) -> bool:
        """Whether the prompt would fit after evicting every slot that is not leased."""
        leased = [slot for slot in self._slots.values() if slot.num_leases]
        return (
            len(leased) < self._start_LS.shape[1] - 1
            and prompt.num_tokens <= widest_gap([slot.prefix for slot in leased], self._tokens.capacity)
            and prompt.num_rows <= widest_gap([slot.head for slot in leased], self._rows.capacity)
        )

    def admit(self, revision: str, prompt: StagedPrompt) -> Slot:
        """Copy a prompt into the pool, evicting as needed; `can_admit` has been asked."""
        assert revision not in self._slots, f"{revision} is admitted twice. This is a bug."
        assert prompt.kv_2HWD.dtype == self.prefix_dtype, f"{revision} was staged for another pool. This is a bug."
        self._make_room(prompt)
        slot = Slot(
            self._numbers.pop(),
            revision,
            self._tokens.take(prompt.num_tokens),
            self._rows.take(prompt.num_rows),
            prompt.layers,
            prompt.prefix_length,
            prompt.num_classes,
            prompt.scale_N2H,
            prompt.num_virtual,
        )
        self._k_HND[:, slot.prefix.start : slot.prefix.end].copy_(prompt.kv_2HWD[0], non_blocking=True)
        self._v_HND[:, slot.prefix.start : slot.prefix.end].copy_(prompt.kv_2HWD[1], non_blocking=True)
        self.head_rows_QM[slot.head.start : slot.head.end].copy_(prompt.rows_QM, non_blocking=True)
        self.head_bias_Q[slot.head.start : slot.head.end].copy_(prompt.bias_Q, non_blocking=True)
        self._write_tables(slot)
        self._write_scales(slot)
        self._slots[revision] = slot
        return slot

    def resident(self, revision: str) -> Slot | None:
        """The slot of a revision, now the most recently used; None when it is not resident."""
        slot = self._slots.get(revision)
        if slot is None:
            self._misses += 1
            return None
        self._hits += 1
        self._slots.move_to_end(revision)
        return slot

    def carries(self, slot: Slot) -> bool:
        """Whether the slot is still the home of its revision."""
        return self._slots.get(slot.revision) is slot

    def drop(self, revision: str) -> bool:
        """Evict a revision that is no longer wanted; False when it is leased and has to be dropped later."""
        slot = self._slots.get(revision)
        if slot is None:
            return True
        if slot.num_leases:
            return False
        self._evict(slot, "dropped")
        return True

    @property
    def is_fragmented(self) -> bool:
        """Less than half of the free memory is in one piece."""
        return any(runs.largest_free * 2 < runs.num_free for runs in (self._tokens, self._rows))

    def compact_step(self) -> bool:
        """Move one slot into the gap before it; False when nothing (more) can be moved."""
        return self._move_prefix() or self._move_head()

    def state(self) -> TierState:
        tokens, rows = (runs.capacity - runs.num_free for runs in (self._tokens, self._rows))
        num_bytes = self._bytes.total(Sizes(tokens, rows, len(self._slots)))
        return TierState(len(self._slots), num_bytes, self._hits, self._misses, self._evictions.copy())

    def check_integrity(self) -> None:
        """Raise AssertionError when books, tables and memory disagree."""
        slots = list(self._slots.values())
        _check_runs([slot.prefix for slot in slots], self._tokens)
        _check_runs([slot.head for slot in slots], self._rows)
        numbers = [*(slot.number for slot in slots), *self._numbers, NO_PROMPT_SLOT]
        assert sorted(numbers) == list(range(self._start_LS.shape[1])), (
            "slot numbers are lost or shared. This is a bug."
        )
        length_LS = torch.zeros_like(self._length_LS)
        for slot in slots:
            assert slot.num_leases >= 0, "a slot is released more often than leased. This is a bug."
            for part, layer in enumerate(slot.layers):
                length_LS[layer, slot.number] = slot.prefix_length
                start = slot.prefix.start + part * aligned(slot.prefix_length)
                assert self._start_LS[layer, slot.number] == start or not slot.prefix_length, "a table is wrong"
                pad = slice(start + slot.prefix_length, start + aligned(slot.prefix_length))
                for arena_HND in (self._k_HND, self._v_HND):
                    as_bytes = arena_HND[:, pad].view(torch.uint8)
                    assert not as_bytes.any(), "the pad tokens of a slot are not zero. This is a bug."
        assert torch.equal(length_LS, self._length_LS), "a length of the tables is not its slot's. This is a bug."
        self._check_scales()

    def _make_room(self, prompt: StagedPrompt) -> None:
        while not (self._numbers and self._tokens.can_take(prompt.num_tokens) and self._rows.can_take(prompt.num_rows)):
            victim = next((slot for slot in self._slots.values() if not slot.num_leases), None)
            assert victim is not None, "nothing is left to evict, and can_admit was not heeded. This is a bug."
            self._evict(victim, "room")

    def _evict(self, slot: Slot, reason: str) -> None:
        del self._slots[slot.revision]
        self._length_LS[:, slot.number] = 0
        self._tokens.give_back(slot.prefix)
        self._rows.give_back(slot.head)
        self._numbers.append(slot.number)
        self._evictions[reason] += 1

    def _check_scales(self) -> None:
        """Each slot is times what its prompt was divided by; the slot of no prompt is times 1."""
        if self._scale_LS2H is None:
            return
        assert (self._scale_LS2H[:, NO_PROMPT_SLOT] == 1).all(), "no prompt has a scale. This is a bug."
        for slot in self._slots.values():
            found_L2H, wanted_L2H = self._scale_LS2H[:, slot.number].cpu(), self._scales_of(slot)
            assert torch.equal(found_L2H, wanted_L2H), "a scale of the table is not its slot's. This is a bug."

    def _write_tables(self, slot: Slot) -> None:
        columns_2L = torch.zeros(2, self._start_LS.shape[0], dtype=torch.int32)
        for part, layer in enumerate(slot.layers):
            columns_2L[0, layer] = slot.prefix.start + part * aligned(slot.prefix_length)
            columns_2L[1, layer] = slot.prefix_length
        self._start_LS[:, slot.number] = columns_2L[0].to(self._start_LS.device)
        self._length_LS[:, slot.number] = columns_2L[1].to(self._length_LS.device)

    def _write_scales(self, slot: Slot) -> None:
        if self._scale_LS2H is not None:
            self._scale_LS2H[:, slot.number] = self._scales_of(slot).to(self._scale_LS2H.device)

    def _scales_of(self, slot: Slot) -> Tensor:
        """[L, 2, H] on the host; a layer without a prompt is times 1."""
        assert self._scale_LS2H is not None
        assert slot.scale_N2H is not None, "a prompt staged as it is came to a quantised pool. This is a bug."
        layers, _, *shape = self._scale_LS2H.shape
        scale_L2H = torch.ones(layers, *shape)
        scale_L2H[list(slot.layers)] = slot.scale_N2H
        return scale_L2H

    def _move_prefix(self) -> bool:
        slot = _behind_gap(self._slots.values(), self._tokens, "prefix")
        if slot is None:
            return False
        old = slot.prefix
        self._tokens.give_back(old)
        slot.prefix = new = self._tokens.take(old.length)
        for arena_HND in (self._k_HND, self._v_HND):
            arena_HND[:, new.start : new.end] = arena_HND[:, old.start : old.end].clone()
        self._write_tables(slot)
        return True

    def _move_head(self) -> bool:
        slot = _behind_gap(self._slots.values(), self._rows, "head")
        if slot is None:
            return False
        old = slot.head
        self._rows.give_back(old)
        slot.head = new = self._rows.take(old.length)
        for arena in (self.head_rows_QM, self.head_bias_Q):
            arena[new.start : new.end] = arena[old.start : old.end].clone()
        return True


class Lease:
    """A held right to some slots: while held they are neither evicted nor moved. A context manager."""

    def __init__(self, pool: PromptPool) -> None:
        self._pool = pool
        self._held: dict[str, tuple[Slot, int]] = {}  # revision -> its slot, and the number it had

    def can_hold(self, revision: str, prompt: StagedPrompt) -> bool:
        """Whether `hold` would succeed now."""
        return revision in self._held or revision in self._pool or self._pool.can_admit(prompt)

    def hold(self, revision: str, prompt: StagedPrompt) -> Slot:
        """The revision's slot, made resident if it is not; `can_hold` has been asked."""
        if revision in self._held:
            return self._held[revision][0]
        slot = self._pool.resident(revision) or self._pool.admit(revision, prompt)
        slot.num_leases += 1
        self._held[revision] = (slot, slot.number)
        return slot

    def verify(self) -> None:
        """Assert that each held slot still carries the revision it was leased for."""
        for revision, (slot, number) in self._held.items():
            assert slot.revision == revision, f"the slot of {revision} carries {slot.revision}. This is a bug."
            assert slot.number == number, f"the leased slot of {revision} has moved. This is a bug."
            assert self._pool.carries(slot), f"the leased slot of {revision} was given away. This is a bug."

    def release(self) -> None:
        for slot, _ in self._held.values():
            slot.num_leases -= 1
        self._held.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the CPU the system hands out the pages when they are first written, so an empty pool costs nothing."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def _check_runs(held: list[Run], runs: Runs) -> None:
    """Held and free runs together cover every unit exactly once."""
    pieces = sorted([*(run for run in held if run.length), *runs.free])
    cursor = 0
    for run in pieces:
        assert run.start == cursor, f"{run} begins where {cursor} was expected. This is a bug."
        cursor = run.end
    assert cursor == runs.capacity, f"the runs end at {cursor} of {runs.capacity}. This is a bug."


def _behind_gap(slots: Iterable[Slot], runs: Runs, part: Literal["prefix", "head"]) -> Slot | None:
    """The slot whose run begins where the first free run ends; None at the end of memory or when it is leased."""
    gap = runs.first_free
    if gap is None:
        return None
    behind = (slot for slot in slots if getattr(slot, part).length and getattr(slot, part).start == gap.end)
    slot = next(behind, None)
    return slot if slot is not None and not slot.num_leases else None
