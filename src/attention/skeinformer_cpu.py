"""Algorithm 1 of Skeinformer on a CPU: the cost of its tokens, each pilot score computed once.

The same function of the same noise as `attention.skeinformer`, which is written for any device
and for autograd. Two things differ. Reading a mask waits for nothing here, so each sequence is
cut to its n tokens before anything is computed, and no score needs a mask. And the gradient is
written out, so that one pass over the pilot scores serves the sampling probabilities, the exact
rows and, through the log-sum-exp, the backward pass.

With P_ij = exp(s_ij - lse_i), O = P V and a gradient G of O, softmax attention has the gradients

    dV = P' G,    dS_ij = P_ij (G_i V_j' - G_i O_i'),    dQ = dS K / sqrt(p),    dK = dS' Q / sqrt(p)

for which the kernel behind `scaled_dot_product_attention` computes P again; q, k, v, O and lse
are all that is kept. A row that is a pilot has the output of the pilot stage. In the backward pass
of the sampled columns its lse is infinite: its P is zero there, and so is what it contributes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention.sketching import (
    carries_gradient,
    gather_rows,
    importance_log_weights,
    pick_positions,
    sample_without_replacement,
)

MAX_SCORES = 2**18
"""Pilot scores that exist at a time: 1 MiB in float32, so that they stay in a core's cache."""
ROW_STEP = 16
"""Pilot rows come in multiples of it, as the matrix product likes them."""

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Positions = slice | Tensor
"""Tokens of a sequence: a slice, hence a view, or indices if there are holes among them."""


@dataclass(frozen=True)
class Sketch:
    """The switches of Algorithm 1 that this module knows."""

    num_samples: int
    by_importance: bool
    """Sample columns by Equation (5), not uniformly."""
    fills_rest: bool
    """Adaptive row normalization, not simple."""
    reuses_pilots: bool


class Kept(NamedTuple):
    """What the backward pass needs of a sequence, but for q, k, v and the output."""

    lse: Float[Tensor, "b h n"]
    """Log-sum-exp over the sampled columns; infinite in pilot rows that have their own output."""
    columns: Int[Tensor, "b h d"]
    sampled_k: Float[Tensor, "b h e p"]
    sampled_v: Float[Tensor, "b h e p"]
    pilots: Int[Tensor, "b h m"] | None
    pilot_lse: Float[Tensor, "b h m"] | None
    """Log-sum-exp of the pilot rows over all keys."""


def sketched_attention(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    token_mask: Bool[Tensor, "b n"],
    pilot_noise: Float[Tensor, "b h m"],
    column_noise: Float[Tensor, "b h n"],
    sketch: Sketch,
) -> Float[Tensor, "b h n p"]:
    """Algorithm 1; zeros at padding. Its gradient cannot be differentiated again."""
    with torch.autocast("cpu", enabled=False):
        out: Tensor = SketchedAttention.apply(
            q, k, v, token_mask, pilot_noise, column_noise, sketch
        )
    return out


class SketchedAttention(torch.autograd.Function):
    """`sketched_attention`, a sequence at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        token_mask: Tensor,
        pilot_noise: Tensor,
        column_noise: Tensor,
        sketch: Sketch,
    ) -> Tensor:
        """The output."""
        out = torch.zeros_like(v)
        kept: list[Tensor | None] = []
        for b, tokens in sequences(token_mask):
            q_b, k_b, v_b = (x[b, :, tokens] for x in (q, k, v))
            noise = pilot_noise[b], column_noise[b, :, tokens]
            out[b, :, tokens], kept_b = attend(q_b, k_b, v_b, *noise, sketch)
            kept.extend(kept_b)
        ctx.save_for_backward(q, k, v, token_mask, out, *kept)
        ctx.sketch = sketch
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v."""
        q, k, v, token_mask, out, *kept = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in (q, k, v)]
        for i, (b, tokens) in enumerate(sequences(token_mask)):
            inputs = (x[b, :, tokens] for x in (grad, q, k, v, out))
            kept_b = Kept(*kept[len(Kept._fields) * i :][: len(Kept._fields)])
            for whole, part in zip(grads, gradients(*inputs, kept_b, ctx.sketch), strict=True):
                whole[b, :, tokens] = part
        return *grads, None, None, None, None


def attend(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    pilot_noise: Float[Tensor, "b h m"],
    column_noise: Float[Tensor, "b h n"],
    sketch: Sketch,
) -> tuple[Float[Tensor, "b h n p"], Kept]:
    """Algorithm 1 for sequences without padding."""
    pilots = pick_positions(q.shape[2], pilot_noise)
    exact, pilot_lse, squares = pilot_stage(gather_rows(q, pilots), k, v, sketch)
    if sketch.by_importance:
        log_weights = importance_log_weights(squares, v)
    else:
        log_weights = torch.zeros_like(squares)
    columns, _ = sample_without_replacement(log_weights, column_noise, sketch.num_samples)
    sampled_k, sampled_v = column_inputs(k, v, columns, sketch)
    bias = column_bias(k.shape[2], columns.shape[2], sketch, q)
    out, lse = flash_attention(q, sampled_k, sampled_v, attn_mask=bias)
    if not sketch.reuses_pilots:
        return out, Kept(lse, columns, sampled_k, sampled_v, None, None)
    out.scatter_(2, pilots[..., None].expand_as(exact), exact.to(out.dtype))
    lse = lse.scatter(2, pilots, torch.inf)
    return out, Kept(lse, columns, sampled_k, sampled_v, pilots, pilot_lse)


