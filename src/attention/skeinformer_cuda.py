"""Skeinformer's two kernels for a GPU: attention with a bias for each key, and column norms.

Written in Triton. torch has kernels for attention that keep O(n), but those that take a bias, or
float32, are slow where there are few keys or few rows: the sampled columns of Algorithm 1, and its
pilots. Here the backward pass splits the rows where there are few keys; partial sums are added in
a fixed order, so that the same inputs give the same bits. Scores stay in float32, and matrix
products of float32 take tensor cores, at three products each unless torch allows TF32.

With P_ij = exp(s_ij - lse_i), O = P V and a gradient G of O,

    dV = P' G,   dS_ij = P_ij (G_i V_j' - G_i O_i'),   dQ = dS K / sqrt(p),   dK = dS' Q / sqrt(p)
"""

import math
from typing import Any, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError:  # not on this platform: `attention.skeinformer` goes without
    triton = None

LOG2_E = math.log2(math.e)
NUM_PROGRAMS = 264
"""What keeps a GPU busy: two for each of the 132 multiprocessors of an H100."""
BLOCK = 64
"""Rows or keys that a program has at a time."""
HALVES = (torch.bfloat16, torch.float16)


def is_available(q: Float[Tensor, "b h n p"]) -> bool:
    """Whether the kernels take such a tensor."""
    return triton is not None and q.is_cuda and q.dtype in (torch.float32, *HALVES)


