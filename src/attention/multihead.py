"""Projections around an attention core."""

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
        self, x: Float[Tensor, "b n e"], token_mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b n e"]:
        """Self-attention of `x`; rows of padding hold the output bias alone."""
        heads = self.project_in(x).unflatten(
            -1, (self.num_projections, self.core.dims.num_heads, -1)
        )
        projected = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each b h n p
        q, v = projected[0], projected[-1]
        k = projected[-2] if self.num_projections == 3 else q
        attended = self.core(q, k, v, token_mask)
        return self.project_out(attended.transpose(1, 2).flatten(2))
