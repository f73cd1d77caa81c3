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
from attention.blocks import gather_blocks


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
            out = attend_in_chunks(q, v.to(q.dtype), keys, order, self.chunk_size)
        return zero_padding(out.to(v.dtype), token_mask)


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
    powers = 2 ** torch.arange(width.bit_length(), device=q.device)
    num_chunks = -(-keys.sum(-1) // chunk_size)
    used = powers[torch.searchsorted(powers, num_chunks)]  # b, as num_directions
    is_used = torch.arange(width, device=q.device) < used[:, None]  # b c
    directions = rotations[..., :width].to(q.dtype).mT * is_used[:, None, None, :, None]
    rotated = directions.flatten(2, 3) @ q.mT  # b h r*c n
    rotated = rotated.unflatten(2, directions.shape[2:4])  # b h r c n
    # The largest of [xR; -xR] is the largest |xR|, on its own side; a direction of zeros is none.
    direction = rotated.abs().max(3, keepdim=True).indices
    is_opposite = rotated.gather(3, direction) < 0
    return (direction + is_opposite * width).squeeze(3)


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
) -> Float[Tensor, "b h n p"]:
    """Attention of each token to the keys that are in reach in any round of sorting."""
    b, h, num_hashes, n = order.shape
    slots = F.pad(order, (0, -n % chunk_size))
    sorted_q, sorted_v = (
        gather_blocks(x[:, :, :, None], slots).flatten(1, 2).unflatten(2, (-1, chunk_size))
        for x in (q, v)
    )  # b h*r c m p
    sorted_k = F.rms_norm(sorted_q, q.shape[-1:], eps=1e-6) * q.shape[-1] ** -0.5
    reach, blocked = chunks_in_reach(keys.sum(-1), sorted_q.shape[2], chunk_size)
    reach = reach[:, None].expand(-1, h * num_hashes, -1, -1)
    out, mass, reference = sum_weighted_values(
        sorted_q, gather_blocks(sorted_k, reach), gather_blocks(sorted_v, reach), blocked[:, None]
    )
    token = torch.arange(n, device=q.device).expand_as(order)
    slot_of = torch.empty_like(order).scatter(3, order, token)
    out = gather_blocks(out.flatten(2, 3)[:, :, :, None], slot_of.view(b, -1, 1, n))
    mass, reference = (x.view(b, h, num_hashes, -1).gather(3, slot_of) for x in (mass, reference))
    return average_rounds(out.view(b, h, num_hashes, n, -1), mass, reference)


def chunks_in_reach(
    num_keys: Int[Tensor, "b"], num_chunks: int, chunk_size: int
) -> tuple[Int[Tensor, "b c 2"], Bool[Tensor, "b c m w"]]:
    """Which chunks of the sorted order each chunk attends to, and which pairs are blocked.

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
    reach = torch.cat([before, chunk.expand_as(before)], dim=-1)  # b c 2
    offset = torch.arange(chunk_size, device=num_keys.device)
    slots = (reach[..., None] * chunk_size + offset).flatten(2)  # b c w
    own_slots = slots[..., chunk_size:, None]  # b c m 1
    is_self = own_slots == slots[..., None, :]  # b c m w
    blocked = (slots >= num_keys)[..., None, :] | (is_self & (num_keys > 1)[..., None])
    return reach, blocked & (own_slots < num_keys[..., None])


def sum_weighted_values(
    q: Float[Tensor, "*g m p"],
    k: Float[Tensor, "*g w p"],
    v: Float[Tensor, "*g w p"],
    blocked: Bool[Tensor, "*#g m w"],
) -> tuple[Float[Tensor, "*g m p"], Float[Tensor, "*g m"], Float[Tensor, "*g m"]]:
    """Sums of the values and of the weights exp(q . k - z), and z, each row's largest logit.

    Their quotient is softmax attention, whatever z; which therefore carries no gradient.
    """
    logits = (q @ k.mT).masked_fill_(blocked, float("-inf"))
    largest = logits.detach().amax(-1, keepdim=True)
    weights = logits.sub_(largest).exp_()  # in place: the logits are not needed again
    return weights @ v, weights.sum(-1), largest.squeeze(-1)


def average_rounds(
    out: Float[Tensor, "b h r n p"],
    mass: Float[Tensor, "b h r n"],
    reference: Float[Tensor, "b h r n"],
) -> Float[Tensor, "b h n p"]:
    """Mean over rounds, weighted by the softmax denominators."""
    scale = (reference - reference.amax(2, keepdim=True)).exp()
    return (scale[..., None] * out).sum(2) / (scale * mass).sum(2)[..., None]
