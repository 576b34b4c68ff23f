"""A model of transformers cut at a layer: run up to it, or from it on.

Nothing of the model is changed: the cut model is a second one that shares the modules of the first. It refuses to know
how rows were packed and what the layers compute.

Shape letters: T packed tokens of all rows, M model width.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Call = Callable[[nn.Module], object]
    """Calls a model on a batch."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def states_before(model: nn.Module, path: str, depth: int, call: Call) -> Tensor:
    """The states [1, T, M] that enter layer `depth` of the list at `path`; the layers from it on do not run."""
    kept: list[Tensor] = []

    def keep(hidden_1TM: Tensor, *_: Any, **__: Any) -> Tensor:
        kept.append(hidden_1TM)
        return hidden_1TM

    layers = _layers(model, path)
    call(_with_layers(model, path, [*layers[:depth], _with_forward(layers[depth], keep)]))
    return kept[0]


def resumed(model: nn.Module, path: str, depth: int, hidden_1TM: Tensor) -> nn.Module:
    """A model whose layer `depth` gets `hidden_1TM`, whatever the call says, and whose layers before it do not run."""
    layers = _layers(model, path)
    entered = layers[depth]

    def enter(_: Tensor, *args: Any, **kwargs: Any) -> object:
        return entered(hidden_1TM, *args, **kwargs)

    return _with_layers(model, path, [_with_forward(entered, enter), *layers[depth + 1 :]])


def _layers(model: nn.Module, path: str) -> list[nn.Module]:
    return list(model.get_submodule(path).children())


def _with_layers(model: ModuleT, path: str, layers: Sequence[nn.Module]) -> ModuleT:
    """The model with another list of layers at `path`."""
    name, _, below = path.partition(".")
    changed = _with_layers(model.get_submodule(name), below, layers) if below else nn.ModuleList(layers)
    twin = _twin(model)
    twin._modules[name] = changed
    return twin


def _with_forward(module: ModuleT, forward: Callable[..., object]) -> ModuleT:
    """The module with another forward and the same attributes, by which its model may choose what to call it with."""
    twin = _twin(module)
    twin.forward = forward
    return twin


def _twin(module: ModuleT) -> ModuleT:
    """A second module with the same parts: what is put in place of a part of it does not show in the first."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
