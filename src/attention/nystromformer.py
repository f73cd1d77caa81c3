"""Nyströmformer: softmax attention through a few landmarks.

Xiong, Zeng, Chakraborty, Tan, Fung, Li, Singh, "Nyströmformer: A Nyström-Based Algorithm for
Approximating Self-Attention", AAAI 2021, https://arxiv.org/abs/2102.03902.

The landmarks q~, k~ are the means of queries and keys over L segments. With softmax over rows,

    F = softmax(Q K~'/sqrt(p))    A = softmax(Q~ K~'/sqrt(p))    G = softmax(Q~ K'/sqrt(p))

the output is F (Z (G V)), where Z approximates the pseudo-inverse of A by a fixed number of steps:

    Z0 = A' / (||A||_1 ||A||_inf),  Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4

The last step is never a matrix: it is applied to G V. 4 n L p + 4 (num_iterations - 1) L³
multiply-adds, and 7 L² p; O(n + L²) memory. The original experiments add a depthwise convolution
of V along the sequence (`conv_kernel_size`).

Departs from the paper and its release in that segments are cut among the tokens of each sequence,
as evenly as their number allows, so that padding and holes enter no landmark; a sequence of at
most L tokens has each token as a landmark, and no others; any length is allowed; Z0 is scaled for
each sequence and head, not by a maximum over the batch; A and Z are computed in fp32 or better
(TF32 is the process's choice). The number of steps acts as a regularizer: 6 are far from
convergence, and nearer to it the output gets worse.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attention.base import (
    AttentionCore,
    AttentionDims,
    attendable_keys,
    checked_count,
    zero_padding,
)
from attention.sketching import gather_rows


class NystromformerAttention(AttentionCore):
    """The Nyström approximation, with or without the convolution of the values.

    `num_landmarks`: L, an upper limit for sequences with fewer tokens.
    `num_iterations`: steps towards the pseudo-inverse.
    `conv_kernel_size`: odd width, in positions, of one filter a head; None for no convolution.
    """

    def __init__(
        self,
        dims: AttentionDims,
        *,
        num_landmarks: int,
        num_iterations: int,
        conv_kernel_size: int | None,
    ) -> None:
        super().__init__(dims)
        self.num_landmarks = checked_count("num_landmarks", num_landmarks)
        self.num_iterations = checked_count("num_iterations", num_iterations)
        self.conv: nn.Conv2d | None = None
        if conv_kernel_size is not None:
            if conv_kernel_size < 1 or conv_kernel_size % 2 == 0:
                raise ValueError(f"{conv_kernel_size=} is not a positive odd number")
            self.conv = nn.Conv2d(
                dims.num_heads,
                dims.num_heads,
                (conv_kernel_size, 1),
                padding="same",
                groups=dims.num_heads,
                bias=False,
            )

    def not_promised(self) -> dict[str, str]:
        return {
            "permutation": "segments are cut by the order of the tokens",
            "constant_values": "the rows of F Z G sum to 1 only where Z has converged",
        }

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        keys = attendable_keys(token_mask)
        members, filled = cut_segments(keys, min(self.num_landmarks, q.shape[2]))
        landmark_q = segment_means(q, members, filled)
        landmark_k = segment_means(k, members, filled)
        landmarks = filled.any(-1)  # b l
        landmark_v = F.scaled_dot_product_attention(
            landmark_q.to(q.dtype), k, v, attn_mask=keys[:, None, None, :]
        )
        with torch.autocast(q.device.type, enabled=False):
            kernel = landmark_kernel(landmark_q, landmark_k, landmarks)
            landmark_v = multiply_by_inverse(
                kernel, landmark_v.to(kernel.dtype), self.num_iterations
            )
        out = F.scaled_dot_product_attention(
            q, landmark_k.to(q.dtype), landmark_v.to(v.dtype), attn_mask=landmarks[:, None, None, :]
        )
        if self.conv is not None:
            out = out + convolve_tokens(v, token_mask, self.conv)
        return zero_padding(out, token_mask)


def cut_segments(
    keys: Bool[Tensor, "b n"], num_landmarks: int
) -> tuple[Int[Tensor, "b l s"], Bool[Tensor, "b l s"]]:
    """Positions of the keys in each segment, and which slots hold one.

    With c keys, min(c, num_landmarks) segments of neighboring keys differ by at most one in size;
    the remaining segments are empty. Each sequence needs at least one key, and `num_landmarks` is
    at most n.
    """
    n = keys.shape[1]
    rank_of_key = keys.cumsum(-1)  # b n
    num_keys = rank_of_key[:, -1:]  # b 1
    num_segments = num_keys.clamp_max(num_landmarks)
    boundary = torch.arange(num_landmarks + 1, device=keys.device).minimum(num_segments)
    first_rank = boundary * num_keys // num_segments  # b l+1
    largest_segment = -(-n // num_landmarks)
    rank = first_rank[:, :-1, None] + torch.arange(largest_segment, device=keys.device)  # b l s
    position = torch.searchsorted(rank_of_key, rank.flatten(1) + 1).view_as(rank)
    return position.clamp_max(n - 1), rank < first_rank[:, 1:, None]


def segment_means(
    x: Float[Tensor, "b h n p"], members: Int[Tensor, "b l s"], filled: Bool[Tensor, "b l s"]
) -> Float[Tensor, "b h l p"]:
    """Mean of the rows of each segment, in fp32 or better; zero for an empty one."""
    rows = members.flatten(1)[:, None].expand(-1, x.shape[1], -1)  # b h l*s
    grouped = gather_rows(x, rows).unflatten(2, members.shape[1:])  # b h l s p
    total = grouped.masked_fill(~filled[:, None, ..., None], 0).sum(
        3, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    return total / filled.sum(-1).clamp_min(1)[:, None, :, None]


def landmark_kernel(
    landmark_q: Float[Tensor, "b h l p"],
    landmark_k: Float[Tensor, "b h l p"],
    landmarks: Bool[Tensor, "b l"],
) -> Float[Tensor, "b h l l"]:
    """A: softmax among the landmarks. Rows and columns without a landmark are zero.

    The pseudo-inverse of a matrix with such rows and columns has them too, and leaves the rest
    alone.
    """
    logits = (landmark_q * landmark_q.shape[-1] ** -0.5) @ landmark_k.mT
    weights = logits.masked_fill(~landmarks[:, None, None, :], float("-inf")).softmax(-1)
    return zero_padding(weights, landmarks)


def multiply_by_inverse(
    matrix: Float[Tensor, "b h l l"], values: Float[Tensor, "b h l p"], num_iterations: int
) -> Float[Tensor, "b h l p"]:
    """Z V after a number of steps, for a matrix A whose rows sum to 1 or are zero."""
    num_heads = matrix.shape[1]
    matrix, values = matrix.flatten(0, 1), values.flatten(0, 1)  # b*h, as baddbmm takes one axis
    largest_column = matrix.sum(-2).amax(-1)[..., None, None]  # ||A||_1; ||A||_inf is 1
    inverse = matrix.mT / largest_column
    for _ in range(num_iterations - 1):
        inverse = improve_inverse(matrix, inverse)
    # The last step, on the values, multiplies no two matrices of L columns.
    inner = values
    for coefficient in (7, 15, 13):
        inner = torch.baddbmm(values, matrix, inverse @ inner, beta=coefficient, alpha=-1)
    return (inverse @ inner / 4).unflatten(0, (-1, num_heads))


def improve_inverse(
    matrix: Float[Tensor, "g l l"], inverse: Float[Tensor, "g l l"]
) -> Float[Tensor, "g l l"]:
    """Z of the next step."""
    # Multiplied out, each line keeps two matrices for the backward pass, none of them shifted.
    product = matrix @ inverse
    inner = torch.baddbmm(product, product, product, beta=7, alpha=-1)
    inner = torch.baddbmm(product, product, inner, beta=15, alpha=-1)
    return torch.baddbmm(inverse, inverse, inner, beta=13 / 4, alpha=-1 / 4)


def convolve_tokens(
    v: Float[Tensor, "b h n p"], token_mask: Bool[Tensor, "b n"], conv: nn.Conv2d
) -> Float[Tensor, "b h n p"]:
    """Each head's filter along the positions, over the values of tokens alone."""
    # With a channel for each head and feature, innermost in memory, a depthwise kernel runs.
    channels = zero_padding(v, token_mask).transpose(1, 2).flatten(2).mT[..., None]  # b h*p n 1
    filters = conv.weight.to(v.dtype).repeat_interleave(v.shape[-1], dim=0)  # h*p 1 k 1
    out = F.conv2d(channels, filters, padding="same", groups=len(filters))
    return out[..., 0].unflatten(1, v.shape[1::2]).mT
