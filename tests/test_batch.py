"""A batch packs rows grouped by slot, and `split` gives each its own logits back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefixbank.kernels.plan import LayerPrefix
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.task_prompt import Pooler, TaskFamily
from prefixbank.serving.batch import Batch, BatchRow
from prefixbank.serving.compute import compute_logits
from prefixbank.serving.loaded_prompt import prepare
from prefixbank.serving.prompt_pool import PromptPool, Slot
from tests.serving_cases import mixed_tasks
from tests.tiny import tiny_backbone_folder

if TYPE_CHECKING:
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "bert")))


@pytest.fixture(scope="module")
def prompts(backbone: Backbone) -> list[TaskPrompt]:
    return list(mixed_tasks(backbone).values())


@pytest.fixture(scope="module")
def pool(backbone: Backbone, prompts: list[TaskPrompt]) -> PromptPool:
    pool = PromptPool(backbone.ref, 2**20, dtype=backbone.dtype, device=backbone.device)
    for number, prompt in enumerate(prompts):
        pool.admit(str(number), prepare(prompt, str(number), backbone).staged)
    return pool


def row_of(pool: PromptPool, prompts: list[TaskPrompt], number: int, token_ids: list[int]) -> BatchRow:
    prompt, slot = prompts[number], pool.resident(str(number))
    assert slot is not None
    ids = np.array(token_ids, dtype=np.int64)
    is_token_level = prompt.family is TaskFamily.TOKEN_CLASSIFICATION
    reads_K = np.arange(len(ids) if is_token_level else 1)
    return BatchRow(ids, np.zeros_like(ids), prompt.position_offset, slot, prompt.head.spec, reads_K, is_token_level)


def expected_logits(backbone: Backbone, prompt: TaskPrompt, token_ids: list[int]) -> torch.Tensor:
    """The definition: the row alone, its prompt in a memory of its own, the head as two linear layers."""
    layers = []
    for layer in range(backbone.ref.num_layers):
        given = layer in prompt.layers
        kv = prompt.kv_N2HPD[prompt.layers.index(layer)] if given else torch.zeros(2, backbone.ref.num_heads, 0, 8)
        table = torch.tensor([0, 0], dtype=torch.int32), torch.tensor([0, kv.shape[2]], dtype=torch.int32)
        layers.append(LayerPrefix(kv[0], kv[1], *table))
    tokens = backbone.pack([PackRow(token_ids, [0] * len(token_ids), 1, prompt.position_offset)])
    x = backbone.forward(tokens, layers)
    head = prompt.head
    if prompt.family is TaskFamily.TEXT_CLASSIFICATION:
        x = x[:1]
    if head.spec.pooler is Pooler.BACKBONE:
        x = backbone.pooled(x)
    if head.spec.pooler is Pooler.OWN:
        x = torch.tanh(x @ head.pooler_weight_MM.T + head.pooler_bias_M)
    logits = x @ head.weight_CM.T + head.bias_C
    return logits if prompt.family is TaskFamily.TOKEN_CLASSIFICATION else logits[0]


ROWS = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 40), st.integers(0, 99)), min_size=1, max_size=24)


@given(rows=ROWS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_of_a_batch_gets_what_it_gets_alone(
    backbone: Backbone, pool: PromptPool, prompts: list[TaskPrompt], rows: list[tuple[int, int, int]]
) -> None:
    ids = [[5 + (seed * 7 + i * 13) % 90 for i in range(length)] for _, length, seed in rows]
    packed = [row_of(pool, prompts, number, token_ids) for (number, _, _), token_ids in zip(rows, ids, strict=True)]
    batch = Batch.pack(packed, backbone)
    found = batch.split(compute_logits(batch, backbone, pool))
    for (number, _, _), token_ids, logits in zip(rows, ids, found, strict=True):
        wanted = expected_logits(backbone, prompts[number], token_ids)
        torch.testing.assert_close(torch.from_numpy(logits), wanted.detach(), atol=1e-5, rtol=1e-5)


def test_equally_long_rows_lie_side_by_side_and_among_them_those_of_one_slot(
    backbone: Backbone, pool: PromptPool, prompts: list[TaskPrompt]
) -> None:
    rows = [row_of(pool, prompts, number, [7] * length) for number, length in [(3, 5), (1, 4), (3, 4), (1, 5), (3, 4)]]
    batch = Batch.pack(rows, backbone)
    assert [len(rows[given].token_ids) for given in batch.order_R] == [4, 4, 4, 5, 5]
    slots = batch.tokens.plan.slot_R.tolist()
    assert slots[:3] == sorted(slots[:3])
    assert slots[3:] == sorted(slots[3:])


def test_a_batch_carries_no_promise() -> None:
    names = set(Batch.__dataclass_fields__) | set(Slot.__dataclass_fields__)
    assert not names & {"future", "tenant", "deadline", "enqueued", "clock"}