def pilot_stage(
    q: Float[Tensor, "b h m p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    sketch: Sketch,
) -> tuple[Float[Tensor, "b h m p"], Float[Tensor, "b h m"], Float[Tensor, "b h n"]]:
    """The pilots' outputs and log-sum-exp, and sum_i P_ij² of each key j, from one pass.

    In float32 or better; zeros in place of what the switches do without.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(dtype) * q.shape[-1] ** -0.5, k.to(dtype), v.to(dtype)
    out, lse, squares = torch.zeros_like(q), q.new_zeros(q.shape[:3]), q.new_zeros(k.shape[:3])
    if not (sketch.by_importance or sketch.reuses_pilots):
        return out, lse, squares
    num_rows = max(1, MAX_SCORES // k.shape[2] // ROW_STEP) * ROW_STEP
    buffer = q.new_empty(min(num_rows, q.shape[2]), k.shape[2])
    for head in product(*map(range, q.shape[:2])):
        for start in range(0, q.shape[2], num_rows):
            rows = (*head, slice(start, start + num_rows))
            scores = torch.mm(q[rows], k[head].T, out=buffer[: q.shape[2] - start])
            top = scores.amax(-1, keepdim=True)
            exp = scores.sub_(top).exp_()
            total = exp.sum(-1, keepdim=True)
            lse[rows] = (top + total.log())[:, 0]
            if sketch.reuses_pilots:
                out[rows] = (exp @ v[head]).div_(total)
            if sketch.by_importance:
                squares[head].addmv_(exp.square_().T, total[:, 0] ** -2)
    return out, lse, squares


def column_inputs(
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    columns: Int[Tensor, "b h d"],
    sketch: Sketch,
) -> tuple[Float[Tensor, "b h e p"], Float[Tensor, "b h e p"]]:
    """Keys and values of the sampled columns; and, behind them, of the rest."""
    sampled_k, sampled_v = gather_rows(k, columns), gather_rows(v, columns)
    num_rest = k.shape[2] - columns.shape[2]
    if not sketch.fills_rest or num_rest == 0:
        return sampled_k, sampled_v
    is_rest = v.new_ones(v.shape[:3]).scatter_(2, columns, 0)
    mean_k = sampled_k.mean(2, keepdim=True)
    mean_v = (is_rest / num_rest)[:, :, None, :] @ v
    return torch.cat([sampled_k, mean_k], 2), torch.cat([sampled_v, mean_v], 2)


def column_bias(num_keys: int, num_columns: int, sketch: Sketch, like: Tensor) -> Tensor | None:
    """log(n - d) for the rest, which counts n - d times."""
    num_rest = num_keys - num_columns
    if not sketch.fills_rest or num_rest == 0:
        return None
    bias = like.new_zeros(1, 1, 1, num_columns + 1, dtype=torch.promote_types(like.dtype, torch.float32))
    bias[..., -1] = math.log(num_rest)
    return bias


def gradients(
    grad: Float[Tensor, "b h n p"],
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    out: Float[Tensor, "b h n p"],
    kept: Kept,
    sketch: Sketch,
) -> tuple[Float[Tensor, "b h n p"], Float[Tensor, "b h n p"], Float[Tensor, "b h n p"]]:
    """The gradients of q, k and v of sequences without padding."""
    columns, pilots = kept.columns, kept.pilots
    num_columns = columns.shape[2]
    bias = column_bias(k.shape[2], num_columns, sketch, q)
    grad_q, grad_k_, grad_v_ = flash_attention_backward(
        grad, q, kept.sampled_k, kept.sampled_v, out, kept.lse, 0.0, False, attn_mask=bias
    )
    if pilots is None:
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
    else:
        carrier = carries_gradient(pilots, q.shape[2])[..., None]
        grad_rows, grad_k, grad_v = flash_attention_backward(
            gather_rows(grad, pilots) * carrier, gather_rows(q, pilots), k, v,
            gather_rows(out, pilots), kept.pilot_lse, 0.0, False,
        )  # fmt: skip
        add_rows(grad_q, pilots, grad_rows)
    if bias is not None:
        num_rest = k.shape[2] - num_columns
        grad_k_[:, :, :-1] += grad_k_[:, :, -1:] / num_columns
        share = grad_v_[:, :, -1:] / num_rest
        grad_v += share
        grad_v_ = grad_v_ - share
        grad_k_, grad_v_ = grad_k_[:, :, :-1], grad_v_[:, :, :-1]
    add_rows(grad_k, columns, grad_k_)
    add_rows(grad_v, columns, grad_v_)
    return grad_q, grad_k, grad_v


def add_rows(x: Float[Tensor, "b h n p"], rows: Int[Tensor, "b h d"], new: Float[Tensor, "b h d p"]) -> None:
    """Add to rows of `x`, in place."""
    x.scatter_add_(2, rows[..., None].expand_as(new), new)


def sequences(mask: Bool[Tensor, "b n"]) -> Iterator[tuple[slice, Positions]]:
    """Neighbors that are cut alike, and where their tokens are; none that are all padding."""
    lengths = mask.sum(-1)
    is_cut = mask == (torch.arange(mask.shape[1]) < lengths[:, None])
    # A sequence with holes is alike to no other
    cuts = torch.where(is_cut.all(-1), lengths, -1 - torch.arange(len(mask)))
    start = 0
    for cut, run in groupby(cuts.tolist()):
        stop = start + len(list(run))
        if cut:
            yield slice(start, stop), slice(cut) if cut > 0 else mask[start].nonzero()[:, 0]
        start = stop
