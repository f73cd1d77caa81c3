"""Skeinformer: softmax attention over sampled keys, with the rest of the keys kept as one.

Chen, Zeng, Hakkani-Tur, Jin, Ji, Yang, "Sketching as a Tool for Understanding and Accelerating
Self-attention for Long Sequences", NAACL 2022, https://arxiv.org/abs/2112.05359, Algorithm 1.
4 n d p multiply-adds; O(n) memory. `attention.skeinformer_cpu` is the same, faster, on a CPU;
`attention.skeinformer_cuda` has kernels for a GPU. What is written here runs on any device; it
computes the pilot scores twice, for the sampling and for the exact rows.

Algorithm 1, lines 7-11, fills the unselected scores of a row with the geometric mean of its d
selected ones. The geometric mean of exponentials is the exponential of the mean score, so all
n - d filled keys act as a single one, whose key is the mean of the sampled keys, whose value is
the mean of the unselected values, and which counts n - d times:

    R = softmax([q K_J' / sqrt(p), q kbar / sqrt(p) + log(n - d)]) [V_J'; vbar]

That form is exact, needs no n x d matrix, and holds for scores of any size.

Departs from the paper and its release in that n is each sequence's own number of tokens, so that
d = min(num_samples, n) and the method is exact when n <= num_samples; a row that is drawn as a
pilot several times receives its gradient once; pilots are drawn per sequence and head, from the
tokens of any mask.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attention import skeinformer_cuda
from attention.base import (
    AttentionCore,
    AttentionDims,
    attendable_keys,
    checked_choice,
    checked_count,
    zero_padding,
)
from attention.skeinformer_cpu import Sketch, sketched_attention
from attention.sketching import (
    gather_rows,
    importance_log_weights,
    overwrite_rows,
    pick_tokens,
    sample_with_replacement,
    sample_without_replacement,
)

ColumnSampling = Literal["importance", "uniform"]
RowNormalization = Literal["adaptive", "simple", "none", "truncated"]


class SkeinformerAttention(AttentionCore):
    """Algorithm 1, and its ablations as switches.

    `column_sampling`: `importance` (Equation (5)) or `uniform`.
    `row_normalization`: `adaptive` (lines 7-11); `simple`, a softmax over the sampled keys alone;
    `none`, the unbiased sketch of Definition 3.1 under the exact denominator; `truncated`, the
    released form of `none`, without importance weights. The last two cost O(n²).
    `reuse_pilot`: give the pilot rows their exact output (line 12).
    `num_pilots`: rows that estimate the sampling probabilities; the paper takes `num_samples`,
    Lemma 1 asks for O(log n).
    """

    def __init__(
        self,
        dims: AttentionDims,
        *,
        num_samples: int,
        num_pilots: int,
        column_sampling: ColumnSampling,
        row_normalization: RowNormalization,
        reuse_pilot: bool,
    ) -> None:
        super().__init__(dims)
        checked_choice("column_sampling", column_sampling, get_args(ColumnSampling))
        checked_choice("row_normalization", row_normalization, get_args(RowNormalization))
        self.num_samples = checked_count("num_samples", num_samples)
        self.num_pilots = checked_count("num_pilots", num_pilots)
        self.column_sampling = column_sampling
        self.row_normalization = row_normalization
        self.reuse_pilot = reuse_pilot
        self.cpu_sketch: Sketch | None = None
        if row_normalization in ("adaptive", "simple"):
            self.cpu_sketch = Sketch(
                num_samples=num_samples,
                num_pilots=num_pilots,
                by_importance=column_sampling == "importance",
                fills_rest=row_normalization == "adaptive",
                reuses_pilots=reuse_pilot,
            )

    def not_promised(self) -> dict[str, str]:
        if self.row_normalization == "truncated":
            return {"constant_values": "a row sums to the share of its sampled keys"}
        if self.row_normalization == "none":
            return {
                "constant_values": "a row sums to 1 on average only",
                "gradcheck": "weights 1 / (d p_j) follow the inputs, without a gradient",
            }
        return {}

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        pilot_noise, column_noise = self.draw_noise(q)
        return self.attend(q, k, v, token_mask, pilot_noise, column_noise)

    def draw_noise(
        self, q: Float[Tensor, "b h n p"]
    ) -> tuple[Float[Tensor, "b h m"], Float[Tensor, "b h e"]]:
        """Uniform noise for the pilots; for the columns exponential a key, or uniform a draw."""
        b, h, n, _ = q.shape
        pilot = torch.rand(b, h, self.num_pilots, device=q.device)
        if self.row_normalization == "none":  # drawn with replacement
            return pilot, torch.rand(b, h, self.num_samples, device=q.device)
        return pilot, -torch.log1p(-torch.rand(b, h, n, device=q.device))

    def attend(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
        pilot_noise: Float[Tensor, "b h m"],
        column_noise: Float[Tensor, "b h e"],
    ) -> Float[Tensor, "b h n p"]:
        """Algorithm 1 with given noise, shaped as `draw_noise` returns it."""
        if self.cpu_sketch is not None and self.cpu_sketch.pays_off(q):
            noise = (pilot_noise, column_noise)
            return sketched_attention(q, k, v, token_mask, *noise, self.cpu_sketch)
        keys = attendable_keys(token_mask)
        pilots = pick_tokens(keys, pilot_noise)
        pilot_out, log_weights = self.attend_pilots(q, k, v, keys, pilots)
        out = self.sketch(q, k, v, keys, log_weights, column_noise)
        if pilot_out is not None:
            out = overwrite_rows(out, pilots, pilot_out)
        return zero_padding(out, token_mask)

    def attend_pilots(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        keys: Bool[Tensor, "b n"],
        pilots: Int[Tensor, "b h m"],
    ) -> tuple[Float[Tensor, "b h m p"] | None, Float[Tensor, "b h n"]]:
        """Exact output of the pilot rows, if they are reused, and `column_log_weights`."""
        by_importance = self.column_sampling == "importance"
        squared_columns, out = None, None
        if skeinformer_cuda.is_available(q) and (by_importance or self.reuse_pilot):
            rows = gather_rows(q, pilots)
            bias = exclusion_bias(keys, q)[:, None].expand(-1, q.shape[1], -1)
            out, lse = skeinformer_cuda.biased_attention(rows, k, v, bias)
            if by_importance:
                squared_columns = skeinformer_cuda.squared_columns(rows.detach(), k.detach(), lse)
        else:
            if by_importance:
                squared_columns = squared_column_norms(q.detach(), k.detach(), keys, pilots)
            if self.reuse_pilot:
                out = exact_rows(q, k, v, keys, pilots)
        log_weights = column_log_weights(squared_columns, v.detach(), keys)
        return (out if self.reuse_pilot else None), log_weights

    def sketch(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        keys: Bool[Tensor, "b n"],
        log_weights: Float[Tensor, "b h n"],
        noise: Float[Tensor, "b h e"],
    ) -> Float[Tensor, "b h n p"]:
        """Every row, from the sampled columns."""
        if self.row_normalization == "none":
            weights = unbiased_column_weights(log_weights, noise)
            return reweighted_softmax(q, k, v, keys, weights)
        columns, valid = sample_without_replacement(log_weights, noise, self.num_samples)
        if self.row_normalization == "truncated":
            return reweighted_softmax(q, k, v, keys, indicator(columns, valid, q.shape[2]))
        if self.row_normalization == "simple":
            return softmax_over_columns(q, k, v, columns, valid)
        return adaptive_row_normalization(q, k, v, keys, columns, valid)


def column_log_weights(
    squared_columns: Float[Tensor, "b h n"] | None,
    v: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
) -> Float[Tensor, "b h n"]:
    """Logarithm of the unnormalized sampling probabilities; -inf where there is no key.

    Uniform without `squared_columns`.
    """
    if squared_columns is None:
        log_weights = torch.zeros_like(v[..., 0], dtype=torch.float32)
    else:
        log_weights = importance_log_weights(squared_columns, v.float().square().sum(-1))
    return log_weights.masked_fill(~keys[:, None, :], float("-inf"))


def squared_column_norms(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
    pilots: Int[Tensor, "b h m"],
) -> Float[Tensor, "b h n"]:
    """sum_k b²[j_k, i] of Equation (5), from the pilot rows of softmax."""
    logits = ((gather_rows(q, pilots) * q.shape[-1] ** -0.5) @ k.mT).float()  # b h m n
    # In place: at b h m n, fresh memory costs more than the arithmetic
    probs = logits.masked_fill_(~keys[:, None, None, :], float("-inf")).softmax(-1)
    return probs.square_().sum(2)


def adaptive_row_normalization(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
    columns: Int[Tensor, "b h d"],
    valid: Bool[Tensor, "b h d"],
) -> Float[Tensor, "b h n p"]:
    """Softmax over the sampled keys and one key for all the others (lines 7-11)."""
    num_valid = valid.sum(-1, keepdim=True)  # b h 1
    num_rest = keys.sum(-1)[:, None, None] - num_valid
    rest = keys[:, None, :] & ~indicator(columns, valid, q.shape[2])  # b h n
    sampled_k, sampled_v = gather_rows(k, columns), gather_rows(v, columns)
    mean_k = (valid.to(k.dtype) / num_valid)[..., None, :] @ sampled_k  # b h 1 p
    mean_v = (rest.to(v.dtype) / num_rest.clamp_min(1))[..., None, :] @ v
    bias = exclusion_bias(valid, q)
    bias = torch.cat([bias, num_rest.to(bias.dtype).log()], dim=-1)
    return attend_with_bias(
        q, torch.cat([sampled_k, mean_k], 2), torch.cat([sampled_v, mean_v], 2), bias
    )


def softmax_over_columns(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    columns: Int[Tensor, "b h d"],
    valid: Bool[Tensor, "b h d"],
) -> Float[Tensor, "b h n p"]:
    """Softmax over the sampled keys alone: simple row normalization."""
    sampled_k, sampled_v = gather_rows(k, columns), gather_rows(v, columns)
    return attend_with_bias(q, sampled_k, sampled_v, exclusion_bias(valid, q))


def exclusion_bias(
    is_key: Bool[Tensor, "*shape"], q: Float[Tensor, "b h n p"]
) -> Float[Tensor, "*shape"]:
    """0 where there is a key, else -inf."""
    # In half precision log(n - d) would be off by 0.03: a bias stays in fp32 or better.
    dtype = torch.promote_types(q.dtype, torch.float32)
    return torch.zeros_like(is_key, dtype=dtype).masked_fill(~is_key, float("-inf"))


def attend_with_bias(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h d p"],
    v: Float[Tensor, "b h d p"],
    bias: Float[Tensor, "b h d"],
) -> Float[Tensor, "b h n p"]:
    """softmax(q k' / sqrt(p) + bias) v."""
    if skeinformer_cuda.is_available(q):
        return skeinformer_cuda.biased_attention(q, k, v, bias)[0]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, :, None, :])


