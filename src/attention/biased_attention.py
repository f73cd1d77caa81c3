"""Softmax attention with a bias for each key, where there are few rows or few keys, on a CPU.

torch's kernel for attention multiplies small matrices through a library, and writes each product
to memory; biased_attention.cpp keeps it in registers and the first caches.
"""

import ctypes
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from attention.compilation import load_compiled

SOURCE = Path(__file__).with_suffix(".cpp")


def is_available() -> bool:
    """Whether the kernel is there, compiled now if need be; a warning says why if it is not."""
    return load_compiled(SOURCE) is not None


@torch.library.custom_op(
    "lra::biased_attention",
    mutates_args={"out"},
    device_types="cpu",
    schema="(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor(a!)? out, bool with_squares)"
    " -> (Tensor, Tensor)",
)
def biased_attention(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h m p"],
    v: Float[Tensor, "b h m p"],
    bias: Float[Tensor, "m"] | None,
    out: Float[Tensor, "b h n p"] | None,
    with_squares: bool,
) -> tuple[Float[Tensor, "b h n"], Float[Tensor, "b h _"]]:
    """Write P v to `out`, if given, where P = softmax(q k' / sqrt(p) + bias).

    Returns the log-sum-exp of each row and, with squares, sum_i P_ij² of each key j, else nothing
    in its place. All in float32, or all in float64; a row's numbers lie one after the other.
    """
    b, h, n, _ = q.shape
    m = k.shape[2]
    num_blocks = num_parts(n, "block") if with_squares else 0
    lse, squares = q.new_empty(b, h, n), q.new_empty(b, h, num_blocks, m)
    given = {"v": v, "bias": bias, "out": out, "lse": lse}
    call("attend", q, k, **given, squares=squares if with_squares else None)
    return lse, squares.sum(2)


def biased_attention_gradients(
    grad: Float[Tensor, "b h n p"],
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h m p"],
    v: Float[Tensor, "b h m p"],
    bias: Float[Tensor, "m"] | None,
    out: Float[Tensor, "b h n p"],
    lse: Float[Tensor, "b h n"],
    into: tuple[Float[Tensor, "b h n p"], Float[Tensor, "b h m p"], Float[Tensor, "b h m p"]],
) -> None:
    """Write the gradients of q, k and v, given that of the output.

    A row whose log-sum-exp is infinite gives and gets none.
    """
    row_tiles, key_tiles = num_parts(q.shape[2], "tile"), num_parts(k.shape[2], "tile")
    num_tiles = (key_tiles, row_tiles, row_tiles)
    parts = [tiled(x, count) for x, count in zip(into, num_tiles, strict=True)]
    given = {"v": v, "bias": bias, "out": out, "lse": lse, "grad": grad}
    call("differentiate", q, k, **given, **dict(zip(("dq", "dk", "dv"), parts, strict=True)))
    for whole, part in zip(into, parts, strict=True):
        if len(part) > 1:
            torch.sum(part, 0, out=whole)


def tiled(x: Float[Tensor, "b h n p"], num_tiles: int) -> Float[Tensor, "t b h n p"]:
    """Where each tile writes its part of a tensor: to itself, if there is one tile."""
    return x[None] if num_tiles == 1 else x.new_empty(num_tiles, *x.shape)


def dense_rows(x: Float[Tensor, "b h n p"]) -> Float[Tensor, "b h n p"]:
    """The tensor with a row's numbers one after the other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def library() -> ctypes.CDLL:
    """The compiled kernel, for callers that have asked whether it is available."""
    compiled = load_compiled(SOURCE)
    assert compiled is not None
    return compiled


def num_parts(size: int, part: str) -> int:
    """How many blocks, or tiles, the kernel makes of so many rows."""
    return -(-size // ctypes.c_int64.in_dll(library(), f"rows_of_a_{part}").value)


class TensorArgument(ctypes.Structure):
    """`Tensor` of the kernel: an address, and the strides of all dimensions but the last."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("tile", "sequence", "head", "row")),
    )


SIZES = ("num_threads", "batch_size", "num_heads", "num_rows", "num_keys", "head_dim")
DENSE = ("bias", "lse", "squares", "scratch")
STRIDED = ("q", "k", "v", "out", "grad", "dq", "dk", "dv")


class Attention(ctypes.Structure):
    """`Attention` of the kernel."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_void_p) for name in DENSE),
        *((name, TensorArgument) for name in STRIDED),
    )


def call(name: str, q: Tensor, k: Tensor, **tensors: Tensor | None) -> None:
    """Run a function of the kernel on tensors, named as its arguments are."""
    given = Attention(torch.get_num_threads(), *q.shape[:3], k.shape[2], q.shape[3])
    for field, tensor in {"q": q, "k": k, **tensors}.items():
        if tensor is None:
            continue
        if field in STRIDED:
            assert tensor.stride(-1) == 1
            strides = (0, *tensor.stride())[-5:-1]
            setattr(given, field, TensorArgument(tensor.data_ptr(), *strides))
        else:
            assert tensor.is_contiguous()
            setattr(given, field, tensor.data_ptr())
    dtype = str(q.dtype).removeprefix("torch.")
    count_scratch = getattr(library(), f"{name}_scratch_{dtype}")
    count_scratch.restype = ctypes.c_int64
    # From torch, so that its allocator knows of it
    scratch = q.new_empty(count_scratch(ctypes.byref(given)))
    given.scratch = scratch.data_ptr()
    getattr(library(), f"{name}_{dtype}")(ctypes.byref(given))
