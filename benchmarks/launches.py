"""Launches on paper: run the launchers of the Triton kernels without a GPU, and note what each would have compiled.

Triton is given a driver that names a target and has no device, and its compile hook notes every new specialisation
of a kernel and declines to build it. So this sees exactly what a first launch on a real GPU would compile, in this
process and for good: a process that launches on paper must not launch anything else.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver

from prefixbank.kernels.gpu.configuration import ALIGNED

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefixbank.kernels.gpu.configuration import Configuration


class Form(NamedTuple):
    """One compiled form of a kernel: two launches of one form share their machine code."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    """Run-time arguments and their types, as `Configuration` writes them; sorted."""
    constants: tuple[tuple[str, str], ...]
    num_warps: int
    num_stages: int
    max_registers: int | None

    @classmethod
    def of(cls, configuration: Configuration) -> Form:
        """The form that a configuration declares."""
        constants = {name: repr(value) for name, value in configuration.constants.items()}
        return cls(
            configuration.kernel.__name__,
            tuple(sorted(configuration.signature.items())),
            tuple(sorted(constants.items())),
            configuration.num_warps,
            configuration.num_stages,
            configuration.max_registers,
        )

    def difference(self, other: Form) -> str:
        """What distinguishes it from another form of the kernel, for people."""
        mine, theirs = ({*form.signature, *form.constants} for form in (self, other))
        launches = [
            f"{form.num_warps} warps {form.num_stages} stages {form.max_registers} registers" for form in (self, other)
        ]
        launch = "" if launches[0] == launches[1] else f"{', not '.join(launches)}; "
        found, wanted = (
            " ".join(f"{name}={value}" for name, value in sorted(x)) for x in (mine - theirs, theirs - mine)
        )
        return f"{launch}{found}, not {wanted}"


class PaperDriver(DriverBase):  # type: ignore[misc]  # Triton is untyped
    """A GPU of which nothing is known but its target."""

    def __init__(self, target: int) -> None:
        self.target = target

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.target, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device

    def get_active_torch_device(self) -> Any:
        raise NotImplementedError("a driver on paper has no device")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("a driver on paper has no clock")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError(f"a driver on paper launches nothing, and was asked for the C type of {ty}")


def launch_on_paper(run: Callable[[], object], target: int = 90) -> list[Form]:
    """Run launchers, and return the form of every launch that would have had to compile, in order.

    Raises:
        RuntimeError: when Triton's interpreter is on, which launches for real.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: launches would be real")
    forms: list[Form] = []

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        forms.append(_form_of(fn.jit_function, compile))
        return True

    driver.set_active(PaperDriver(target))
    triton.knobs.runtime.jit_cache_hook = note
    try:
        run()
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    return forms


def _form_of(kernel: Any, compiled: dict[str, Any]) -> Form:
    names = kernel.arg_names
    constants = {names[path[0]]: repr(value) for path, value in compiled["constants"].items()}
    aligned = {path[0] for path, attributes in compiled["configs"][0].items() if attributes}
    signature = {
        name: f"{kind}{ALIGNED if index in aligned else ''}"
        for index, (name, kind) in enumerate(compiled["signature"].items())
        if name not in constants
    }
    ordered = (tuple(sorted(signature.items())), tuple(sorted(constants.items())))
    options = json.loads(compiled["specialization_data"])["options"]
    return Form(kernel.__name__, *ordered, options["num_warps"], options["num_stages"], options["maxnreg"])
