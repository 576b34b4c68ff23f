"""Prefix attention equals its definition, whatever the batch looks like."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from prefixbank.kernels.attention import Route, route_of
from prefixbank.kernels.plan import BatchPlan, LayerPrefix, Mode
from tests.kernel_cases import DTYPES, TOLERANCE, VIEWS, Case, distance, every_edge, int32, make_case, make_prefix
from tests.kernel_cases import poisoned_memory as poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_every_pair_of_edge_lengths_equals_the_definition(dtype: torch.dtype, mode: Mode, window: int) -> None:
    case = make_case(*every_edge(), dtype=dtype, mode=mode, window=window)
    assert distance(case.run(), case.exact()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mode", "window"), VIEWS)
def test_rows_longer_than_a_block_of_queries_equal_the_definition(dtype: torch.dtype, mode: Mode, window: int) -> None:
    case = make_case([300, 129, 300], [5, 0, 5], heads=16, dim=32, dtype=dtype, mode=mode, window=window)
    assert distance(case.run(), case.exact()) <= TOLERANCE[dtype]


def test_more_equal_rows_than_fit_at_once_equal_the_definition() -> None:
    case = make_case([64] * 21, [5] * 21, heads=16)
    assert distance(case.run(), case.exact()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_a_batch_without_tokens_gives_an_empty_answer(lengths: list[int]) -> None:
    assert make_case(lengths, [1] * len(lengths)).run().shape == (0, 3, 16)


def test_a_layer_that_no_row_has_a_prompt_in_needs_no_pool() -> None:
    case = make_case([3, 5], [0, 1], [0, 0])
    empty = LayerPrefix(torch.zeros(3, 0, 16), torch.zeros(3, 0, 16), int32([0, 0]), int32([0, 0]))
    case = replace(case, prefix=empty)
    assert distance(case.run(), case.exact()) <= TOLERANCE[torch.float32]


def test_tokens_of_no_row_give_zero() -> None:
    case = make_case([3, 5, 4], [1, 2, 3])
    shorter = replace(case, plan=BatchPlan.build([3, 5], [1, 2]))
    out = shorter.run()
    assert distance(out, shorter.exact()) <= TOLERANCE[torch.float32]
    assert not out[8:].any()


def test_layers_of_one_plan_may_differ_in_prefix_length() -> None:
    case = make_case([4, 9, 4], [1, 2, 1], [0, 5, 16])
    for lengths in ([0, 0, 0], [0, 17, 1], [0, 64, 0]):
        layer = replace(case, prefix=make_prefix(lengths, 3, 16))
        assert distance(layer.run(), layer.exact()) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key", [0, 15, 16, 20])
def test_one_key_may_outweigh_all_others_by_far(dtype: torch.dtype, key: int) -> None:
    """Scores of +10,000 for one key, prefix or own, and -10,000 for the rest."""
    case = make_case([8], [1], [0, 16], dtype=dtype)
    keys = torch.full((24, 3, 16), -200.0)
    keys[key] = 200.0
    case.prefix.pool_k_HND[:, 16:32] = keys[:16].transpose(0, 1).to(dtype)
    case = case.with_tensors([torch.full((8, 3, 16), 12.5).to(dtype), keys[16:].to(dtype), *case.differentiated[2:]])
    assert case.scale * 16 * 12.5 * 200 == 10_000
    values = torch.cat([case.prefix.pool_v_HND[:, 16:32].transpose(0, 1), case.v_THD])
    assert torch.equal(case.run(), values[key].expand(8, 3, 16))


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_equals_torchs_own_attention_over_concatenated_keys(causal: bool) -> None:
    case = make_case([17, 9], [5, 4], mode=Mode.CAUSAL if causal else Mode.FULL)
    start, length = int(case.prefix.slot_start_S[5]), 64
    lent = slice(start, start + length)
    q, k, v = (x[:17].transpose(0, 1) for x in case.packed)
    k, v = torch.cat([case.prefix.pool_k_HND[:, lent], k], 1), torch.cat([case.prefix.pool_v_HND[:, lent], v], 1)
    mask = torch.ones(17, 81).tril(64).bool() if causal else None
    wanted = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)
    assert distance(case.run()[:17], wanted) <= TOLERANCE[torch.float32]


def test_a_prefix_is_what_its_tokens_in_front_of_the_row_would_be() -> None:
    case = make_case([7], [1], [0, 16])
    lent = [pool[:, 16:32].transpose(0, 1) for pool in case.prefix[:2]]
    longer = [torch.cat(pair) for pair in zip([torch.zeros(16, 3, 16), *lent], case.packed, strict=True)]
    plain = replace(case.with_tensors([*longer, *case.prefix[:2]]), plan=BatchPlan.build([23], [0]))
    assert distance(case.run(), plain.run()[16:]) <= TOLERANCE[torch.float32]


def test_a_zero_prefix_is_not_the_absence_of_a_prefix() -> None:
    case = make_case([7], [1], [0, 16])
    for pool in case.prefix[:2]:
        pool.zero_()
    none = replace(case, plan=BatchPlan.build([7], [0]))
    assert distance(case.run(), none.run()) > 0.1


def test_memory_layout_of_the_inputs_changes_no_bit() -> None:
    case = make_case(*every_edge())
    assert not case.q_THD.is_contiguous()
    dense = case.with_tensors([x.contiguous() for x in case.differentiated])
    assert torch.equal(case.run(), dense.run())


def test_overwriting_a_slot_changes_the_answers_of_its_rows_alone() -> None:
    case = make_case([5, 5, 5], [1, 2, 1])
    before = case.run()
    start = int(case.prefix.slot_start_S[2])
    case.prefix.pool_v_HND[:, start : start + 15] += 1
    changed = (case.run() != before).flatten(1).any(1)
    assert changed.tolist() == [False] * 5 + [True] * 5 + [False] * 5


def test_inference_mode_takes_the_same_route_to_the_same_bits() -> None:
    case = make_case(*every_edge())
    with torch.inference_mode():
        inferred = case.run()
    case.prefix.pool_k_HND.requires_grad_()
    assert torch.equal(case.run(), inferred)


def test_the_reference_can_be_asked_for_by_name() -> None:
    case = make_case(*every_edge())
    assert distance(case.run(Route.REFERENCE), case.exact()) <= TOLERANCE[torch.float32]


def test_the_route_is_logged_once_for_a_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PREFIXBANK_ATTENTION", raising=False)
    route_of.cache_clear()
    with caplog.at_level(logging.INFO):
        routes = {route_of(torch.device("cpu")) for _ in range(3)}
    assert routes == {Route.CPU}
    assert caplog.messages == ["prefix attention on cpu runs the grouped-bmm route"]


def test_the_environment_may_ask_for_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIXBANK_ATTENTION", "reference")
    route_of.cache_clear()
    assert route_of(torch.device("cpu")) is Route.REFERENCE
    route_of.cache_clear()


def test_a_route_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIXBANK_ATTENTION", "fastest")
    route_of.cache_clear()
    with pytest.raises(ValueError, match=r"is 'fastest', wanted one of \['grouped-bmm', 'triton', 'reference'\]"):
        route_of(torch.device("cpu"))
    route_of.cache_clear()


def _broken(case: Case, name: str) -> Case:
    q, k, v, pool_k, pool_v = case.differentiated
    tables = case.prefix._replace(slot_length_S=case.prefix.slot_length_S.long())
    broken = {
        "one shape [T, H, D]": case.with_tensors([q, k[:-1], v, pool_k, pool_v]),
        "the 8 of the plan's rows": case.with_tensors([q[:-1], k[:-1], v[:-1], pool_k, pool_v]),
        "one shape [3, N, 16]": case.with_tensors([q, k, v, pool_k[:2], pool_v[:2]]),
        "wanted torch.float32 as q": case.with_tensors([q, k, v, pool_k.double(), pool_v]),
        "one floating dtype": case.with_tensors([q, k.double(), v, pool_k, pool_v]),
        "two int32 tables": replace(case, prefix=tables),
        "wanted one device": case.with_tensors([q, k, v, pool_k.to("meta"), pool_v]),
        "0 for none or a positive width": replace(case, window=-1),
    }
    return broken[name]


@pytest.mark.parametrize(
    "wanted",
    [
        "one shape [T, H, D]",
        "the 8 of the plan's rows",
        "one shape [3, N, 16]",
        "wanted torch.float32 as q",
        "one floating dtype",
        "two int32 tables",
        "wanted one device",
        "0 for none or a positive width",
    ],
)
def test_what_does_not_fit_is_refused_at_the_door(wanted: str) -> None:
    case = _broken(make_case([3, 5], [1, 2]), wanted)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 the message is what is tested
        case.run()
    assert wanted in str(refusal.value)


def test_a_slot_that_reaches_beyond_the_pool_is_refused() -> None:
    case = make_case([3], [1], [0, 5])
    case.prefix.slot_length_S[1] = 6
    with pytest.raises(ValueError, match="slot 1 is pool tokens 16 to 22 of 21"):
        case.run()


@pytest.mark.parametrize(("mode", "window"), VIEWS[:4])
def test_torch_accepts_the_operator(mode: Mode, window: int) -> None:
    case = make_case([3, 0, 5, 3], [1, 2, 3, 1], dtype=torch.float64, mode=mode, window=window)
    case = case.with_tensors([torch.nan_to_num(x).requires_grad_() for x in case.differentiated])
    torch.library.opcheck(torch.ops.prefixbank.prefix_attention.default, case.arguments(with_lse=True))
