"""Dropout at the price of a few random bits."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attention.base import checked_probability

RESOLUTION = 2**16


class Dropout(nn.Module):
    """`nn.Dropout`, with 16 random bits an entry where torch draws a number of its own for each.

    On a CPU, torch's dropout takes two fifths of V-Mean's training step. Here `p` is rounded to a
    multiple of 2^-16 there, and kept entries are scaled by the rounded one: the expectation is
    exact. Elsewhere it is torch's kernel.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = checked_probability("dropout", p)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Entries that are zero with probability p, else divided by 1 - p; in evaluation, x."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        return x * scaled_mask(x, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def scaled_mask(like: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Entries 0 with probability p, rounded to a multiple of 2^-16, else 1 / (1 - p)."""
    num_dropped = min(round(p * RESOLUTION), RESOLUTION - 1)
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: like.numel()].view(like.shape)
    mask = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    torch.ge(bits, num_dropped - RESOLUTION // 2, out=mask)
    return mask.mul_(RESOLUTION / (RESOLUTION - num_dropped))
