"""What the launchers of the Triton kernels would compile for real batches, against what their modules declare.

A program of its own, because launching on paper changes a process for good. It prints, as JSON, the forms that no
module declares, and what a hundred random batches of one tiling would compile again for the sake of a number.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import torch

from benchmarks.compiled import declared
from benchmarks.launches import Form, launch_on_paper
from prefixbank.kernels.attention import Route
from prefixbank.kernels.gpu.configuration import ALIGNED
from prefixbank.kernels.plan import BatchPlan, Mode, Tiling
from tests.disentangled_cases import TERMS, DisentangledCase, make_disentangled
from tests.kernel_cases import Case, make_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HEADS, PREFIXES = 16, (0, 128, 20)


def attention_case(
    lengths: Sequence[int], dtype: torch.dtype, dim: int, tiling: Tiling, mode: Mode = Mode.FULL, window: int = 0
) -> Case:
    """A batch as a model makes it, of tokens that hold nothing."""
    slots = [row % len(PREFIXES) for row in range(len(lengths))]
    plan = BatchPlan.build(lengths, slots, mode=mode, tiling=tiling)
    qkv = torch.zeros(sum(lengths), 3, HEADS, dim, dtype=dtype)
    prefix = make_prefix(PREFIXES, HEADS, dim, dtype)
    return Case(qkv[:, 0], qkv[:, 1], qkv[:, 2], prefix, plan, window)


def differentiate(case: Case) -> None:
    """Launch forward and backward."""
    case = case.with_tensors([x.requires_grad_() for x in case.differentiated])
    torch.autograd.grad(case.run(Route.TRITON).sum(), case.differentiated)


def served_cases() -> Iterator[Case]:
    """Each tile of queries in each dtype, and each view of one of them."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for block_m in (16, 32, 64, 128):
            yield attention_case([128, 40, 1], dtype, 64, Tiling(block_m))
    for dim in (32, 128):
        yield attention_case([128, 40, 1], torch.bfloat16, dim, Tiling(128))
    for mode in Mode:
        for window in (0, 5):
            yield attention_case([128, 40, 1], torch.bfloat16, 64, Tiling(128), mode, window)
    yield attention_case([16, 3], torch.bfloat16, 64, Tiling(16, 4))


def disentangled_case(
    lengths: Sequence[int], dtype: torch.dtype, dim: int, block_m: int, terms: Sequence[str] = TERMS[0]
) -> DisentangledCase:
    slots = [row % len(PREFIXES) for row in range(len(lengths))]
    shape = {"heads": HEADS, "dim": dim, "dtype": dtype}
    return make_disentangled(lengths, slots, PREFIXES, **shape, terms=terms, tiling=Tiling(block_m))


def served_disentangled_cases() -> Iterator[DisentangledCase]:
    """Each tile of queries in each dtype, head dims, and each set of terms."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for block_m in (16, 32, 64, 128):
            yield disentangled_case([128, 40, 1], dtype, 64, block_m)
    for dim in (32, 128):
        yield disentangled_case([128, 40, 1], torch.bfloat16, dim, 128)
    for terms in TERMS:
        yield disentangled_case([128, 40, 1], torch.bfloat16, 64, 64, terms)


def random_lengths(count: int = 100) -> Iterator[list[int]]:
    """Rows that differ in tokens and number; some are one token, or a multiple of 16."""
    chance = random.Random(0)
    for number in range(count):
        rows = 1 if number % 10 == 0 else chance.randrange(1, 40)
        yield [chance.choice([1, 16, chance.randrange(0, 300)]) for _ in range(rows)]


def undeclared(forms: Sequence[Form]) -> dict[str, str]:
    """Forms that no module declares, each with how it differs from the nearest one that is."""
    known = {Form.of(each) for each in declared()}
    wrong = {form for form in forms if form not in known}
    return {f"{form.kernel} {number}": _nearest(form, known) for number, form in enumerate(sorted(wrong))}


def _nearest(form: Form, known: set[Form]) -> str:
    of_kernel = [other for other in known if other.kernel == form.kernel]
    distances = [
        (len({*form.signature, *form.constants} ^ {*other.signature, *other.constants}), other) for other in of_kernel
    ]
    return form.difference(min(distances)[1]) if distances else "the kernel is declared nowhere"


def recompiled(forms: Sequence[Form]) -> dict[str, list[str]]:
    """Each kernel, with the forms that it takes only because a number is 1, or a number or address divides by 16."""
    first: dict[Form, Form] = {}
    found: dict[str, list[str]] = {form.kernel: [] for form in forms}
    for form in dict.fromkeys(forms):
        other = first.setdefault(_meant(form, forms), form)
        found[form.kernel] += [form.difference(other)] if other != form else []
    return found


def _meant(form: Form, forms: Sequence[Form]) -> Form:
    """The form as its launcher meant it, with nothing in it that Triton finds out about numbers."""
    numbers = {name for other in forms for name, kind in other.signature if not kind.startswith("*")}
    pointers = tuple((name, kind.removesuffix(ALIGNED)) for name, kind in form.signature if name not in numbers)
    return form._replace(signature=pointers, constants=tuple(each for each in form.constants if each[0] not in numbers))


def main() -> None:
    def serve() -> None:
        for case in served_cases():
            case.run(Route.TRITON)
            differentiate(case)
        for disentangled in served_disentangled_cases():
            disentangled.run(Route.TRITON)
            disentangled.gradients(Route.TRITON)

    def repeat() -> None:
        for lengths in random_lengths():
            differentiate(attention_case(lengths, torch.bfloat16, 64, Tiling(64)))
            disentangled_case(lengths, torch.bfloat16, 64, 64).gradients(Route.TRITON)

    found = {"undeclared": undeclared(launch_on_paper(serve)), "recompiled": recompiled(launch_on_paper(repeat))}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
