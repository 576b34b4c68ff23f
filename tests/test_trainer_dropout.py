"""Dropout of a backbone while a prompt trains: its own share, or the recipe's; nothing where a trial asks for none."""

import pytest
import torch
from torch import nn

from prefixbank.trainer.dropout import Segment, dropout, dropping, stream_of

TOKENS, WIDTH = 200, 64


def kept_shares(*segments: Segment) -> list[float]:
    """What is left of each segment's ones behind a dropout of 0.1 that a backbone holds in evaluation."""
    module = nn.Dropout(0.1).eval()
    with dropping([module], segments):
        states = module(torch.ones(1, TOKENS * len(segments), WIDTH))
    return [(states[:, one.begin : one.end] != 0).float().mean().item() for one in segments]


def segment(place: int, share: float | None, *, drops: bool = True) -> Segment:
    stream = stream_of(11, place, torch.device("cpu")) if drops else None
    return Segment(place * TOKENS, (place + 1) * TOKENS, stream, share)


def test_a_number_takes_the_place_of_the_backbones_own_share() -> None:
    own, given, none = kept_shares(segment(0, None), segment(1, 0.2), segment(2, None, drops=False))
    assert (own, given, none) == (pytest.approx(0.9, abs=0.01), pytest.approx(0.8, abs=0.01), 1.0)


def test_every_step_of_every_seed_draws_a_mask_of_its_own() -> None:
    masks = {
        tuple(dropout(torch.ones(64), 0.5, stream_of(seed, step, torch.device("cpu"))).tolist())
        for seed in range(11, 14)
        for step in range(200)
    }
    assert len(masks) == 600


def test_what_is_kept_is_scaled_without_a_bias_in_bfloat16() -> None:
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    dropped = dropout(x, 0.1, stream_of(11, 1, torch.device("cpu"))).double()
    kept = dropped != 0
    assert (dropped[kept].sum() / x.double()[kept].sum()).item() == pytest.approx(1 / 0.9, rel=2e-4)
