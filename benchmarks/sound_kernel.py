"""Two kernels that have nothing to do with attention: a product known to be right, and a fill that obeys any offset."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, out, side, BLOCK: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """out = a b for square matrices whose side is a multiple of BLOCK."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for begin in range(0, side, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        x = tl.load(a + i[:, None] * side + k[None, :])
        y = tl.load(b + k[:, None] * side + j[None, :])
        if UPCAST:
            x = x.to(tl.float32)
            y = y.to(tl.float32)
        acc = tl.dot(x, y, acc)
    tl.store(out + i[:, None] * side + j[None, :], acc.to(out.dtype.element_ty))


@triton.jit
def fill(out, offset, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write zeros from an offset on."""
    tl.store(out + offset + tl.arange(0, BLOCK), tl.zeros((BLOCK,), tl.float32))
