"""Many heads in one batch give what each would give alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from prefixbank.kernels.heads import apply_heads
from tests.kernel_cases import int32

ARENA_ROWS, WIDTH = 40, 24


class Heads(NamedTuple):
    """Arguments of `apply_heads`."""

    x_NM: Tensor
    weight_QM: Tensor
    bias_Q: Tensor
    start_R: Tensor
    count_R: Tensor
    row_start_R1: Tensor


def _heads(lengths: list[int], starts: list[int], counts: list[int], dtype: torch.dtype = torch.float32) -> Heads:
    torch.manual_seed(0)
    row_start = torch.tensor([0, *lengths]).cumsum(0).int()
    weight, bias = torch.randn(ARENA_ROWS, WIDTH), torch.randn(ARENA_ROWS)
    return Heads(torch.randn(sum(lengths), WIDTH).to(dtype), weight, bias, int32(starts), int32(counts), row_start)


def _one_by_one(heads: Heads) -> Tensor:
    bounds = heads.row_start_R1.tolist()
    width = int(heads.count_R.max())
    logits = []
    for row, (start, count) in enumerate(zip(heads.start_R.tolist(), heads.count_R.tolist(), strict=True)):
        head = slice(start, start + count)
        own = linear(heads.x_NM[bounds[row] : bounds[row + 1]], heads.weight_QM[head], heads.bias_Q[head])
        logits.append(torch.nn.functional.pad(own, (0, width - count), value=-math.inf))
    return torch.cat(logits)


TOKENS = ([3, 0, 5, 1, 4], [0, 5, 5, 30, 0], [5, 2, 7, 10, 5])
POOLED = ([1] * 6, [0, 3, 3, 9, 0, 38], [3, 2, 2, 24, 3, 2])


@pytest.mark.parametrize("rows", [TOKENS, POOLED])
def test_logits_are_those_of_each_head_alone(rows: tuple[list[int], list[int], list[int]]) -> None:
    heads = _heads(*rows)
    torch.testing.assert_close(apply_heads(*heads), _one_by_one(heads), rtol=1e-6, atol=1e-6)


def test_columns_beyond_a_rows_classes_are_minus_infinity() -> None:
    logits = apply_heads(*_heads([1, 2], [0, 3], [2, 3]))
    assert logits.isneginf().tolist() == [[False, False, True], [False] * 3, [False] * 3]


def test_a_row_alone_gives_the_bits_it_gives_in_company() -> None:
    heads = _heads(*TOKENS)
    together, bounds = apply_heads(*heads), heads.row_start_R1.tolist()
    for row, count in enumerate(heads.count_R.tolist()):
        own, one = slice(bounds[row], bounds[row + 1]), slice(row, row + 1)
        alone = apply_heads(
            heads.x_NM[own], *heads[1:3], heads.start_R[one], heads.count_R[one], int32([0, own.stop - own.start])
        )
        assert torch.equal(alone, together[own, :count])


def test_a_pooler_is_as_many_arena_rows_as_the_model_is_wide() -> None:
    heads = _heads([1] * 3, [0, 0, 16], [WIDTH] * 3)
    pooled = apply_heads(*heads)
    assert pooled.shape == (3, WIDTH)
    torch.testing.assert_close(pooled[2], heads.weight_QM[16:] @ heads.x_NM[2] + heads.bias_Q[16:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_have_the_precision_of_the_head(dtype: torch.dtype) -> None:
    heads = _heads(*TOKENS, dtype=dtype)
    assert torch.equal(apply_heads(*heads), apply_heads(heads.x_NM.float(), *heads[1:]))


def test_a_row_without_a_head_gets_no_logits() -> None:
    logits = apply_heads(*_heads([2, 1], [0, 0], [0, 3]))
    assert logits[:2].isneginf().all()
    assert logits[2].isfinite().all()


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_nothing_in_gives_nothing_out(lengths: list[int]) -> None:
    rows = len(lengths)
    assert apply_heads(*_heads(lengths, [0] * rows, [2] * rows)).shape == (0, 2 if rows else 0)


@pytest.mark.parametrize("rows", [TOKENS, POOLED])
def test_gradients_are_those_of_each_head_alone(rows: tuple[list[int], list[int], list[int]]) -> None:
    heads = _heads(*rows)
    leaves = [x.double().requires_grad_() for x in heads[:3]]
    heads = heads._replace(x_NM=leaves[0], weight_QM=leaves[1], bias_Q=leaves[2])
    found, wanted = apply_heads(*heads), _one_by_one(heads)
    projection = torch.randn_like(wanted)
    finite = wanted.isfinite()
    mine = torch.autograd.grad((found * projection)[finite].sum(), leaves)
    theirs = torch.autograd.grad((wanted * projection)[finite].sum(), leaves)
    torch.testing.assert_close(mine, theirs)


def test_torch_accepts_the_operator() -> None:
    heads = _heads(*TOKENS)
    leaves = [x.requires_grad_() for x in heads[:3]]
    torch.library.opcheck(torch.ops.prefixbank.apply_heads.default, (*leaves, *heads[3:], 10))


@pytest.mark.parametrize(
    ("name", "value", "refusal"),
    [
        ("x_NM", torch.zeros(13, 7), r"wanted \[N, M\], \[Q, M\] and \[Q\]"),
        ("bias_Q", torch.zeros(7), r"wanted \[N, M\], \[Q, M\] and \[Q\]"),
        ("start_R", int32([0]), r"wanted \[R\], \[R\] and \[R \+ 1\]"),
        ("count_R", torch.zeros(5).long(), "wanted int32"),
        ("bias_Q", torch.zeros(ARENA_ROWS).half(), "wanted one dtype"),
        ("start_R", int32([0, 5, 39, 30, 0]), r"arena rows 39 to 46 of 40"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_door(name: str, value: Tensor, refusal: str) -> None:
    with pytest.raises(ValueError, match=refusal):
        apply_heads(*_heads(*TOKENS)._replace(**{name: value}))
