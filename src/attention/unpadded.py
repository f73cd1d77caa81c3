"""Softmax attention without its padding, and with the norms of its columns.

Two forms of softmax(q k' / sqrt(p) + bias) v serve Skeinformer:

    attention_of_rows     n rows that may be padding, over few keys that carry a bias
    pilot_attention       few rows over n keys that may be padding; from the same probabilities P
                          the columns' sums of squares, which Equation (5) of Skeinformer needs

On a CPU, where reading a mask waits for nothing, each sequence is cut to its tokens before
anything is computed. With P_ij = exp(s_ij - lse_i), O = P V and the gradient G of O, the gradients

    dV = P' G,    dS_ij = P_ij (G_i V_j' - G_i O_i'),    dQ = dS K / sqrt(p),    dK = dS' Q / sqrt(p)

come from the kernel behind `scaled_dot_product_attention`, which computes P again from q, k and
lse; they cannot be differentiated again. Elsewhere, and in a compiled graph, which must not depend
on lengths, `scaled_dot_product_attention` gets a mask, and the columns' P is computed apart.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_SCORES = 2**18
"""Scores that exist at a time, 1 MiB in float32: all passes over them stay in a core's cache."""
MIN_ROWS = 16
"""Rows at a time where a single one has many scores: fewer would starve the matrix products."""

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Positions = slice | Tensor
"""Tokens of a sequence: a slice, hence a view, or indices if there are holes among them."""


def attention_of_rows(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h d p"],
    v: Float[Tensor, "b h d p"],
    bias: Float[Tensor, "b h d"],
    rows: Bool[Tensor, "b n"],
) -> Float[Tensor, "b h n p"]:
    """Attention of the rows where the mask is True; what the other rows hold is not defined."""
    bias = bias[:, :, None, :]
    if not cuts_padding(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    out: Tensor = AttentionOfRows.apply(q, k, v, bias, rows)
    return out


def pilot_attention(
    q: Float[Tensor, "b h m p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
) -> tuple[Float[Tensor, "b h m p"], Float[Tensor, "b h n"]]:
    """Attention over the keys where the mask is True, and `column_squares`."""
    if not cuts_padding(q):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None, :])
        return out, column_squares(q, k, keys)
    out, squares = PilotAttention.apply(q, k, v, keys)
    return out, squares


@torch.no_grad()
def column_squares(
    q: Float[Tensor, "b h m p"], k: Float[Tensor, "b h n p"], keys: Bool[Tensor, "b n"]
) -> Float[Tensor, "b h n"]:
    """sum_i P_ij² of each key j, without gradient; 0 where the mask is False."""
    if not cuts_padding(q):
        scores = ((q * q.shape[-1] ** -0.5) @ k.mT).float()  # b h m n
        probs = scores.masked_fill_(~keys[:, None, None, :], float("-inf")).softmax(-1)
        return probs.square_().sum(2)
    squares = zeros(k.shape[:3], q)
    for b, tokens in sequences(keys):
        part = zeros(k[b, :, tokens].shape[:3], q)
        for (i, _), exp, _, total in exponentials(q[b], k[b, :, tokens]):
            add_squares(part[i], exp, total)
        squares[b, :, tokens] = part
    return squares


def cuts_padding(q: Tensor) -> bool:
    """Whether sequences are cut to their tokens: the host has the mask, and may branch on it."""
    return q.device.type == "cpu" and not torch.compiler.is_compiling()


