"""Standard softmax attention, written out and fused.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, Equation (1): softmax(QK'/sqrt(p)) V.
2 n² p multiply-adds. Written out it keeps n x n matrices for the backward pass; the fused kernel
recomputes them and keeps O(n).
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attention.base import (
    AttentionCore,
    AttentionDims,
    attendable_keys,
    checked_probability,
    zero_padding,
)


class SoftmaxAttention(AttentionCore):
    """The written-out form that every paper of this table compares with."""

    def __init__(self, dims: AttentionDims, *, dropout: float) -> None:
        super().__init__(dims)
        self.dropout = checked_probability("dropout", dropout)

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        keys = attendable_keys(token_mask)[:, None, None, :]
        logits = (q * q.shape[-1] ** -0.5) @ k.mT  # b h n n
        weights = logits.masked_fill(~keys, float("-inf")).softmax(-1)
        attended = F.dropout(weights, self.dropout, self.training) @ v
        return zero_padding(attended, token_mask)


class FusedSoftmaxAttention(AttentionCore):
    """The same function through `scaled_dot_product_attention`: O(n) memory."""

    def __init__(self, dims: AttentionDims, *, dropout: float) -> None:
        super().__init__(dims)
        self.dropout = checked_probability("dropout", dropout)

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        keys = attendable_keys(token_mask)[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=dropout)
        return zero_padding(attended, token_mask)
