"""Linformer: keys and values projected along the sequence to a fixed length, and its ablation.

Wang, Li, Khabsa, Fang, Ma, "Linformer: Self-Attention with Linear Complexity", 2020,
https://arxiv.org/abs/2006.04768, Section 4: softmax(Q (E K)' / sqrt(p)) (F V), with E = F a
trained matrix of d rows per head and layer, as in the Skeinformer paper's release.
4 n d p multiply-adds; O(n d) memory.

A Johnson-Lindenstrauss transform of V has entries of variance 1 / d, E[S S'] = I. Linformer moves
it inside the softmax, where it no longer is one, and reduces n keys to d. The ablation "w/
unreduced JLT" of Chen et al. (Skeinformer, NAACL 2022, Table 1) leaves it outside:
softmax(Q K' / sqrt(p)) S (S' V), at 2 n² p + 2 n d p multiply-adds. It has no released code.

Departs from the release in that padded keys and values are zero before they are projected (no
mask remains to be applied: the d projected keys belong to no token), that any length up to
max_seq_len uses the first columns of the projection, and that the projection is a parameter
wherever it is trained: the release moves it to the GPU at construction, which leaves a plain
tensor, neither trained nor in the checkpoint.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.base import (
    AttentionCore,
    AttentionDims,
    attendable_keys,
    checked_count,
    zero_padding,
)


class LinformerAttention(AttentionCore):
    """Attention to `projection_dim` projected keys.

    `init_std`: standard deviation of the projection's entries at construction.
    `train_projection`: a parameter, or else a buffer that stays as it was drawn.
    """

    projection: Tensor

    def __init__(
        self, dims: AttentionDims, *, projection_dim: int, init_std: float, train_projection: bool
    ) -> None:
        super().__init__(dims)
        if init_std <= 0:
            raise ValueError(f"init_std={init_std} is not positive: all projected keys would agree")
        num_rows = checked_count("projection_dim", projection_dim)
        self.init_std = init_std
        projection = init_std * torch.randn(dims.num_heads, num_rows, dims.max_seq_len)
        if train_projection:
            self.projection = nn.Parameter(projection)
        else:
            self.register_buffer("projection", projection)

    def not_promised(self) -> dict[str, str]:
        return {
            "permutation": "a column of the projection belongs to a position",
            "constant_values": "the rows of the projection do not sum to one",
            "key_shift": "a shift of the keys moves each projected key by its own row sum",
        }

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        projection = self.projection[..., : q.shape[2]]
        # In one product, so that the projection is read, and its gradient written, once.
        keys_and_values = zero_padding(torch.cat([k, v], dim=-1), token_mask)
        projected_k, projected_v = multiply_tokens(projection, keys_and_values).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(q, projected_k, projected_v)
        return zero_padding(attended, token_mask)


class UnreducedJLTAttention(AttentionCore):
    """Softmax attention to values that went through S S', E[S S'] = I, of rank `num_features`.

    The paper does not say when S is drawn; here once per head, at construction, as a buffer.
    """

    sketch: Tensor

    def __init__(self, dims: AttentionDims, *, num_features: int) -> None:
        super().__init__(dims)
        num_columns = checked_count("num_features", num_features)
        entries = torch.randn(dims.num_heads, dims.max_seq_len, num_columns)
        self.register_buffer("sketch", entries * num_columns**-0.5)

    def not_promised(self) -> dict[str, str]:
        return {
            "permutation": "a row of the sketch belongs to a position",
            "constant_values": "S S' preserves a constant in expectation only",
        }

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        sketch = self.sketch[:, : q.shape[2]]
        sketched_v = multiply_tokens(sketch.mT, zero_padding(v, token_mask))  # b h d p
        restored_v = multiply_tokens(sketch, sketched_v)
        keys = attendable_keys(token_mask)[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, restored_v, attn_mask=keys)
        return zero_padding(attended, token_mask)


def multiply_tokens(
    matrix: Float[Tensor, "h d n"], x: Float[Tensor, "b h n p"]
) -> Float[Tensor, "b h d p"]:
    """Each head's matrix times the tokens of each sequence."""
    # `matrix @ x` would copy the matrix for every sequence of the batch
    return torch.einsum("hdn,bhnp->bhdp", matrix.to(x.dtype), x)
