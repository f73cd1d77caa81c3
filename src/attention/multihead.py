"""Projections around an attention core."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.base import AttentionCore


class MultiHeadAttention(nn.Module):
    """Project to heads, attend with `core`, merge the heads and project back.

    One matrix product serves all projections that the core declares (`AttentionCore.projections`),
    so that a core which ignores queries and keys carries no dead weights.
    """

    def __init__(self, core: AttentionCore, embed_dim: int) -> None:
        super().__init__()
        inner_dim = core.dims.num_heads * core.dims.head_dim
        self.core = core
        self.num_projections = len(core.projections.split(","))
        self.project_in = nn.Linear(embed_dim, self.num_projections * inner_dim)
        self.project_out = nn.Linear(inner_dim, embed_dim)

    def forward(
        self, x: Float[Tensor, "t e"], token_masks: Sequence[Bool[Tensor, "_ _"]]
    ) -> Float[Tensor, "t e"]:
        """Self-attention of sequences that lie end to end; rows of padding hold the output bias.

        A mask is a group: so many sequences of so many positions each, for one call of the core.
        """
        sizes = [mask.numel() for mask in token_masks]
        groups = self.project_in(x).split(sizes)
        attended = [
            self._attend(rows, mask) for rows, mask in zip(groups, token_masks, strict=True)
        ]
        return self.project_out(attended[0] if len(attended) == 1 else torch.cat(attended))

    def _attend(
        self, rows: Float[Tensor, "t i"], token_mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "t o"]:
        heads = rows.view(*token_mask.shape, self.num_projections, self.core.dims.num_heads, -1)
        projected = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each b h n p
        q, v = projected[0], projected[-1]
        k = projected[-2] if self.num_projections == 3 else q
        attended = self.core(q, k, v, token_mask)
        return attended.transpose(1, 2).flatten(2).flatten(0, 1)
