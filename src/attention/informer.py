"""Informer: exact rows for the queries that matter most, the mean of the values for the others.

Zhou, Zhang, Peng, Zhang, Li, Xiong, Zhang, "Informer: Beyond Efficient Transformer for Long
Sequence Time-Series Forecasting", AAAI 2021, https://arxiv.org/abs/2012.07436, Algorithm 1
(ProbSparse self-attention). With s_ij = q_i k_j' / sqrt(p) and U keys j sampled uniformly, with
replacement, the max-mean measurement of a query is

    M_i = max_j s_ij - mean_j s_ij

and the u queries of largest M attend to all keys, the others receive the mean of the values.
u = U = ceil(f / ln n) ceil(ln n), Informer's factor times ceil(ln n), with the factor set so
that u is about f: 259, 272, 279 for f = 256 at n = 1024, 2048, 4096. n U p multiply-adds for M
and 2 n u p for the rows: 3 n d p. O(n) memory; M is not differentiated.

Departs from the paper's code in that the sampled mean is divided by U (there by n), which it is
as a product with the mean of the sampled keys; that each sequence and head samples its keys once
for all its queries (there each query samples, at n U p gathered values); and that heads and
sequences never mix. The n that sets u and U is the longest sequence of the backbone, to which
batches are padded, rather than each sequence's number of tokens: u is a budget, which a shorter
sequence meets with all its rows, and nothing but the mask depends on a batch's padding.

The paper's row "Informer" knows no padding: it may be sampled, picked, attended to and averaged.
"w/ padding mask" keeps it out of all four.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attention.base import (
    AttentionCore,
    AttentionDims,
    attendable_keys,
    checked_count,
    zero_padding,
)
from attention.sketching import gather_rows, pick_tokens
from attention.v_mean import token_mean

QUERIES_PER_CHUNK = 512
"""Rows of scores that exist at a time: their maximum is all that is needed of them."""


class InformerAttention(AttentionCore):
    """ProbSparse self-attention.

    `num_features`: f, from which follow the exact rows u and the sampled keys U.
    `masks_padding`: treat padding as padding, not as tokens.
    """

    def __init__(self, dims: AttentionDims, *, num_features: int, masks_padding: bool) -> None:
        super().__init__(dims)
        checked_count("num_features", num_features)
        self.num_queries = num_active_queries(num_features, dims.max_seq_len)
        self.masks_padding = masks_padding

    @property
    def effective_features(self) -> int:
        return self.num_queries

    def not_promised(self) -> dict[str, str]:
        if self.masks_padding:
            return {}
        reason = "padding is sampled, picked, attended to and averaged, as in the paper's row"
        return dict.fromkeys(("padding_length", "padding_content", "holes"), reason)

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        noise = torch.rand(*q.shape[:2], self.num_queries, device=q.device)
        return self.attend(q, k, v, token_mask, noise)

    def attend(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
        noise: Float[Tensor, "b h U"],
    ) -> Float[Tensor, "b h n p"]:
        """Algorithm 1 with given noise, uniform in [0, 1), for the sampled keys."""
        keys = attendable_keys(token_mask) if self.masks_padding else torch.ones_like(token_mask)
        with torch.no_grad():
            sampled_k = gather_rows(k, pick_tokens(keys, noise))
            measurement = max_mean_measurement(q, sampled_k)
            rows = top_queries(measurement, keys, self.num_queries)
        exact = F.scaled_dot_product_attention(
            gather_rows(q, rows), k, v, attn_mask=keys[:, None, None, :]
        )
        lazy = token_mean(v, keys).to(v.dtype).expand_as(v)
        out = lazy.scatter(2, rows[..., None].expand_as(exact), exact.to(v.dtype))
        return zero_padding(out, token_mask)


def num_active_queries(num_features: int, seq_len: int) -> int:
    """u = U of the paper's row: a factor of about f / ln n, times ceil(ln n)."""
    log_len = math.log(max(seq_len, 2))
    return math.ceil(num_features / log_len) * math.ceil(log_len)


def max_mean_measurement(
    q: Float[Tensor, "b h n p"], sampled_k: Float[Tensor, "b h U p"]
) -> Float[Tensor, "b h n"]:
    """M: how far the largest score of a query is above its mean score, over the sampled keys."""
    q = q * q.shape[-1] ** -0.5
    largest = [(chunk @ sampled_k.mT).amax(-1) for chunk in q.split(QUERIES_PER_CHUNK, dim=2)]
    mean = q @ sampled_k.mean(2, keepdim=True).mT  # b h n 1
    return torch.cat(largest, -1) - mean[..., 0]


def top_queries(
    measurement: Float[Tensor, "b h n"], keys: Bool[Tensor, "b n"], num_queries: int
) -> Int[Tensor, "b h u"]:
    """Indices of the u largest measurements, distinct; padding comes after all tokens."""
    measurement = measurement.masked_fill(~keys[:, None, :], float("-inf"))
    return measurement.topk(min(num_queries, measurement.shape[-1]), sorted=False).indices
