"""The error of one sequence's attention: spectral norm, Frobenius norm, and row sums.

Everything that is compared is computed in float64; `BV` is softmax attention of the paper's
Section 3, `B = softmax(Q K' / sqrt(p))`, over the tokens of the mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from attention.base import AttentionCore, zero_padding

SCORES_PER_CHUNK = 2**21
"""Entries of the score matrix of a head that exist at a time: 16 MiB in float64."""


@dataclass(frozen=True)
class Projections:
    """What attention is applied to: the heads h of one sequence."""

    q: Float[Tensor, "1 h n p"]
    k: Float[Tensor, "1 h n p"]
    v: Float[Tensor, "1 h n p"]
    token_mask: Bool[Tensor, "1 n"]

    def prepared(
        self, temperature: float, dtype: torch.dtype, device: torch.device
    ) -> "Projections":
        """With all scores multiplied by `temperature`, as a variant is to receive them."""
        q, k, v = (x.to(device=device, dtype=dtype) for x in (self.q, self.k, self.v))
        return Projections(temperature * q, k, v, self.token_mask.to(device))


@dataclass(frozen=True)
class ExactAttention:
    """Softmax attention of one sequence and what errors are measured against."""

    projections: Projections
    output: Float64[Tensor, "h n p"]

    @cached_property
    def spectral(self) -> Float64[Tensor, " h"]:
        """||BV||₂ of every head."""
        return spectral_norm(self.output)

    @cached_property
    def frobenius(self) -> Float64[Tensor, " h"]:
        """||BV||_F of every head."""
        return self.output.flatten(1).norm(dim=-1)

    @cached_property
    def column_squares(self) -> Float64[Tensor, "h n"]:
        """Squared norm of each column of B; costs another pass over it."""
        squares = torch.zeros_like(self.output[..., 0])
        for head, _, weights in weight_chunks(self.projections):
            squares[head] += weights.square().sum(0)
        return squares

    @cached_property
    def v_mean_error(self) -> Float64[Tensor, "h n p"]:
        """BV minus the mean of the values, in every row."""
        mask = self.projections.token_mask
        v = zero_padding(self.projections.v.double(), mask)[0]
        mean = v.sum(1, keepdim=True) / mask.sum()
        return self.output - mean * mask[0, :, None]


@torch.no_grad()
def exact_attention(projections: Projections) -> ExactAttention:
    """Softmax attention in float64, a chunk of rows at a time; zero at padding."""
    v = zero_padding(projections.v.double(), projections.token_mask)[0]
    output = torch.zeros_like(v)
    for head, rows, weights in weight_chunks(projections):
        output[head, rows] = weights @ v[head]
    return ExactAttention(projections, output)


def weight_chunks(
    projections: Projections,
) -> Iterator[tuple[int, Int64[Tensor, " r"], Float64[Tensor, "r n"]]]:
    """Rows of B: the head, which rows, and their weights; every token's row once."""
    mask = projections.token_mask
    q, k = (x[0].double() for x in (projections.q, projections.k))
    q = q * q.shape[-1] ** -0.5
    has_padding = not mask.all()
    tokens = mask[0].nonzero()[:, 0]
    for head in range(len(q)):
        for rows in tokens.split(max(1, SCORES_PER_CHUNK // mask.shape[1])):
            scores = q[head, rows] @ k[head].mT
            if has_padding:
                scores.masked_fill_(~mask, float("-inf"))
            yield head, rows, scores.softmax(-1)


def spectral_norm(x: Float64[Tensor, "h n p"]) -> Float64[Tensor, " h"]:
    """Largest singular value: the root of the largest eigenvalue of the p x p Gram matrix."""
    return torch.linalg.eigvalsh(x.mT @ x)[..., -1].clamp_min(0).sqrt()


def attend(core: AttentionCore, inputs: Projections, seed: int) -> Float64[Tensor, "h n p"]:
    """The output of a variant, the generators seeded for this call."""
    torch.manual_seed(seed)
    return core(inputs.q, inputs.k, inputs.v, inputs.token_mask)[0].double()


def row_sums(core: AttentionCore, inputs: Projections, seed: int) -> Float64[Tensor, "h n"]:
    """Row sums of the n x n matrix by which a variant implicitly multiplies V; 1 for softmax.

    The same seed gives the matrix of `attend`, also where sampling looks at the norms of the
    values: the values here have the norms of V, and a first entry that is the same in all rows.
    """
    norm = inputs.v.norm(dim=-1)  # 1 h n
    entry = norm.masked_fill(~inputs.token_mask[:, None], float("inf")).amin(-1, keepdim=True)
    entry = torch.where(entry > 0, entry, 1)
    values = torch.zeros_like(inputs.v)
    values[..., 0] = entry
    values[..., 1] = (norm.square() - entry.square()).clamp_min(0).sqrt()
    probe = Projections(inputs.q, inputs.k, values, inputs.token_mask)
    return attend(core, probe, seed)[..., 0] / entry[0]


def root_mean_square(
    x: Float64[Tensor, "h n"], token_mask: Bool[Tensor, "1 n"]
) -> Float64[Tensor, " h"]:
    """Over the tokens of every head."""
    return (x.square() * token_mask).sum(-1).div(token_mask.sum()).sqrt()
