"""Algorithm 1 of Skeinformer on a CPU: each pilot score computed once, padding never.

The same function of the same noise as in `attention.skeinformer`, which is written for any device
and for autograd. Two things differ. Reading a mask waits for nothing here, so a sequence is cut to
its n tokens before anything is computed, and no score needs a mask. And the gradient is written
out, so that one pass over the pilot scores serves the sampling probabilities, the exact rows and,
through their log-sum-exp, the backward pass.

With P_ij = exp(s_ij - lse_i), O = P V and a gradient G of O, softmax attention has the gradients

    dV = P' G,   dS_ij = P_ij (G_i V_j' - G_i O_i'),   dQ = dS K / sqrt(p),   dK = dS' Q / sqrt(p)

for which the kernel behind `scaled_dot_product_attention` computes P again: q, k, v, O and lse
are what is kept. A pilot row has the output of the pilot stage, so the backward pass of the
sampled columns must not see it: there its lse is infinite, hence P and dS are zero.
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

MIN_SCORES = 2**16
"""Scores of a sequence from which cutting it to its tokens pays for a loop over sequences."""
CHUNK_SCORES = 2**18
"""Pilot scores a thread has at a time: 1 MiB in float32, so that they stay in a core's cache."""
STEP = 16
"""Sizes of matrices are multiples of it where they can be: the length of a vector register."""
MAX_PLAIN_EXP = 40.0
"""Scores up to which exp needs no shift: e^80, the square of e^40, is a float32."""

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Positions = slice | Tensor
"""Places in a sequence: a slice, hence a view, or indices if there are holes between them."""


@dataclass(frozen=True)
class Sketch:
    """The switches of Algorithm 1 that this module knows."""

    num_samples: int
    num_pilots: int
    by_importance: bool
    """Columns are sampled by Equation (5), not uniformly."""
    fills_rest: bool
    """Rows are normalized as in lines 7-11, not over the sampled columns alone."""
    reuses_pilots: bool

    def pays_off(self, q: Float[Tensor, "b h n p"]) -> bool:
        """Whether to come here: not in a compiled graph, which must not depend on lengths."""
        _, h, n, _ = q.shape
        num_scores = h * n * (min(self.num_samples, n) + self.num_pilots)
        is_eager_cpu = q.device.type == "cpu" and not torch.compiler.is_compiling()
        return is_eager_cpu and num_scores >= MIN_SCORES


class Kept(NamedTuple):
    """What the backward pass needs of sequences, but for q, k, v and the output."""

    lse: Float[Tensor, "b h n"]
    """Log-sum-exp over the sampled columns; infinite in rows that are reused pilots."""
    columns: Int[Tensor, "b h d"]
    sampled_k: Float[Tensor, "b h e p"]
    sampled_v: Float[Tensor, "b h e p"]
    pilots: Int[Tensor, "b h m"]
    pilot_lse: Float[Tensor, "b h m"]
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
        noise = (pilot_noise, column_noise)
        out: Tensor = SketchedAttention.apply(q, k, v, token_mask, *noise, sketch)
    return out


