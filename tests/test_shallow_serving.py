"""Shallow prompts and words at masks are served in the same batches as everything else, to the bit."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from prefixbank.kernels.plan import LayerPrefix
from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.errors import BackboneMismatch
from prefixbank.model_store.store import PromptStore
from prefixbank.model_store.task_prompt import Pooler
from prefixbank.model_store.tasks import read_positions, task_module
from prefixbank.model_store.tasks.features import Text
from prefixbank.model_store.tasks.tokenizer import TextTokenizer
from prefixbank.serving.batch import Batch, BatchRow
from prefixbank.serving.compute import compute_logits
from prefixbank.serving.loaded_prompt import prepare
from prefixbank.serving.predict import Predictor
from prefixbank.serving.prompt_pool import PromptPool
from tests.serving_cases import mixed_tasks, random_prompt, texts
from tests.shallow_cases import shallow, shallow_tasks, verbalized
from tests.test_prompt_pool import poison_free_memory
from tests.tiny import tiny_backbone_folder, tiny_lm_folder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.task_prompt import TaskPrompt
    from prefixbank.model_store.tasks.features import Features


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tiny_lm_folder(tmp_path_factory.mktemp("tiny"), "bert")
    return load_backbone(str(folder), dtype=request.param)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_lm_folder(tmp_path_factory.mktemp("tiny"), "bert")))


def all_tasks(backbone: Backbone) -> dict[str, TaskPrompt]:
    """Deep, shallow and verbalizer tasks, and tasks without a prompt."""
    return {str(address): prompt for address, prompt in (mixed_tasks(backbone) | shallow_tasks(backbone)).items()}


def pool_of(backbone: Backbone, tasks: dict[str, TaskPrompt]) -> PromptPool:
    """All of them resident; what no prompt owns is NaN."""
    pool = PromptPool(backbone.ref, 2**20, dtype=backbone.dtype, device=backbone.device)
    for name, prompt in tasks.items():
        pool.admit(name, prepare(prompt, name, backbone).staged)
    poison_free_memory(pool)
    return pool


def features_of(backbone: Backbone, prompt: TaskPrompt, text: str) -> Features:
    module, tokenizer = task_module(prompt.family, prompt.preprocessing), TextTokenizer(backbone.tokenizer)
    asked = module.parse_parameters({"truncation": True})
    (row,) = module.encode_rows(tokenizer, prompt.preprocessing, Text(text), asked, max_tokens=64)
    return row


def row_of(backbone: Backbone, pool: PromptPool, name: str, prompt: TaskPrompt, text: str) -> BatchRow:
    features, slot = features_of(backbone, prompt, text), pool.resident(name)
    assert slot is not None
    module = task_module(prompt.family, prompt.preprocessing)
    reads_K, offset = read_positions(module, features), prompt.position_offset
    ids, types, spec = features.token_ids, features.type_ids, prompt.head.spec
    return BatchRow(ids, types, offset, slot, spec, reads_K, module.is_token_level)


def computed(backbone: Backbone, pool: PromptPool, rows: list[BatchRow]) -> list[NDArray[np.float32]]:
    batch = Batch.pack(rows, backbone)
    return batch.split(compute_logits(batch, backbone, pool))


@torch.no_grad()
def by_hand(backbone: Backbone, prompt: TaskPrompt, row: Features) -> torch.Tensor:
    """The definition: the row alone, its prompt in a memory of its own, each head written out."""
    nothing = torch.zeros(2, 4, 0, 8)
    layers = [prompt.kv_N2HPD[prompt.layers.index(n)] if n in prompt.layers else nothing for n in range(3)]
    prefixes = [
        LayerPrefix(*kv, torch.tensor([0, 0], dtype=torch.int32), torch.tensor([0, kv.shape[2]], dtype=torch.int32))
        for kv in layers
    ]
    virtual, offset = prompt.shallow_length, prompt.position_offset
    packed = PackRow(row.token_ids, row.type_ids, 1, offset, prompt.prefix_length, virtual)
    hidden_TM = backbone.forward(backbone.pack([packed]), prefixes, prompt.shallow_PM)
    module, head, spec = task_module(prompt.family, prompt.preprocessing), prompt.head, prompt.head.spec
    first = 0 if spec.pools == "prompt" else virtual
    x_KM = hidden_TM[first + torch.tensor(read_positions(module, row))]
    if spec.pooler is Pooler.BACKBONE:
        x_KM = backbone.pooled(x_KM)
    elif spec.pooler is Pooler.LM:
        assert backbone.lm_head is not None
        x_KM = backbone.lm_head.transform(x_KM)
    elif head.pooler_weight_MM is not None:
        x_KM = torch.tanh(x_KM @ head.pooler_weight_MM.T + head.pooler_bias_M)
    logits_KC = x_KM @ head.weight_CM.T + head.bias_C
    return logits_KC if module.is_token_level else logits_KC[0]


def test_every_row_of_a_mixed_batch_gets_what_its_definition_gives(exact: Backbone) -> None:
    tasks = all_tasks(exact)
    pool, names = pool_of(exact, tasks), [*tasks, *reversed(tasks)]
    inputs = list(zip(names, texts(len(names)), strict=True))
    found = computed(exact, pool, [row_of(exact, pool, name, tasks[name], text) for name, text in inputs])
    for (name, text), logits in zip(inputs, found, strict=True):
        wanted = by_hand(exact, tasks[name], features_of(exact, tasks[name], text))
        torch.testing.assert_close(torch.from_numpy(logits), wanted, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)


def test_company_does_not_change_a_bit(backbone: Backbone) -> None:
    tasks = all_tasks(backbone)
    pool, names = pool_of(backbone, tasks), [*tasks, *tasks, *reversed(tasks)]
    rows = [
        row_of(backbone, pool, name, tasks[name], text) for name, text in zip(names, texts(len(names)), strict=True)
    ]
    for row, together in zip(rows, computed(backbone, pool, rows), strict=True):
        (alone,) = computed(backbone, pool, [row])
        assert np.array_equal(alone, together)
        assert np.isfinite(alone).all()


def test_moving_a_prompt_in_the_pool_moves_its_vectors(exact: Backbone) -> None:
    tasks = all_tasks(exact)
    pool = pool_of(exact, tasks)
    kept = [name for name in tasks if name.startswith("shallow/")]
    wanted = [computed(exact, pool, [row_of(exact, pool, name, tasks[name], "a quiet joy")])[0] for name in kept]
    for name in tasks:
        if name not in kept:
            pool.drop(name)
    while pool.compact_step():
        poison_free_memory(pool)
    pool.check_integrity()
    assert pool._rows.largest_free == pool._rows.num_free
    rows = [row_of(exact, pool, name, tasks[name], "a quiet joy") for name in kept]
    for found, before in zip(computed(exact, pool, rows), wanted, strict=True):
        assert np.array_equal(found, before)


def test_published_prompts_answer_through_the_whole_path(exact: Backbone, tmp_path: Path) -> None:
    store, tasks = PromptStore(tmp_path / "store"), shallow_tasks(exact)
    for address, prompt in tasks.items():
        store.promote(address, store.publish(address, prompt))
    with Predictor(exact, store) as predictor:
        futures = {address: predictor.submit(address, "a quiet joy") for address in tasks}
        answers = {address: future.result(30).value for address, future in futures.items()}
    for address, prompt in tasks.items():
        row, module = features_of(exact, prompt, "a quiet joy"), task_module(prompt.family, prompt.preprocessing)
        asked = module.parse_parameters({})
        decoded = module.decode([by_hand(exact, prompt, row).numpy()], [row], prompt.labels, asked)
        wanted = scored(module.arrange([decoded], asked, batched=False))
        found = scored(answers[address])
        assert [name for name, _ in found] == [name for name, _ in wanted]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in wanted], atol=1e-5)


def scored(answer: list[Any]) -> list[tuple[str, float]]:
    """Labels or entities with scores, of a single input."""
    entries = answer[0] if isinstance(answer[0], list) else answer
    return [(entry.get("label") or entry["entity_group"], entry["score"]) for entry in entries]


def test_a_prompt_that_reads_another_masked_lm_head_is_refused(exact: Backbone) -> None:
    prompt = verbalized(exact, random_prompt(exact, 5, seed=1), Pooler.LM)
    stranger = dataclasses.replace(
        prompt,
        head=dataclasses.replace(prompt.head, spec=prompt.head.spec.model_copy(update={"lm_digest": "ab" * 32})),
    )
    with pytest.raises(BackboneMismatch, match=r"reads the masked-LM transform abababababab, and .* has [0-9a-f]{12}$"):
        prepare(stranger, "r", exact)
    without = dataclasses.replace(exact, lm_head=None)
    with pytest.raises(BackboneMismatch, match=r"has none$"):
        prepare(prompt, "r", without)
    with pytest.raises(BackboneMismatch, match="has no mask token"):
        prepare(prompt, "r", dataclasses.replace(exact, mask_id=None))


def test_a_shallow_prompt_for_factorised_embeddings_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    backbone = load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("tiny"), "electra")))
    prompt = shallow(random_prompt(backbone, 0, seed=1), 3)
    with pytest.raises(BackboneMismatch, match=r"the prompt is shallow, and backbone .* word embeddings of width 16"):
        prepare(prompt, "r", backbone)


def test_more_vectors_than_positions_are_refused(exact: Backbone) -> None:
    prompt = shallow(random_prompt(exact, 0, seed=1), 513, offset=0)
    with pytest.raises(BackboneMismatch, match=r"the shallow prompt has 513 vectors, and .* has 512 positions"):
        prepare(prompt, "r", exact)


def test_the_longest_row_leaves_room_for_the_offset(exact: Backbone) -> None:
    prompt = shallow(random_prompt(exact, 0, seed=1), 500)
    assert prepare(prompt, "r", exact).max_tokens == 12
    home = Address("acme", "long")
    with Predictor(exact, {home: prompt}) as predictor:
        answer = predictor.answer(home, "a dull film " * 40, parameters={"truncation": True})
    assert len(answer.value[0]) == 3
