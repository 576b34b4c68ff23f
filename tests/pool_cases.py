"""Prompts of random numbers, pools of exact sizes, and what a kernel reads of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.quantise import dequantise, quantise
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
from prefixbank.serving.staging import StagedPrompt, stage

if TYPE_CHECKING:
    from prefixbank.kernels.plan import LayerPrefix

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
