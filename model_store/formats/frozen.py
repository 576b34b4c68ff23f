"""Whether the encoder that a source carries is the backbone, number for number.

It refuses to know formats: names are those of the base model already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from prefixbank.model_store.backbones.architectures import ARCHITECTURES
from prefixbank.model_store.errors import BackboneMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue
    from torch import Tensor

    from prefixbank.model_store.backbones.backbone import Backbone
    from prefixbank.model_store.formats.foreign import Dense


def check_same_encoder(carried: Mapping[str, Tensor], backbone: Backbone) -> None:
    """Compare every tensor, in the dtype in which the source holds it.

    Raises:
        BackboneMismatch: a tensor differs, is missing, or is of no such encoder.
    """
    served = backbone.model.state_dict()
    strangers = sorted(carried.keys() ^ served.keys())
    if strangers:
        side = "the source" if strangers[0] in served else "the backbone"
        raise BackboneMismatch(f"{side} lacks {strangers[0][:100]!r} ({len(strangers)} tensors are on one side only)")
    different = [name for name in sorted(served) if not same_numbers(carried[name], served[name])]
    if different:
        first = different[0]
        raise BackboneMismatch(
            f"{len(different)} of {len(served)} tensors of the encoder differ from {backbone.ref.name!r}, as {first!r} "
            f"does{_distance(carried[first], served[first])}: the prompt was made for another backbone"
        )


def check_same_config(said: Mapping[str, JsonValue], backbone: Backbone) -> None:
    """Compare what a source's config says of its encoder beside the weights: heads and activations are in no tensor.

    Raises:
        BackboneMismatch: a field differs.
    """
    config, architecture = backbone.model.config, ARCHITECTURES[backbone.ref.architecture]
    if (positions := said.get("position_embedding_type") or "absolute") != "absolute":
        raise BackboneMismatch(f"position_embedding_type is {positions!r} in the source's config; wanted 'absolute'")
    for name in architecture.config_fields:
        found, served = said.get(name), getattr(config, name, None)
        if found is not None and found != served:
            raise BackboneMismatch(
                f"{name} is {found!r} in the source's config and {served!r} in {backbone.ref.name!r}"
            )


def is_backbones_pooler(carried: Dense, backbone: Backbone) -> bool:
    """Whether a pooler is the backbone's own."""
    if backbone.pooler is None:
        return False
    served = backbone.pooler.state_dict()
    pairs = ((carried.weight, served.get("dense.weight")), (carried.bias, served.get("dense.bias")))
    return all(own is not None and same_numbers(given, own) for given, own in pairs)


def same_numbers(carried: Tensor, served: Tensor) -> bool:
    """Whether the served tensor, in the carried one's dtype, is it: a checkpoint in fp16 holds the same backbone."""
    if not carried.is_floating_point() or carried.shape != served.shape:
        return False
    return torch.equal(served.cpu().to(carried.dtype), carried)


def _distance(carried: Tensor, served: Tensor) -> str:
    if carried.shape != served.shape:
        return f" (it is {list(carried.shape)} there and {list(served.shape)} here)"
    return f" (by up to {(carried.float() - served.cpu().float()).abs().max().item():.3g})"
