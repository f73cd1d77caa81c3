"""Sequences in blocks, and copies of blocks by index: what BigBird and Reformer share."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor


def split_blocks(x: Shaped[Tensor, "b h n p"], block_size: int) -> Shaped[Tensor, "b h c w p"]:
    """Cut the sequence into blocks, filling the last one with zeros."""
    filled = F.pad(x, (0, 0, 0, -x.shape[2] % block_size))
    return filled.unflatten(2, (-1, block_size))


def gather_blocks(
    x: Float[Tensor, "b h c w p"], blocks: Int[Tensor, "b h r t"]
) -> Float[Tensor, "b h r l p"]:
    """The tokens of t blocks in a row, l = t w, for each of r rows."""
    b, h, c, w, _ = x.shape
    start = torch.arange(b * h, device=x.device).view(b, h, 1, 1) * c
    # An embedding lookup copies whole blocks, and adds whole blocks in the backward pass, in
    # an order that depends on nothing but the indices.
    rows = F.embedding(start + blocks, x.flatten(0, 2).flatten(1))  # b h r t wp
    return rows.unflatten(-1, (w, -1)).flatten(3, 4)
