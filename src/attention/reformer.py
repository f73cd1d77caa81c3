"""Reformer: attention among tokens that a random hash brings together.

Kitaev, Kaiser, Levskaya, "Reformer: The Efficient Transformer", ICLR 2020,
https://arxiv.org/abs/2001.04451, Section 2.

Queries and keys are one: k_j = q_j / |q_j|. A hash of c buckets is argmax([xR; -xR]) with R a
Gaussian p x c/2 matrix. In each of several rounds the tokens are sorted by (bucket, position) and
cut into chunks of m; a token attends to its own chunk and the one before, but not to itself. The
rounds are averaged with weights proportional to their softmax denominators:

    o_i = sum_r exp(z_r) o_i^r / sum_r exp(z_r),  z_r = logsumexp of row i in round r

4 num_hashes n m p multiply-adds, and num_hashes n² p / m for the hash; O(num_hashes n m) memory.

Follows the authors' code, and the implementation behind the published row, where they depart from
the paper: logits are q_i . k_j with |k_j| = 1, as keys of length sqrt(p) meet the usual factor
1 / sqrt(p); tokens of other buckets in reach are attended to; a key met in several rounds counts
several times. Departs from both in that c is the power of two at or above 2 n / m with each
sequence's own number of tokens n (32, 64, 128 for 1024, 2048, 4096 at m = 64); padding is
sorted behind the tokens and never attended to; the first chunk's predecessor is the last chunk
of tokens in the same round; the mask on oneself is exact, and lifted for a sequence of one token.
"""

from typing import ClassVar, Literal

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


class ReformerAttention(AttentionCore):
    """Locality-sensitive hashing attention with shared queries and keys; `k` is not read.

    `num_hashes`: rounds of hashing.
    `chunk_size`: m, in tokens.
    """

    projections: ClassVar[Literal["qk,v"]] = "qk,v"

    def __init__(self, dims: AttentionDims, *, num_hashes: int, chunk_size: int) -> None:
        super().__init__(dims)
        self.num_hashes = checked_count("num_hashes", num_hashes)
        self.chunk_size = checked_count("chunk_size", chunk_size)

    def not_promised(self) -> dict[str, str]:
        return {
            "permutation": "tokens of a bucket are cut into chunks by their order",
            "key_shift": "keys are normalized queries",
        }

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        return self.attend(q, v, token_mask, self.draw_rotations(q))

    def draw_rotations(self, q: Float[Tensor, "b h n p"]) -> Float[Tensor, "h r p c"]:
        """One Gaussian matrix per head and round, wide enough for the longest sequence."""
        width = num_directions(self.dims.max_seq_len, self.chunk_size)
        return torch.randn(q.shape[1], self.num_hashes, q.shape[-1], width, device=q.device)

    def attend(
        self,
        q: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
        rotations: Float[Tensor, "h r p c"],
    ) -> Float[Tensor, "b h n p"]:
        """Attention with given rotations, shaped as `draw_rotations` returns them."""
        keys = attendable_keys(token_mask)
        # In half precision, logits would be off by more than a softmax forgives.
        q = q.to(torch.promote_types(q.dtype, torch.float32))
        with torch.autocast(q.device.type, enabled=False):
            with torch.no_grad():
                buckets = hash_tokens(q, keys, rotations, self.chunk_size)
                order = sort_tokens(buckets, keys)
            out, lse = attend_in_chunks(q, v, keys, order, self.chunk_size)
            out = average_rounds(out, lse)
        return zero_padding(out, token_mask)


