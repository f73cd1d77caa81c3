"""Algorithm 1 of Skeinformer on a CPU: each pilot score computed once, padding never.

The same function of the same noise as in `attention.skeinformer`, which is written for any device
and for autograd. Two things differ. Reading a mask waits for nothing here, so a sequence is cut to
its n tokens before anything is computed, and no score needs a mask. And the gradient is written
out, so that one pass over the pilot scores serves the sampling probabilities, the exact rows and,
through their log-sum-exp, the backward pass: q, k, v, the output and log-sum-exps are what is kept.

The pilots' attention to all keys, and that of all rows to the sampled ones, is that of
`attention.biased_attention`. A pilot row has the output of the pilot stage, so the backward pass of
the sampled columns must not see it: there its log-sum-exp is infinite, hence its weights and their
gradients are zero.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention.biased_attention import (
    biased_attention,
    biased_attention_gradients,
    dense_rows,
    is_available,
)
from attention.sketching import (
    carries_gradient,
    importance_log_weights,
    pick_positions,
    sample_without_replacement,
)

MIN_SCORES = 2**16
"""Scores of a sequence from which cutting it to its tokens pays for a loop over sequences."""

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
        """Whether to come here: not in a compiled graph, which must not depend on lengths.

        Nor, with a warning, where the kernel cannot be compiled.
        """
        _, h, n, _ = q.shape
        num_scores = h * n * (min(self.num_samples, n) + self.num_pilots)
        is_eager_cpu = q.device.type == "cpu" and not torch.compiler.is_compiling()
        return is_eager_cpu and num_scores >= MIN_SCORES and is_available()


class Kept(NamedTuple):
    """What the backward pass needs of sequences, but for q, k, v and the output."""

    lse: Float[Tensor, "b h n"]
    """Log-sum-exp over the sampled columns; infinite in rows that are reused pilots."""
    columns: Int[Tensor, "b h d"]
    sampled_k: Float[Tensor, "b h e p"]
    sampled_v: Float[Tensor, "b h e p"]
    pilots: Int[Tensor, "b h m"]
    pilot_lse: Float[Tensor, "b h m"] | None
    """Log-sum-exp of the pilot rows over all keys; None if they are not reused."""


def sketched_attention(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    token_mask: Bool[Tensor, "b n"],
    pilot_noise: Float[Tensor, "b h m"],
    column_noise: Float[Tensor, "b h n"],
    sketch: Sketch,
) -> Float[Tensor, "b h n p"]:
    """Algorithm 1, in float32 or better; zeros at padding.

    Its gradient cannot be differentiated again.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        qkv = (dense_rows(x.to(dtype)) for x in (q, k, v))
        noise = (pilot_noise, column_noise.to(dtype))
        out: Tensor = SketchedAttention.apply(*qkv, token_mask, *noise, sketch)
    return out.to(q.dtype)


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
        kept: list[Tensor | None] = []
        for b, tokens in ctx.runs:
            where = (b, slice(None), tokens)
            noise = (pilot_noise[b], column_noise[where])
            with written(out, where) as here:
                kept.extend(attend(q[where], k[where], v[where], *noise, sketch, here))
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.sketch = sketch
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v."""
        q, k, v, out, *kept = ctx.saved_tensors
        grads = [zeros_at(iter(ctx.padding), x) for x in (q, k, v)]
        grad = dense_rows(grad)
        for b, tokens in ctx.runs:
            where = (b, slice(None), tokens)
            kept_here, kept = Kept(*kept[: len(Kept._fields)]), kept[len(Kept._fields) :]
            inputs = (q[where], k[where], v[where], out[where], kept_here, ctx.sketch)
            with ExitStack() as stack:
                here = (stack.enter_context(written(x, where)) for x in grads)
                differentiate(grad[where], *inputs, *here)
        return *grads, None, None, None, None


@contextmanager
def written(
    x: Float[Tensor, "b h n p"], where: tuple[slice, slice, Positions]
) -> Iterator[Float[Tensor, "_ h _ p"]]:
    """A part of a tensor to write to."""
    part = x[where]
    yield part
    if not isinstance(where[-1], slice):  # then it is a copy
        x[where] = part


def attend(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    pilot_noise: Float[Tensor, "b h m"],
    column_noise: Float[Tensor, "b h n"],
    sketch: Sketch,
    out: Float[Tensor, "b h n p"],
) -> Kept:
    """Algorithm 1 for sequences without padding; writes to `out`."""
    pilots = pick_positions(q.shape[2], pilot_noise)
    log_weights, exact, pilot_lse = torch.zeros_like(column_noise), None, None
    if sketch.by_importance or sketch.reuses_pilots:
        rows = q[rows_at(pilots)]
        exact = torch.empty_like(rows) if sketch.reuses_pilots else None
        pilot_lse, squares = biased_attention(rows, k, v, None, exact, sketch.by_importance)
        if sketch.by_importance:
            squared_values = torch.linalg.vector_norm(v, dim=-1).square()
            log_weights = importance_log_weights(squares, squared_values)
    columns, _ = sample_without_replacement(log_weights, column_noise, sketch.num_samples)
    sampled_k, sampled_v = sampled_and_rest(k, v, columns, sketch)
    bias = column_bias(k, columns, sketch)
    lse, _ = biased_attention(q, sampled_k, sampled_v, bias, out, False)
    if exact is not None:
        out[rows_at(pilots)] = exact
        lse[rows_at(pilots)] = torch.inf
    return Kept(lse, columns, sampled_k, sampled_v, pilots, None if exact is None else pilot_lse)


def num_rest(num_keys: int, columns: Int[Tensor, "b h d"], sketch: Sketch) -> int:
    """How many keys the one behind the sampled keys stands for; none if there is no such key."""
    return num_keys - columns.shape[2] if sketch.fills_rest else 0


def sampled_and_rest(
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    columns: Int[Tensor, "b h d"],
    sketch: Sketch,
) -> tuple[Float[Tensor, "b h e p"], Float[Tensor, "b h e p"]]:
    """Keys and values of the sampled columns, and behind them those of the rest."""
    sampled_k, sampled_v = k[rows_at(columns)], v[rows_at(columns)]
    count = num_rest(k.shape[2], columns, sketch)
    if count == 0:
        return sampled_k, sampled_v
    is_rest = k.new_ones(k.shape[:3])
    is_rest[rows_at(columns)] = 0
    mean_v = is_rest[:, :, None, :] @ v / count
    mean_k = sampled_k.mean(2, keepdim=True)
    return torch.cat([sampled_k, mean_k], 2), torch.cat([sampled_v, mean_v], 2)


def column_bias(
    k: Float[Tensor, "b h n p"], columns: Int[Tensor, "b h d"], sketch: Sketch
) -> Float[Tensor, "e"] | None:
    """0 for a sampled key, log(n - d) for that of the rest; None if there are but sampled keys."""
    count = num_rest(k.shape[2], columns, sketch)
    if count == 0:
        return None
    bias = k.new_zeros(columns.shape[2] + 1)
    bias[-1] = math.log(count)
    return bias


def differentiate(
    grad: Float[Tensor, "b h n p"],
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    out: Float[Tensor, "b h n p"],
    kept: Kept,
    sketch: Sketch,
    grad_q: Float[Tensor, "b h n p"],
    grad_k: Float[Tensor, "b h n p"],
    grad_v: Float[Tensor, "b h n p"],
) -> None:
    """Write the gradients of sequences without padding, given that of the output."""
    columns, d = kept.columns, kept.columns.shape[2]
    sampled = (kept.sampled_k, kept.sampled_v)
    bias = column_bias(k, columns, sketch)
    grad_sampled_k, grad_sampled_v = (torch.empty_like(x) for x in sampled)
    into = (grad_q, grad_sampled_k, grad_sampled_v)
    biased_attention_gradients(grad, q, *sampled, bias, out, kept.lse, into)
    if kept.pilot_lse is None:
        grad_k.zero_()
        grad_v.zero_()
    else:
        rows, grad, out = (x[rows_at(kept.pilots)] for x in (q, grad, out))
        # A row drawn twice has its gradient once
        grad.masked_fill_(~carries_gradient(kept.pilots, q.shape[2])[..., None], 0)
        grad_rows = torch.empty_like(rows)
        into = (grad_rows, grad_k, grad_v)
        biased_attention_gradients(grad, rows, k, v, None, out, kept.pilot_lse, into)
        grad_q.scatter_add_(2, kept.pilots[..., None].expand_as(grad_rows), grad_rows)
    count = num_rest(k.shape[2], columns, sketch)
    if count:
        grad_sampled_k, grad_mean_k = grad_sampled_k.split([d, 1], 2)
        grad_sampled_v, grad_mean_v = grad_sampled_v.split([d, 1], 2)
        grad_sampled_k = grad_sampled_k + grad_mean_k / d
        # To all values, and off again where a value is sampled
        grad_v += grad_mean_v / count
        grad_sampled_v = grad_sampled_v - grad_mean_v / count
    grad_k[rows_at(columns)] += grad_sampled_k
    grad_v[rows_at(columns)] += grad_sampled_v


def rows_at(places: Int[Tensor, "b h d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Index of rows of a tensor of b h n p, in place of `gather`, which moves single numbers."""
    b, h, _ = places.shape
    return torch.arange(b)[:, None, None], torch.arange(h)[:, None], places


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
