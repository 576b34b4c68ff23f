"""A forward cut at any layer and resumed there is the whole forward, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from tests.tiny import ARCHITECTURES, LAYERS, prompt_pools, random_prompt, tiny_backbone_folder

if TYPE_CHECKING:
    from prefixbank.kernels.plan import LayerPrefix
    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.backbones.packing import PackedTokens


@pytest.fixture(scope="module", params=ARCHITECTURES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_backbone_folder(tmp_path_factory.mktemp("backbones"), request.param)))


def rows(backbone: Backbone, lengths: tuple[int, ...] = (9, 3, 40, 1)) -> PackedTokens:
    """Rows that read slots 0 and 1 in turn, at an offset of their own."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, backbone.tokenizer.get_vocab_size(), (n,), generator=generator).tolist() for n in lengths]
    return backbone.pack([PackRow(row, [0] * len(row), i % 2, 7 * i, 6 * (i % 2)) for i, row in enumerate(ids)])


def prompted_from(depth: int) -> list[LayerPrefix]:
    return prompt_pools([random_prompt(range(depth, LAYERS), 6)] if depth < LAYERS else [random_prompt([0], 0)])


@pytest.mark.parametrize("depth", range(LAYERS + 1))
def test_the_halves_are_the_whole(backbone: Backbone, depth: int) -> None:
    tokens, prefixes = rows(backbone), prompted_from(depth)
    with torch.no_grad():
        lower_TM = backbone.lower(tokens, depth)
        assert torch.equal(backbone.upper(lower_TM, tokens, prefixes, depth), backbone.forward(tokens, prefixes))


def test_a_rows_states_are_the_same_in_any_batch(backbone: Backbone) -> None:
    """So that they may be kept, and a row go on in another batch."""
    lengths = (9, 3, 40, 1)
    tokens = rows(backbone, lengths)
    alone = backbone.pack([PackRow(tokens.token_ids_T[12:52].tolist(), [0] * 40, position_offset=14)])
    assert torch.equal(backbone.lower(alone, 2), backbone.lower(tokens, 2).split(lengths)[2])


def test_the_lowest_states_are_the_embeddings(backbone: Backbone) -> None:
    """The model itself runs on as before: nothing of it was changed by cutting it."""
    tokens = rows(backbone)
    seen = []
    first = backbone.model.get_submodule(backbone.layers_path)[0]  # type: ignore[index]
    handle = first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    whole = backbone.forward(tokens, backbone.no_prefixes(2))
    handle.remove()
    assert torch.equal(backbone.lower(tokens, 0), seen[0][0, : len(whole)])
    assert torch.equal(backbone.forward(tokens, backbone.no_prefixes(2)), whole)


def test_gradients_reach_the_prefixes_above_the_cut(backbone: Backbone) -> None:
    tokens = rows(backbone)
    kv = random_prompt(range(1, LAYERS), 6)
    leaves = [leaf.requires_grad_() for leaf in kv.values()]
    lower_TM = backbone.lower(tokens, 1)
    assert not lower_TM.requires_grad
    losses = backbone.upper(lower_TM, tokens, prompt_pools([kv]), 1), backbone.forward(tokens, prompt_pools([kv]))
    found, wanted = (torch.autograd.grad(hidden_TM.square().sum(), leaves) for hidden_TM in losses)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
        assert one.abs().mean() > 1e-4


def test_rows_with_virtual_tokens_are_not_cut(backbone: Backbone) -> None:
    tokens = backbone.pack([PackRow([5, 6], [0, 0], num_virtual=3)])
    with pytest.raises(ValueError, match="0 vectors for 3 virtual tokens"):
        backbone.lower(tokens, 1)