if triton is not None:

    @triton.jit
    @no_type_check
    def _scores(rows, keys, bias, scale, PRECISION: tl.constexpr):
        """In units of log 2; rows x keys."""
        return tl.dot(rows, tl.trans(keys), input_precision=PRECISION) * scale + bias[None, :]

    @triton.jit
    @no_type_check
    def _load(base, index, stride, size, p: tl.constexpr, P: tl.constexpr):
        """Rows of a matrix, zeros beyond its `size` rows and `p` columns."""
        column = tl.arange(0, P)
        where = (index < size)[:, None] & (column < p)[None, :]
        return tl.load(base + index[:, None] * stride + column[None, :], mask=where, other=0.0)

    @triton.jit
    @no_type_check
    def _store(base, values, index, stride, size, p: tl.constexpr, P: tl.constexpr):
        column = tl.arange(0, P)
        where = (index < size)[:, None] & (column < p)[None, :]
        values = values.to(base.dtype.element_ty)
        tl.store(base + index[:, None] * stride + column[None, :], values, mask=where)

    @triton.jit
    @no_type_check
    def _bias(base, index, size):
        """In units of log 2, hence times log2(e)."""
        return tl.load(base + index, mask=index < size, other=float("-inf")) * 1.4426950408889634

    @triton.jit
    @no_type_check
    def _attend(
        q, k, v, bias, out, lse,
        q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, bias_h, out_b, out_h, out_n,
        num_heads, num_rows, num_keys, scale,
        p: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """A block of rows over all keys; `lse` is in units of log 2."""
        sequence = tl.program_id(1)
        b, h = sequence // num_heads, sequence % num_heads
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        rows = _load(q + b * q_b + h * q_h, row, q_n, num_rows, p, P)
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        mass = tl.zeros([ROWS], tl.float32)
        total = tl.zeros([ROWS, P], tl.float32)
        for start in range(0, num_keys, KEYS):
            key = start + tl.arange(0, KEYS)
            keys = _load(k + b * k_b + h * k_h, key, k_n, num_keys, p, P)
            values = _load(v + b * v_b + h * v_h, key, v_n, num_keys, p, P)
            weight = _bias(bias + b * bias_b + h * bias_h, key, num_keys)
            scores = _scores(rows, keys, weight, scale, PRECISION)
            above = tl.maximum(largest, tl.max(scores, 1))
            shift = tl.where(above == float("-inf"), 0.0, above)  # no key yet
            probs = tl.exp2(scores - shift[:, None])
            kept = tl.exp2(largest - shift)
            mass = mass * kept + tl.sum(probs, 1)
            update = tl.dot(probs.to(values.dtype), values, input_precision=PRECISION)
            total = total * kept[:, None] + update
            largest = above
        _store(out + b * out_b + h * out_h, total / mass[:, None], row, out_n, num_rows, p, P)
        tl.store(lse + sequence * num_rows + row, largest + tl.log2(mass), mask=row < num_rows)

    @triton.jit
    @no_type_check
    def _differentiate_rows(
        q, k, v, bias, out, lse, grad, delta, dq,
        q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, bias_h, out_b, out_h, out_n,
        grad_b, grad_h, grad_n, dq_b, dq_h, dq_n,
        num_heads, num_rows, num_keys, scale,
        p: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """dQ of a block of rows, and `delta`, the G_i O_i' that the keys' gradients need."""
        sequence = tl.program_id(1)
        b, h = sequence // num_heads, sequence % num_heads
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        rows = _load(q + b * q_b + h * q_h, row, q_n, num_rows, p, P)
        grads = _load(grad + b * grad_b + h * grad_h, row, grad_n, num_rows, p, P)
        outs = _load(out + b * out_b + h * out_h, row, out_n, num_rows, p, P)
        at = sequence * num_rows + row
        mass = tl.load(lse + at, mask=row < num_rows, other=float("inf"))
        product = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
        tl.store(delta + at, product, mask=row < num_rows)
        total = tl.zeros([ROWS, P], tl.float32)
        for start in range(0, num_keys, KEYS):
            key = start + tl.arange(0, KEYS)
            keys = _load(k + b * k_b + h * k_h, key, k_n, num_keys, p, P)
            values = _load(v + b * v_b + h * v_h, key, v_n, num_keys, p, P)
            weight = _bias(bias + b * bias_b + h * bias_h, key, num_keys)
            probs = tl.exp2(_scores(rows, keys, weight, scale, PRECISION) - mass[:, None])
            dprobs = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
            dscores = probs * (dprobs - product[:, None])
            total += tl.dot(dscores.to(keys.dtype), keys, input_precision=PRECISION)
        total *= scale * 0.6931471805599453  # ln 2: from those units to scores
        _store(dq + b * dq_b + h * dq_h, total, row, dq_n, num_rows, p, P)

    @triton.jit
    @no_type_check
    def _differentiate_keys(
        q, k, v, bias, lse, grad, delta, dk, dv,
        q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, bias_h,
        grad_b, grad_h, grad_n, dk_s, dk_b, dk_h, dk_n,
        num_heads, num_rows, num_keys, rows_per_split, scale,
        p: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """dK and dV of a block of keys, from the rows of one split; both in the same layout."""
        sequence, split = tl.program_id(1), tl.program_id(2)
        b, h = sequence // num_heads, sequence % num_heads
        key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
        keys = _load(k + b * k_b + h * k_h, key, k_n, num_keys, p, P)
        values = _load(v + b * v_b + h * v_h, key, v_n, num_keys, p, P)
        weight = _bias(bias + b * bias_b + h * bias_h, key, num_keys)
        total_k = tl.zeros([KEYS, P], tl.float32)
        total_v = tl.zeros([KEYS, P], tl.float32)
        first = split * rows_per_split
        for start in range(first, tl.minimum(first + rows_per_split, num_rows), ROWS):
            row = start + tl.arange(0, ROWS)
            rows = _load(q + b * q_b + h * q_h, row, q_n, num_rows, p, P)
            grads = _load(grad + b * grad_b + h * grad_h, row, grad_n, num_rows, p, P)
            at = sequence * num_rows + row
            mass = tl.load(lse + at, mask=row < num_rows, other=float("inf"))
            product = tl.load(delta + at, mask=row < num_rows, other=0.0)
            probs = tl.exp2(_scores(rows, keys, weight, scale, PRECISION) - mass[:, None])
            dprobs = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
            dscores = probs * (dprobs - product[:, None])
            probs, dscores = probs.to(grads.dtype), dscores.to(rows.dtype)
            total_v += tl.dot(tl.trans(probs), grads, input_precision=PRECISION)
            total_k += tl.dot(tl.trans(dscores), rows, input_precision=PRECISION)
        total_k *= scale * 0.6931471805599453  # ln 2, as above
        offset = split * dk_s + b * dk_b + h * dk_h
        _store(dk + offset, total_k, key, dk_n, num_keys, p, P)
        _store(dv + offset, total_v, key, dk_n, num_keys, p, P)

    @triton.jit
    @no_type_check
    def _square_columns(
        q, k, lse, norms, q_b, q_h, q_n, k_b, k_h, k_n,
        num_heads, num_rows, num_keys, scale,
        p: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Sum over the rows of the squared weights of a block of keys."""
        sequence = tl.program_id(1)
        b, h = sequence // num_heads, sequence % num_heads
        key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
        keys = _load(k + b * k_b + h * k_h, key, k_n, num_keys, p, P)
        total = tl.zeros([KEYS], tl.float32)
        weight = tl.zeros([KEYS], tl.float32)
        for start in range(0, num_rows, ROWS):
            row = start + tl.arange(0, ROWS)
            rows = _load(q + b * q_b + h * q_h, row, q_n, num_rows, p, P)
            mass = tl.load(lse + sequence * num_rows + row, mask=row < num_rows, other=float("inf"))
            probs = tl.exp2(_scores(rows, keys, weight, scale, PRECISION) - mass[:, None])
            total += tl.sum(probs * probs, 0)
        tl.store(norms + sequence * num_keys + key, total, mask=key < num_keys)


@torch.compiler.disable  # inductor cannot take over kernels that call functions of their own
def biased_attention(
    q: Float[Tensor, "b h r p"],
    k: Float[Tensor, "b h m p"],
    v: Float[Tensor, "b h m p"],
    bias: Float[Tensor, "b h m"],
) -> tuple[Float[Tensor, "b h r p"], Float[Tensor, "b h r"]]:
    """softmax(q k' / sqrt(p) + bias) v, and for `squared_columns` the log-sum-exp of its scores.

    `bias` is in float32, without gradient; -inf excludes a key, and every row needs one key.
    """
    return BiasedAttention.apply(q, k, v, bias)


class BiasedAttention(torch.autograd.Function):
    """`biased_attention`; keeps what it is given, the output and the log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v, bias = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, bias))
        b, h, num_rows, p = q.shape
        # positions before heads, as the backbone merges them next
        out = q.new_empty(b, num_rows, h, p).transpose(1, 2)
        lse = q.new_empty(b, h, num_rows, dtype=torch.float32)
        rows = block_of_rows(q)
        _attend[(triton.cdiv(num_rows, rows), b * h)](
            q, k, v, bias, out, lse,
            *strides(q, k, v), *bias.stride()[:2], *strides(out),
            h, num_rows, k.shape[2], score_scale(p),
            **block_sizes(q, rows=rows),
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, bias, out, lse)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, bias, out, lse = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        b, h, num_rows, p = q.shape
        num_keys = k.shape[2]
        delta, dq = torch.empty_like(lse), torch.empty_like(q)
        rows = block_of_rows(q)
        _differentiate_rows[(triton.cdiv(num_rows, rows), b * h)](
            q, k, v, bias, out, lse, grad, delta, dq,
            *strides(q, k, v), *bias.stride()[:2], *strides(out, grad, dq),
            h, num_rows, num_keys, score_scale(p),
            **block_sizes(q, rows=rows),
        )  # fmt: skip
        key_blocks, row_blocks = triton.cdiv(num_keys, BLOCK), triton.cdiv(num_rows, BLOCK)
        num_splits = min(triton.cdiv(NUM_PROGRAMS, key_blocks * b * h), row_blocks)
        rows_per_split = triton.cdiv(row_blocks, num_splits) * BLOCK
        num_splits = triton.cdiv(num_rows, rows_per_split)
        dtype = q.dtype if num_splits == 1 else torch.float32
        dk, dv = q.new_empty(2, num_splits, b, num_keys, h, p, dtype=dtype).transpose(3, 4)
        _differentiate_keys[(key_blocks, b * h, num_splits)](
            q, k, v, bias, lse, grad, delta, dk, dv,
            *strides(q, k, v), *bias.stride()[:2], *strides(grad), *dk.stride()[:4],
            h, num_rows, num_keys, rows_per_split, score_scale(p),
            **block_sizes(q),
        )  # fmt: skip
        if num_splits == 1:
            return dq, dk[0], dv[0], None
        return dq, dk.sum(0).to(q.dtype), dv.sum(0).to(q.dtype), None


@torch.compiler.disable
def squared_columns(
    q: Float[Tensor, "b h r p"], k: Float[Tensor, "b h m p"], lse: Float[Tensor, "b h r"]
) -> Float[Tensor, "b h m"]:
    """Of the weights of `biased_attention`, the sum over the rows of their squares; no gradient.

    The bias is left out: what is given for a key that it excludes means nothing.
    """
    b, h, num_rows, p = q.shape
    num_keys = k.shape[2]
    norms = q.new_empty(b, h, num_keys, dtype=torch.float32)
    _square_columns[(triton.cdiv(num_keys, BLOCK), b * h)](
        q, k, lse, norms, *strides(q, k), h, num_rows, num_keys, score_scale(p), **block_sizes(q)
    )
    return norms


def block_of_rows(q: Float[Tensor, "b h r p"]) -> int:
    """Fewer rows a program where there would be too few programs."""
    return BLOCK if q.shape[:3].numel() >= NUM_PROGRAMS * BLOCK else BLOCK // 2


def block_sizes(q: Float[Tensor, "b h r p"], rows: int = BLOCK) -> dict[str, Any]:
    """What kernels are compiled for."""
    p = q.shape[-1]
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    width = max(triton.next_power_of_2(p), 16)
    return {"p": p, "P": width, "ROWS": rows, "KEYS": BLOCK, "PRECISION": precision}


def score_scale(head_dim: int) -> float:
    """From a product of query and key to a score in units of log 2."""
    return head_dim**-0.5 * LOG2_E


def strides(*tensors: Float[Tensor, "_ _ _ _"]) -> tuple[int, ...]:
    """Of sequences, heads and positions."""
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])
