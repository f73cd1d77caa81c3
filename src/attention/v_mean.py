"""V-Mean: every token receives the mean of the values. The floor that a method has to beat.

Chen et al., "Sketching as a Tool for Understanding and Accelerating Self-attention for Long
Sequences", NAACL 2022, Section 5. O(n p).

Departs from the paper's (1/n) 11'V in that the mean runs over tokens, not over padding.
"""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from attention.base import AttentionCore, zero_padding


class VMeanAttention(AttentionCore):
    """Uniform attention over the tokens."""

    projections: ClassVar[Literal["v"]] = "v"

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        return zero_padding(token_mean(v, token_mask).expand_as(v), token_mask)


def token_mean(
    x: Float[Tensor, "b h n p"], token_mask: Bool[Tensor, "b n"]
) -> Float[Tensor, "b h 1 p"]:
    """Mean over the tokens of each sequence; zero where there are none."""
    num_tokens = token_mask.sum(-1).clamp_min(1)[:, None, None, None]
    total = zero_padding(x, token_mask).sum(2, keepdim=True)
    return (total / num_tokens).to(x.dtype)  # autocast sums in fp32