def reweighted_softmax(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
    weights: Float[Tensor, "b h n"] | Bool[Tensor, "b h n"],
) -> Float[Tensor, "b h n p"]:
    """D⁻¹ A diag(weights) V: columns are weighted, the denominator D stays that of all keys."""
    weighted_v = v * weights.to(v.dtype)[..., None]
    return F.scaled_dot_product_attention(q, k, weighted_v, attn_mask=keys[:, None, None, :])


def unbiased_column_weights(
    log_weights: Float[Tensor, "b h n"], uniform: Float[Tensor, "b h d"]
) -> Float[Tensor, "b h n"]:
    """The diagonal of S S' of Definition 3.1: d draws with replacement, each worth 1 / (d p_j)."""
    probs = log_weights.softmax(-1)
    columns = sample_with_replacement(probs, uniform)
    worth = 1 / (columns.shape[-1] * probs.gather(2, columns))
    return torch.zeros_like(probs).scatter_add(2, columns, worth)


def exact_rows(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
    rows: Int[Tensor, "b h m"],
) -> Float[Tensor, "b h m p"]:
    """Softmax attention of the given rows."""
    return F.scaled_dot_product_attention(
        gather_rows(q, rows), k, v, attn_mask=keys[:, None, None, :]
    )


def indicator(
    columns: Int[Tensor, "b h d"], valid: Bool[Tensor, "b h d"], num_keys: int
) -> Bool[Tensor, "b h n"]:
    """True at the valid columns."""
    empty = torch.zeros(*columns.shape[:2], num_keys, dtype=torch.bool, device=columns.device)
    return empty.scatter(2, columns, valid)
