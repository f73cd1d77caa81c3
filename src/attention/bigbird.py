"""BigBird: a window, random blocks and global blocks of keys.

Zaheer, Guruganesh, Dubey, Ainslie, Alberti, Ontanon, Pham, Ravula, Wang, Yang, Ahmed, "Big Bird:
Transformers for Longer Sequences", NeurIPS 2020, https://arxiv.org/abs/2007.14062, Section 2, in
the blocked form of its appendix on the implementation.

The sequence is cut into c blocks of w tokens. A query of block i attends to the blocks

    S(i) = {i - 1, i, i + 1}  and  {0, c - 1}  and  r random blocks outside both,

and the first and the last block attend to all keys; one softmax runs over the union, in which
every key counts once. Middle rows gather their blocks, K[S(i)] and V[S(i)], and are one batch of
small softmax problems; the two global rows are another. At most (5 + r) w n + 2 w n entries of
the score matrix, at 2 p multiply-adds each: with the paper's w = 64 and r = 3 that is 640 n
entries, 5 n d p at d = 256. O((5 + r) n p) memory: the gathered keys and values are kept.

The random blocks of every row are drawn once per head and layer, for each number of blocks that
a sequence may have, and are a buffer.

Departs from the release in that random blocks come from the whole sequence at every length (the
release takes the first 1024 tokens at 1024, 3072 and 4096), every layer and head has its own, no
key counts twice, scores of masked keys are -inf, and any length works: where rows have fewer than
r other blocks, they get all of them. Blocks are counted up to a sequence's last token, not to the
padded length: else the last global block and most of the random ones of a short sequence would
be padding, and its output would depend on how far it is padded.
"""

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
from attention.blocks import gather_blocks, split_blocks

UNUSED = -1


class BigBirdAttention(AttentionCore):
    """Blocks of `block_size` tokens: a window of 3, `num_random_blocks`, the first and the last."""

    block_tables: Tensor

    def __init__(self, dims: AttentionDims, *, block_size: int, num_random_blocks: int) -> None:
        super().__init__(dims)
        self.block_size = checked_count("block_size", block_size)
        self.num_random_blocks = checked_count("num_random_blocks", num_random_blocks)
        max_blocks = -(-dims.max_seq_len // block_size)
        priority = torch.rand(dims.num_heads, max_blocks, max_blocks)
        tables = [block_table(priority, c + 1, num_random_blocks) for c in range(max_blocks)]
        self.register_buffer("block_tables", torch.stack(tables).short())  # c h m t

    def not_promised(self) -> dict[str, str]:
        return {"permutation": "a token attends by its position: to its window and global blocks"}

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        keys = attendable_keys(token_mask)
        if q.shape[2] <= (4 + self.num_random_blocks) * self.block_size:  # S(i) is every block
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None, :])
        else:
            num_blocks = count_blocks(keys, self.block_size)
            table = self.block_tables[num_blocks - 1].long()  # b h c t
            attended = block_sparse_attention(q, k, v, keys, num_blocks, table, self.block_size)
        return zero_padding(attended, token_mask)


def block_table(
    priority: Float[Tensor, "h m m"], num_blocks: int, num_random_blocks: int
) -> Int[Tensor, "h m t"]:
    """S(i) of the rows between the global ones, in a sequence of `num_blocks` blocks.

    Slots: first, last, the window of 3, and the random blocks, those of highest priority. A slot
    is `UNUSED` where its block is taken already or does not exist.
    """
    num_heads, max_blocks, _ = priority.shape
    block, last = torch.arange(max_blocks), num_blocks - 1
    window = block[:, None] + torch.tensor([-1, 0, 1])  # m 3
    window = window.where((window > 0) & (window < last), UNUSED)
    ends = torch.tensor([0, last]).expand(max_blocks, 2)
    fixed = torch.cat([ends, window], -1).expand(num_heads, -1, -1)  # h m 5
    is_near = (block[:, None] - block).abs() <= 1  # m m
    candidates = ~is_near & (block > 0) & (block < last)
    best = priority.masked_fill(~candidates, -1).topk(min(num_random_blocks, max_blocks))
    random = best.indices.where(best.values >= 0, UNUSED)
    return torch.cat([fixed, random], -1)


def count_blocks(keys: Bool[Tensor, "b n"], block_size: int) -> Int[Tensor, " b"]:
    """The number of blocks up to each sequence's last key."""
    last_key = (keys * torch.arange(keys.shape[-1], device=keys.device)).amax(-1)
    return last_key // block_size + 1


def block_sparse_attention(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
    num_blocks: Int[Tensor, " b"],
    table: Int[Tensor, "b h m t"],
    block_size: int,
) -> Float[Tensor, "b h n p"]:
    """Attention of every row to the keys of its blocks; needs n to span three blocks or more.

    `num_blocks` of each sequence, the last of which is its global row; `table` as `block_table`
    makes it for that number.
    """
    q_blocks = split_blocks(q, block_size)  # b h c w p
    first, last = global_rows(q_blocks, k, v, keys, num_blocks)
    middle = middle_rows(q_blocks, k, v, keys, table)
    rows = torch.cat([first, middle, last], dim=2)  # b h c w p
    is_last = torch.arange(rows.shape[2], device=q.device) == num_blocks[:, None] - 1  # b c
    rows = torch.where(is_last[:, None, :, None, None], last, rows)
    return rows.flatten(2, 3)[:, :, : q.shape[2]]


def global_rows(
    q_blocks: Float[Tensor, "b h c w p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
    num_blocks: Int[Tensor, " b"],
) -> tuple[Float[Tensor, "b h 1 w p"], Float[Tensor, "b h 1 w p"]]:
    """The first and the last block of queries, which attend to all keys."""
    b, h, _, w, _ = q_blocks.shape
    last = (num_blocks - 1)[:, None, None, None].expand(b, h, 1, 1)
    ends = torch.cat([q_blocks[:, :, 0], gather_blocks(q_blocks, last)[:, :, 0]], dim=2)
    attended = F.scaled_dot_product_attention(ends, k, v, attn_mask=keys[:, None, None, :])
    first_rows, last_rows = attended.unflatten(2, (2, 1, w)).unbind(2)
    return first_rows, last_rows


def middle_rows(
    q_blocks: Float[Tensor, "b h c w p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
    table: Int[Tensor, "b h m t"],
) -> Float[Tensor, "b h r w p"]:
    """All blocks of queries but the first and the last of the padded length."""
    b, _, c, w, _ = q_blocks.shape
    slots = table[:, :, 1 : c - 1]  # b h r t
    blocks = slots.clamp_min(0)
    key_blocks = split_blocks(keys[:, None, :, None], w)[:, 0, :, :, 0]  # b c w
    sequence = torch.arange(b, device=q_blocks.device)[:, None, None, None]
    is_key = key_blocks[sequence, blocks] & (slots != UNUSED)[..., None]  # b h r t w
    # A block without tokens may see no key at all: it attends to anything, and is cleared later.
    mask = attendable_keys(is_key.flatten(3).flatten(0, 2)).unflatten(0, (b, -1))  # b hr tw
    attended = F.scaled_dot_product_attention(
        q_blocks[:, :, 1:-1].flatten(1, 2),
        gather_blocks(split_blocks(k, w), blocks).flatten(1, 2),
        gather_blocks(split_blocks(v, w), blocks).flatten(1, 2),
        attn_mask=mask[:, :, None, :],
    )
    return attended.unflatten(1, (-1, c - 2))