class AttentionOfRows(torch.autograd.Function):
    """`attention_of_rows`; rows of padding are zero. Keeps the inputs, the output and lse."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
        """Attend, a sequence at a time."""
        out, lse = zeros_by_rows(q), zeros(q.shape[:3], q)
        for b, tokens in sequences(rows):
            out[b, :, tokens], lse[b, :, tokens] = flash_attention(
                q[b, :, tokens], k[b], v[b], attn_mask=bias[b]
            )
        ctx.save_for_backward(q, k, v, bias, rows, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        q, k, v, bias, rows, out, lse = ctx.saved_tensors
        grad_q, grad_k, grad_v = map(zeros_by_rows, (q, k, v))
        for b, tokens in sequences(rows):
            grad_q[b, :, tokens], grad_k[b], grad_v[b] = flash_attention_backward(
                grad[b, :, tokens], q[b, :, tokens], k[b], v[b],
                out[b, :, tokens], lse[b, :, tokens], 0.0, False, attn_mask=bias[b],
            )  # fmt: skip
        return grad_q, grad_k, grad_v, None, None


class PilotAttention(torch.autograd.Function):
    """`pilot_attention`. Keeps the inputs, the output and lse."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend, a sequence at a time, and sum the squared probabilities."""
        out, lse, squares = zeros_by_rows(q), zeros(q.shape[:3], q), zeros(k.shape[:3], q)
        for b, tokens in sequences(keys):
            out[b], lse[b], squares[b, :, tokens] = rows_and_squares(
                q[b], k[b, :, tokens], v[b, :, tokens]
            )
        ctx.save_for_backward(q, k, v, keys, out, lse)
        ctx.mark_non_differentiable(squares)
        return out, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        q, k, v, keys, out, lse = ctx.saved_tensors
        grad_q, grad_k, grad_v = map(zeros_by_rows, (q, k, v))
        for b, tokens in sequences(keys):
            grad_q[b], grad_k[b, :, tokens], grad_v[b, :, tokens] = flash_attention_backward(
                grad[b], q[b], k[b, :, tokens], v[b, :, tokens], out[b], lse[b], 0.0, False
            )
        return grad_q, grad_k, grad_v, None


def rows_and_squares(
    q: Float[Tensor, "b h m p"], k: Float[Tensor, "b h n p"], v: Float[Tensor, "b h n p"]
) -> tuple[Float[Tensor, "b h m p"], Float[Tensor, "b h m"], Float[Tensor, "b h n"]]:
    """P V, the log-sum-exp of each row, and sum_i P_ij² of each key, from one pass."""
    out, lse, squares = zeros(q.shape, q), zeros(q.shape[:3], q), zeros(k.shape[:3], q)
    v = v.to(out.dtype)
    for (head, rows), exp, top, total in exponentials(q, k):
        out[*head, rows] = (exp @ v[head]).div_(total)
        lse[*head, rows] = (top + total.log())[:, 0]
        add_squares(squares[head], exp, total)
    return out, lse, squares


def exponentials(
    q: Float[Tensor, "b h m p"], k: Float[Tensor, "b h n p"]
) -> Iterator[tuple[tuple[tuple[int, int], slice], Tensor, Tensor, Tensor]]:
    """exp(s_ij - t_i) for some rows i of a head at a time, the largest score t_i, and the sum."""
    b, h, m, p = q.shape
    q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k))
    q = q * p**-0.5
    num_rows = max(MIN_ROWS, MAX_SCORES // k.shape[2])
    for head in product(range(b), range(h)):
        for start in range(0, m, num_rows):
            rows = slice(start, start + num_rows)
            scores = q[*head, rows] @ k[head].T
            top = scores.amax(-1, keepdim=True)
            exp = scores.sub_(top).exp_()
            yield (head, rows), exp, top, exp.sum(-1, keepdim=True)


def add_squares(squares: Float[Tensor, "n"], exp: Float[Tensor, "r n"], total: Float[Tensor, "r 1"]) -> None:
    """Add sum_i P_ij² over some rows, P = exp / total; destroys `exp`."""
    squares.addmv_(exp.square_().T, total[:, 0] ** -2)


def zeros_by_rows(x: Float[Tensor, "b h n p"]) -> Float[Tensor, "b h n p"]:
    """Zeros of the same shape, the heads of a row side by side: the layout of the kernel."""
    b, h, n, p = x.shape
    return x.new_zeros(b, n, h, p).transpose(1, 2)


def zeros(shape: torch.Size, like: Tensor) -> Tensor:
    """Zeros in float32 or better."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def sequences(mask: Bool[Tensor, "b n"]) -> Iterator[tuple[slice, Positions]]:
    """Sequences that have tokens, and where these are; all sequences at once without padding."""
    if mask.all():
        yield slice(None), slice(None)
        return
    for i, row in enumerate(mask):
        tokens = row.nonzero()[:, 0]
        count = len(tokens)
        if count:
            yield slice(i, i + 1), slice(count) if row[:count].all() else tokens
