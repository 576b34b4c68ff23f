"""Reads a folder of the adapters library: prefix tuning, flat or reparameterised, on all layers or some, with its head.

Its prefixes are put before keys and values inside the attention, after positions were counted: position offset 0. Every
layer's entry repeats the one pool of the model; that is the one read. It refuses gates, whose prefixes depend on the
input, and to know the library itself: it reads files.

Shape letters: N prompted layers, H heads, P prefix tokens, D head dim, X = 2NHD.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from prefixbank.model_store.errors import BackboneMismatch, NotRepresentable, SourceInvalid
from prefixbank.model_store.formats.adapters_head import read_head
from prefixbank.model_store.formats.foreign import ForeignPrompt, Format
from prefixbank.model_store.formats.heads import TensorBag
from prefixbank.model_store.formats.prefix_layout import fold, split_flat
from prefixbank.model_store.formats.source_config import SourceConfig, parse_config
from prefixbank.model_store.formats.source_files import read_json, read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from prefixbank.model_store.task_prompt import BackboneRef

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": functional.relu,
    "gelu": functional.gelu,
}
_POOL = re.compile(r"(?:\w+\.)?prefix_tuning\.prefix_tunings\.([^.]+)\.([^.]+)\.(.+)")
"""The model's own pool: adapter, location, tensor."""
_COPY = re.compile(r".+\.prefix_tuning\.pool\.(prefix_tunings\..+)")
"""A layer's copy of a tensor of the pool."""
_LOCATIONS = ("self_prefix", "self")
"""Where an encoder's prefixes are; an encoder-decoder also has encoder_prefix and cross_prefix."""


class _Method(SourceConfig):
    architecture: str | None = None
    prefix_length: int = 30
    non_linearity: str = "tanh"
    leave_out: tuple[int, ...] = ()
    use_gating: bool = False


class _Config(SourceConfig):
    config: dict[str, Any]
    model_type: str = ""
    model_name: str | None = None
    version: str = ""


def read(folder: Path, ref: BackboneRef) -> ForeignPrompt:
    """The prompt in a folder of the adapters library.

    Raises:
        FormatError: the subclass that says what is wrong with it, or why it cannot be served.
        BackboneMismatch: it is another backbone's.
    """
    config = parse_config(_Config, read_json(folder / CONFIG), folder / CONFIG)
    method = parse_config(_Method, config.config, folder / CONFIG)
    _check_method(method)
    if config.model_type != ref.architecture:
        raise BackboneMismatch(f"the adapter is of a {config.model_type!r}; the backbone is a {ref.architecture!r}")
    layers = _layers(method, ref)
    tensors = read_tensors(folder, WEIGHTS)
    flat_PX = _flat_prefix(_pool(tensors, folder.name), method)
    _check_repeated(tensors, folder.name)
    head, labels = read_head(folder, ref)
    return ForeignPrompt(
        format=Format.ADAPTERS,
        method="adapters prefix tuning",
        layers=layers,
        kv_N2HPD=split_flat(flat_PX, len(layers), ref),
        position_offset=0,
        head=head,
        labels=labels,
        made_for=config.model_name or "",
        software={"adapters": config.version.removeprefix("adapters.")} if config.version else {},
        facts={"leave_out": list(method.leave_out), "non_linearity": method.non_linearity},
    )


def _check_method(method: _Method) -> None:
    if method.architecture != "prefix_tuning":
        raise NotRepresentable(f"an adapter of architecture {method.architecture!r}; only prefix_tuning has no weights")
    if method.use_gating:
        raise NotRepresentable("use_gating: gated prefixes depend on the input, and are no stored keys and values")


def _layers(method: _Method, ref: BackboneRef) -> tuple[int, ...]:
    layers = tuple(layer for layer in range(ref.num_layers) if layer not in method.leave_out)
    if not layers:
        raise SourceInvalid(f"leave_out {list(method.leave_out[:8])} leaves no layer of {ref.num_layers}")
    return layers


def _pool(tensors: Mapping[str, Tensor], where: str) -> TensorBag:
    """The tensors of the one prefix of the model's pool.

    Raises:
        SourceInvalid: there is none, or several.
        NotRepresentable: it has gates, or prefixes of an encoder-decoder.
    """
    if any(".prefix_gates." in name for name in tensors):
        raise NotRepresentable("the adapter holds prefix_gates: gated prefixes depend on the input")
    found = {match: tensor for name, tensor in tensors.items() if (match := _POOL.fullmatch(name))}
    locations = sorted({match[2] for match in found})
    if set(locations) - set(_LOCATIONS):
        raise NotRepresentable(
            f"prefixes at {', '.join(locations)[:80]}: an encoder-decoder's; only encoders are served"
        )
    if len({match[1] for match in found}) != 1 or len(locations) != 1:
        names = sorted({match[1] for match in found})
        raise SourceInvalid(f"{where} holds the prefixes of {len(names)} adapters {names[:3]}, wanted one")
    return TensorBag({match[3]: tensor for match, tensor in found.items()}, where)


def _check_repeated(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse what is neither in the pool nor a layer's copy of it: it was trained, and has no place here."""
    pool = {name.partition("prefix_tuning.")[2]: tensor for name, tensor in tensors.items() if _POOL.fullmatch(name)}
    for name, tensor in tensors.items():
        copied = _COPY.fullmatch(name)
        original = tensor if _POOL.fullmatch(name) else pool.get(copied[1]) if copied else None
        if original is None or not torch.equal(original, tensor):
            raise NotRepresentable(f"{where} also trains {name[:100]!r}, which has no place in a task prompt")


def _flat_prefix(pool: TensorBag, method: _Method) -> Tensor:
    """The prefix as [P, X]; an ejected one is flat whatever its config says."""
    if "control_trans" in pool:
        flat = pool.take("control_trans")
        if flat.dim() != 1 or method.prefix_length < 1 or flat.numel() % method.prefix_length:
            raise SourceInvalid(f"control_trans is {list(flat.shape)}, not {method.prefix_length} equal tokens")
        pool.check_empty()
        return flat.reshape(method.prefix_length, -1)
    if method.non_linearity.lower() not in _ACTIVATIONS:
        raise NotRepresentable(f"non_linearity {method.non_linearity[:40]!r}; known: {', '.join(_ACTIVATIONS)}")
    embedding_PE = pool.take("wte.weight")
    if list(embedding_PE.shape[:1]) != [method.prefix_length]:
        raise SourceInvalid(f"wte.weight is {list(embedding_PE.shape)}; prefix_length is {method.prefix_length}")
    layers = pool.take_dense("control_trans.0"), pool.take_dense("control_trans.2")
    pool.check_empty()
    return fold(embedding_PE, layers, _ACTIVATIONS[method.non_linearity.lower()])
