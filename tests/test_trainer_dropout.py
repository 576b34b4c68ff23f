"""Dropout of a backbone while a prompt trains: its own share, or the recipe's; nothing where a trial asks for none."""

import pytest
import torch
from torch import nn

from prefixbank.trainer.dropout import Segment, dropping, stream_of

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