def num_directions(num_tokens: int, chunk_size: int) -> int:
    """Half the number of buckets: the power of two at or above the number of chunks."""
    num_chunks = -(-num_tokens // chunk_size)
    return 1 << (num_chunks - 1).bit_length()


def hash_tokens(
    q: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
    rotations: Float[Tensor, "h r p c"],
    chunk_size: int,
) -> Int[Tensor, "b h r n"]:
    """Bucket of each token, argmax([xR; -xR]), among as many as its sequence's length calls for.

    A sequence uses the first columns of R, whatever the length to which it is padded.
    """
    width = num_directions(q.shape[2], chunk_size)
    rotated = q[:, :, None] @ rotations[..., :width].to(q.dtype)  # b h r n c
    powers = 2 ** torch.arange(width.bit_length(), device=q.device)
    num_chunks = -(-keys.sum(-1) // chunk_size)
    used = powers[torch.searchsorted(powers, num_chunks)]  # b, as num_directions
    directions = torch.arange(width, device=q.device).repeat(2)
    unused = directions >= used[:, None, None, None, None]
    both = torch.cat([rotated, -rotated], dim=-1).masked_fill(unused, float("-inf"))
    return both.argmax(-1)


def sort_tokens(
    buckets: Int[Tensor, "b h r n"], keys: Bool[Tensor, "b n"]
) -> Int[Tensor, "b h r n"]:
    """Positions in the order of (bucket, position), those that are no key at the end."""
    behind = torch.iinfo(buckets.dtype).max
    return buckets.masked_fill(~keys[:, None, None, :], behind).argsort(dim=-1, stable=True)


def attend_in_chunks(
    q: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    keys: Bool[Tensor, "b n"],
    order: Int[Tensor, "b h r n"],
    chunk_size: int,
) -> tuple[Float[Tensor, "b h r n p"], Float[Tensor, "b h r n"]]:
    """Output and log-denominator of each token in each round of sorting."""
    b, h, num_hashes, n = order.shape
    num_chunks = -(-n // chunk_size)
    slots, blocked = chunk_windows(keys.sum(-1), num_chunks, chunk_size)
    sorted_rows = F.pad(order, (0, num_chunks * chunk_size - n))  # b h r c*m
    window_rows = sorted_rows.gather(
        3, slots.flatten(1)[:, None, None].expand(b, h, num_hashes, -1)
    )
    unit_k = F.rms_norm(q, q.shape[-1:], eps=1e-6) * q.shape[-1] ** -0.5
    chunk_out, chunk_lse = attend_with_lse(
        gather_rounds(q, sorted_rows).unflatten(3, (num_chunks, -1)),
        gather_rounds(unit_k, window_rows).unflatten(3, (num_chunks, -1)),
        gather_rounds(v, window_rows).unflatten(3, (num_chunks, -1)),
        blocked[:, None, None],
    )
    out, lse = chunk_out.flatten(3, 4)[..., :n, :], chunk_lse.flatten(3)[..., :n]
    # Undo the sorting. A gather would keep what it reads for the backward pass.
    out = torch.empty_like(out).scatter(3, order[..., None].expand_as(out), out)
    return out, torch.empty_like(lse).scatter(3, order, lse)


def chunk_windows(
    num_keys: Int[Tensor, "b"], num_chunks: int, chunk_size: int
) -> tuple[Int[Tensor, "b c w"], Bool[Tensor, "b c m w"]]:
    """Which slots of the sorted order are in reach of each chunk, and which pairs are blocked.

    In reach are the chunk before and the chunk itself, w = 2 m slots. Before the first chunk comes
    the last one that holds keys; where that is the same chunk, all its keys count twice, which
    changes no softmax. Blocked are slots without a key, and each slot for itself unless it holds
    the only key. Slots without a key block nothing, so that no softmax is empty; what they compute
    is not read.
    """
    num_keys = num_keys[:, None, None]
    chunk = torch.arange(num_chunks, device=num_keys.device)[:, None]  # c 1
    last_chunk = (num_keys - 1) // chunk_size  # b 1 1
    before = torch.where(chunk == 0, last_chunk, chunk - 1)  # b c 1
    offset = torch.arange(chunk_size, device=num_keys.device)
    own_slots = (chunk * chunk_size + offset).expand(*before.shape[:2], -1)  # b c m
    slots = torch.cat([before * chunk_size + offset, own_slots], dim=-1)  # b c w
    is_self = own_slots[..., None] == slots[..., None, :]  # b c m w
    blocked = (slots >= num_keys)[..., None, :] | (is_self & (num_keys > 1)[..., None])
    return slots, blocked & (own_slots < num_keys)[..., None]


def gather_rounds(
    x: Float[Tensor, "b h n p"], rows: Int[Tensor, "b h r s"]
) -> Float[Tensor, "b h r s p"]:
    """Rows of `x` in each round's order."""
    # A round apart, so that no row's gradient sums three terms, of which the order would matter.
    by_round = x[:, :, None].expand(-1, -1, rows.shape[2], -1, -1)
    return by_round.gather(3, rows[..., None].expand(*rows.shape, x.shape[-1]))


def attend_with_lse(
    q: Float[Tensor, "*g m p"],
    k: Float[Tensor, "*g w p"],
    v: Float[Tensor, "*g w p"],
    blocked: Bool[Tensor, "*#g m w"],
) -> tuple[Float[Tensor, "*g m p"], Float[Tensor, "*g m"]]:
    """Softmax attention without a factor on the logits, and the logarithm of its denominators."""
    logits = (q @ k.mT).masked_fill(blocked, float("-inf"))
    weights = logits.softmax(-1)
    # The denominator is exp(s_j) / weight_j for any j. logsumexp would keep the logits as well.
    largest, key = logits.max(-1, keepdim=True)
    lse = largest - weights.gather(-1, key).log()
    return weights.to(v.dtype) @ v, lse.squeeze(-1)


def average_rounds(
    out: Float[Tensor, "b h r n p"], lse: Float[Tensor, "b h r n"]
) -> Float[Tensor, "b h n p"]:
    """Mean over rounds, weighted by the softmax denominators."""
    share = lse.softmax(2).to(out.dtype)
    return (share[..., None] * out).sum(2)
