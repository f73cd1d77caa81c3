"""Performer: softmax attention through positive orthogonal random features (FAVOR+).

Choromanski et al., "Rethinking Attention with Performers", ICLR 2021,
https://arxiv.org/abs/2009.14794, Lemma 1 and Section 2.4. 4 n m p multiply-adds, where Table 3 of
the Skeinformer paper says 3, and 8 n m for a bias; O(n m) memory, of phi(K) alone.

With x~ = x / p^(1/4), phi(x) = m^(-1/2) exp(W x~ - |x~|²/2) satisfies
E[phi(q)' phi(k)] = exp(q'k / sqrt(p)), and D⁻¹ phi(Q) (phi(K)' V) replaces softmax attention.

A positive kernel is a softmax, and here it is computed as two of them: each of the m features
attends to the keys, with log phi(K) as its scores, and each query attends to the features,

    G = softmax_n(log phi(K))' V,    R = softmax_m(log phi(Q) + logsumexp_n(log phi(K))) G.

This is the same function, stabilized per feature and per query. The usual stabilizer, one maximum
for all features and keys, lets the denominator vanish where the features that matter to a query
are not those in which the keys are largest; the release adds 1e-4 against that, which turns the
output into the mean of V for large scores, and takes the maximum over the batch.

Departs from the release further in that q and k are scaled once, not twice; padding has phi = 0,
where zeroed keys keep phi(0) > 0; and the orthogonal blocks are uniformly distributed, by fixing
the signs that the QR decomposition leaves open. As there, the features are drawn once.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attention.base import (
    AttentionCore,
    AttentionDims,
    attendable_keys,
    checked_count,
    zero_padding,
)

EXTRA_DIMS = 4
"""That carry a bias through the fused kernel; four, as rows of 16 bytes are what it takes."""


class PerformerAttention(AttentionCore):
    """FAVOR+ with `num_random_features` features, drawn at construction and shared by the heads."""

    projection: Tensor

    def __init__(self, dims: AttentionDims, *, num_random_features: int) -> None:
        super().__init__(dims)
        num_rows = checked_count("num_random_features", num_random_features)
        self.register_buffer("projection", draw_orthogonal_rows(num_rows, dims.head_dim))

    def not_promised(self) -> dict[str, str]:
        return {"key_shift": "the features estimate exp(q'k) anew for every shift of the keys"}

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        # Rounded to bfloat16, a score of 100 would be off by up to 0.25 before its exponential.
        with torch.autocast(q.device.type, enabled=False):
            dtype = torch.promote_types(q.dtype, torch.float32)
            projection = self.projection.to(dtype) * q.shape[-1] ** -0.25
            keys = attendable_keys(token_mask)
            means, log_mass = summarize_keys(k.to(dtype), v.to(dtype), keys, projection)
            out = attend_to_features(q.to(dtype), projection, means, log_mass)
        return zero_padding(out.to(v.dtype), token_mask)


def summarize_keys(
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
    projection: Float[Tensor, "m p"],
) -> tuple[Float[Tensor, "b h m p"], Float[Tensor, "b h m 1"]]:
    """G, for each feature the mean of the values weighted by phi(K), and the log of the weights.

    `projection` is W / p^(1/4), so that it takes k as it is. The m^(-1/2) of phi is left out: it
    cancels in the normalization.
    """
    norms = (k.square().sum(-1) / (2 * k.shape[-1] ** 0.5)).masked_fill(~keys[:, None], torch.inf)
    log_phi_k = (projection @ k.mT).sub_(norms[:, :, None])  # b h m n
    largest = log_phi_k.detach().amax(-1, keepdim=True)
    phi_k = log_phi_k.sub_(largest).exp_()  # in place: the logarithms are not needed again
    mass = phi_k.sum(-1, keepdim=True)  # b h m 1, at least 1: the largest term
    return (phi_k @ v) / mass, mass.log() + largest


def attend_to_features(
    q: Float[Tensor, "b h n p"],
    projection: Float[Tensor, "m p"],
    means: Float[Tensor, "b h m p"],
    log_mass: Float[Tensor, "b h m 1"],
) -> Float[Tensor, "b h n p"]:
    """R, softmax attention of the queries to the features; |q|² cancels."""
    # A bias that carries a gradient is more than fused kernels take; as part of q'k it is none.
    biases = log_mass / EXTRA_DIMS
    features = torch.cat(
        [projection.expand(*means.shape[:2], -1, -1), biases.expand(-1, -1, -1, EXTRA_DIMS)], -1
    )
    extended_q = F.pad(q, (0, EXTRA_DIMS), value=1.0)
    values = F.pad(means, (0, EXTRA_DIMS))
    out = F.scaled_dot_product_attention(extended_q, features, values, scale=1.0)
    return out[..., : q.shape[-1]]


def draw_orthogonal_rows(num_rows: int, dim: int) -> Float[Tensor, "m p"]:
    """Rows that are each N(0, I), and orthogonal within every block of `dim` (Section 2.4)."""
    num_blocks = -(-num_rows // dim)
    basis, triangle = torch.linalg.qr(torch.randn(num_blocks, dim, dim))
    # QR is unique, and its basis Haar-distributed, once the diagonal is positive.
    basis = basis * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    norms = torch.randn(num_rows, dim).norm(dim=-1, keepdim=True)
    return norms * basis.flatten(0, 1)[:num_rows]