class SketchedAttention(torch.autograd.Function):
    """`sketched_attention`, for one run of sequences after the other."""

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
        ctx.runs, ctx.padding = list(sequences(token_mask)), list(sequences(~token_mask))
        out = zeros_at(iter(ctx.padding), v)
        kept: list[Tensor] = []
        for b, tokens in ctx.runs:
            where = (b, slice(None), tokens)
            out[where], kept_here = attend(
                q[where], k[where], v[where], column_noise[where], pilot_noise[b], sketch
            )
            kept.extend(kept_here)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.sketch = sketch
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v."""
        q, k, v, out, *kept = ctx.saved_tensors
        grads = [zeros_at(iter(ctx.padding), x) for x in (q, k, v)]
        for b, tokens in ctx.runs:
            where = (b, slice(None), tokens)
            kept_here, kept = Kept(*kept[: len(Kept._fields)]), kept[len(Kept._fields) :]
            parts = gradients(
                grad[where], q[where], k[where], v[where], out[where], kept_here, ctx.sketch
            )
            for whole, part in zip(grads, parts, strict=True):
                whole[where] = part
        return *grads, None, None, None, None


def attend(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    column_noise: Float[Tensor, "b h n"],
    pilot_noise: Float[Tensor, "b h m"],
    sketch: Sketch,
) -> tuple[Float[Tensor, "b h n p"], Kept]:
    """Algorithm 1 for sequences without padding."""
    pilots = pick_positions(q.shape[2], pilot_noise)
    exact, pilot_lse, squares = pilot_stage(gather_rows(q, pilots), k, v, sketch)
    log_weights = torch.zeros_like(squares)
    if sketch.by_importance:
        squared_values = torch.linalg.vector_norm(v, dim=-1, dtype=squares.dtype).square()
        log_weights = importance_log_weights(squares, squared_values)
    columns, _ = sample_without_replacement(log_weights, column_noise, sketch.num_samples)
    sampled_k, sampled_v = sampled_and_rest(k, v, columns, sketch)
    out, lse = flash_attention(q, sampled_k, sampled_v, attn_mask=column_bias(q, columns, sketch))
    if sketch.reuses_pilots:
        out.scatter_(2, pilots[..., None].expand_as(exact), exact.to(out.dtype))
        lse = lse.scatter(2, pilots, torch.inf)
    return out, Kept(lse, columns, sampled_k, sampled_v, pilots, pilot_lse)


def pilot_stage(
    q: Float[Tensor, "b h m p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    sketch: Sketch,
) -> tuple[Float[Tensor, "b h m p"], Float[Tensor, "b h m"], Float[Tensor, "b h n"]]:
    """Output and log-sum-exp of the pilot rows, and sum_i P_ij² of each key j, in one pass.

    In float32 or better; zeros in place of what the switches do without.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(dtype) * q.shape[-1] ** -0.5, k.to(dtype), v.to(dtype)
    out, lse, squares = torch.zeros_like(q), q.new_zeros(q.shape[:3]), q.new_zeros(k.shape[:3])
    if not (sketch.by_importance or sketch.reuses_pilots):
        return out, lse, squares
    num_scores = CHUNK_SCORES * torch.get_num_threads()
    num_rows = max(1, num_scores // k.shape[2] // STEP) * STEP
    # By Cauchy-Schwarz no score of a head is larger
    q_norm, k_norm = (torch.linalg.vector_norm(x, dim=-1).amax(-1) for x in (q, k))
    needs_shift = (q_norm * k_norm > MAX_PLAIN_EXP).tolist()
    # The same memory for every chunk: fresh memory costs more than a pass over the scores
    buffer = q.new_empty(min(num_rows, q.shape[2]), k.shape[2])
    for b, h, start in product(*map(range, q.shape[:2]), range(0, q.shape[2], num_rows)):
        rows = (b, h, slice(start, start + num_rows))
        scores = torch.mm(q[rows], k[b, h].T, out=buffer[: q.shape[2] - start])
        if needs_shift[b][h]:
            lse[rows] = scores.amax(-1)
            scores.sub_(lse[rows][:, None])
        exp = scores.exp_()
        total = exp.sum(-1, keepdim=True)
        lse[rows] += total[:, 0].log()
        if sketch.reuses_pilots:
            out[rows] = (exp @ v[b, h]).div_(total)
        if sketch.by_importance:
            squares[b, h].addmv_(exp.square_().T, total[:, 0] ** -2)
    return out, lse, squares


def num_rest(num_keys: int, columns: Int[Tensor, "b h d"], sketch: Sketch) -> int:
    """How many keys the one behind the sampled keys stands for; none if there is no such key."""
    return num_keys - columns.shape[2] if sketch.fills_rest else 0


def sampled_and_rest(
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    columns: Int[Tensor, "b h d"],
    sketch: Sketch,
) -> tuple[Float[Tensor, "b h e p"], Float[Tensor, "b h e p"]]:
    """Keys and values of the sampled columns; behind them those of the rest, and empty ones."""
    sampled_k, sampled_v = gather_rows(k, columns), gather_rows(v, columns)
    count = num_rest(k.shape[2], columns, sketch)
    if count == 0:
        return sampled_k, sampled_v
    dtype = torch.promote_types(v.dtype, torch.float32)
    is_rest = torch.ones_like(k[..., 0], dtype=dtype).scatter_(2, columns, 0)
    mean_v = (is_rest[:, :, None, :] @ v.to(dtype) / count).to(v.dtype)
    mean_k = sampled_k.mean(2, keepdim=True)
    empty = k.new_zeros(*k.shape[:2], num_empty(columns.shape[2]), k.shape[3])
    return torch.cat([sampled_k, mean_k, empty], 2), torch.cat([sampled_v, mean_v, empty], 2)


def column_bias(
    q: Float[Tensor, "b h n p"], columns: Int[Tensor, "b h d"], sketch: Sketch
) -> Float[Tensor, "1 1 1 e"] | None:
    """0 for a sampled key, log(n - d) for that of the rest, -inf for an empty one.

    In float32 or better; None if there are but sampled keys.
    """
    count = num_rest(q.shape[2], columns, sketch)
    if count == 0:
        return None
    d = columns.shape[2]
    dtype = torch.promote_types(q.dtype, torch.float32)
    bias = q.new_full((1, 1, 1, d + 1 + num_empty(d)), -torch.inf, dtype=dtype)
    bias[..., :d] = 0
    bias[..., d] = math.log(count)
    return bias


def num_empty(num_samples: int) -> int:
    """Keys that fill up the sampled ones and the one of the rest to a multiple of `STEP`."""
    return -(num_samples + 1) % STEP


def gradients(
    grad: Float[Tensor, "b h n p"],
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    out: Float[Tensor, "b h n p"],
    kept: Kept,
    sketch: Sketch,
) -> tuple[Float[Tensor, "b h n p"], Float[Tensor, "b h n p"], Float[Tensor, "b h n p"]]:
    """Gradients of q, k and v of sequences without padding, given that of the output."""
    columns, d = kept.columns, kept.columns.shape[2]
    bias = column_bias(q, columns, sketch)
    grad_q, grad_sampled_k, grad_sampled_v = flash_attention_backward(
        grad, q, kept.sampled_k, kept.sampled_v, out, kept.lse, 0.0, False, attn_mask=bias
    )
    if sketch.reuses_pilots:
        grad_pilots, grad_k, grad_v = pilot_gradients(grad, q, k, v, out, kept)
        add_to_rows(grad_q, kept.pilots, grad_pilots)
    else:
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
    count = num_rest(k.shape[2], columns, sketch)
    if count:
        grad_sampled_k, grad_mean_k, _ = grad_sampled_k.tensor_split([d, d + 1], 2)
        grad_sampled_v, grad_mean_v, _ = grad_sampled_v.tensor_split([d, d + 1], 2)
        grad_sampled_k = grad_sampled_k + grad_mean_k / d
        # To all values, and off again where a value is sampled
        grad_v += grad_mean_v / count
        grad_sampled_v = grad_sampled_v - grad_mean_v / count
    add_to_rows(grad_k, columns, grad_sampled_k)
    add_to_rows(grad_v, columns, grad_sampled_v)
    return grad_q, grad_k, grad_v


def pilot_gradients(
    grad: Float[Tensor, "b h n p"],
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    out: Float[Tensor, "b h n p"],
    kept: Kept,
) -> tuple[Float[Tensor, "b h m p"], Float[Tensor, "b h n p"], Float[Tensor, "b h n p"]]:
    """Gradients of the pilots' queries, of k and of v; a row drawn twice has its gradient once."""
    carrier = carries_gradient(kept.pilots, q.shape[2])[..., None]
    grad, q, out = (gather_rows(x, kept.pilots) for x in (grad, q, out))
    grad = grad.masked_fill_(~carrier, 0)
    lse = kept.pilot_lse
    parts: tuple[Tensor, Tensor, Tensor] = flash_attention_backward(
        grad, q, k, v, out, lse, 0.0, False
    )
    return parts


def add_to_rows(
    x: Float[Tensor, "b h n p"], rows: Int[Tensor, "b h d"], new: Float[Tensor, "b h d p"]
) -> None:
    """Add to rows of `x` in place; a row given several times receives each addition."""
    x.scatter_add_(2, rows[..., None].expand_as(new), new)


def zeros_at(
    padding: Iterator[tuple[slice, Positions]], x: Float[Tensor, "b h n p"]
) -> Float[Tensor, "b h n p"]:
    """A tensor like `x`, zero at padding; what it holds at tokens is for the caller to write."""
    result = torch.empty_like(x)
    for b, places in padding:
        result[b, :, places] = 0
    return result


def sequences(mask: Bool[Tensor, "b n"]) -> Iterator[tuple[slice, Positions]]:
    """Runs of sequences that are True at the same places, and these; none that are all False."""
    first = mask.int().argmax(-1)
    end = first + mask.sum(-1)
    position = torch.arange(mask.shape[1])
    is_block = (mask == ((position >= first[:, None]) & (position < end[:, None]))).all(-1)
    # A sequence with holes is in no run with another
    hole = torch.where(is_block, -1, torch.arange(len(mask)))
    begin = 0
    for cut, run in groupby(zip(first.tolist(), end.tolist(), hole.tolist(), strict=True)):
        stop = begin + len(list(run))
        if cut[0] < cut[1]:
            places = slice(*cut[:2]) if cut[2] < 0 else mask[begin].nonzero()[:, 0]
            yield slice(begin, stop), places
        begin = stop
