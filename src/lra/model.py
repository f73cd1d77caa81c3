"""The Transformer encoder of the paper and the classifier on top of it."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention.base import AttentionCore, AttentionDims
from attention.multihead import MultiHeadAttention
from lra.dropout import Dropout
from lra.embedding import TokenEmbedding
from lra.layout import Layout, packed, padded, sequence_lengths

Pooling = Literal["token_mean", "padded_mean"]


@runtime_checkable
class AttentionFactory(Protocol):
    """Builds the core of one layer."""

    def __call__(self, dims: AttentionDims, /) -> AttentionCore: ...


class EncoderLayer(nn.Module):
    """Pre-norm: attention and feed-forward, each added to its input."""

    def __init__(
        self, core: AttentionCore, *, embed_dim: int, hidden_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = MultiHeadAttention(core, embed_dim)
        self.attention_dropout = Dropout(dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(embed_dim),
            nn.Linear(embed_dim, hidden_dim),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(hidden_dim, embed_dim),
            Dropout(dropout),
        )

    def forward(
        self, x: Float[Tensor, "t e"], token_masks: Sequence[Bool[Tensor, "_ _"]]
    ) -> Float[Tensor, "t e"]:
        """One layer, over the sequences of `MultiHeadAttention`."""
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), token_masks))
        return x + self.feed_forward(x)


class Encoder(nn.Module):
    """Token and learned position embeddings, layers, a final norm."""

    def __init__(
        self,
        attention: AttentionFactory,
        *,
        vocab_size: int,
        max_seq_len: int,
        num_layers: int,
        embed_dim: int,
        hidden_dim: int,
        num_heads: int,
        dropout: float,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}")
        dims = AttentionDims(num_heads, embed_dim // num_heads, max_seq_len)
        self.token_embedding = TokenEmbedding(vocab_size, embed_dim)
        self.position_embedding = nn.Embedding(max_seq_len, embed_dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(
                attention(dims), embed_dim=embed_dim, hidden_dim=hidden_dim, dropout=dropout
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.activation_checkpointing = activation_checkpointing

    def forward(self, layout: Layout) -> Float[Tensor, "t e"]:
        """Encode; rows of padding are zero."""
        embedded = self.token_embedding(layout.tokens) + self.position_embedding(layout.positions)
        x = self.dropout(embedded.flatten(0, -2))
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, x, layout.token_masks, use_reentrant=False)
            else:
                x = layer(x, layout.token_masks)
        is_token = torch.cat([mask.flatten() for mask in layout.token_masks])
        x = self.norm(x)
        return x * is_token[:, None].to(x.dtype)  # a product with booleans is slow on a CPU


class Classifier(nn.Module):
    """Encoder, mean over the sequence, and a head of two layers.

    Two sequences a and b share the encoder; the head sees [a, b, a b, a - b].
    `packed`: leave out the padding behind the last token of each sequence. The function is the
    same, but for the noise: a core that samples draws anew for every length in the batch.
    """

    def __init__(
        self,
        attention: AttentionFactory,
        *,
        vocab_size: int,
        max_seq_len: int,
        num_sequences: int,
        num_classes: int,
        num_layers: int,
        embed_dim: int,
        hidden_dim: int,
        num_heads: int,
        dropout: float,
        pooling: Pooling,
        packed: bool,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            attention,
            vocab_size=vocab_size,
            max_seq_len=max_seq_len,
            num_layers=num_layers,
            embed_dim=embed_dim,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            dropout=dropout,
            activation_checkpointing=activation_checkpointing,
        )
        if pooling not in get_args(Pooling):
            raise ValueError(
                f"model.pooling={pooling} is not one of {', '.join(get_args(Pooling))}"
            )
        self.pooling = pooling
        self.packed = packed
        num_features = embed_dim if num_sequences == 1 else 4 * embed_dim
        self.head = nn.Sequential(
            nn.Linear(num_features, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, num_classes)
        )

    def forward(
        self,
        tokens: Int[Tensor, "b s n"],
        token_mask: Bool[Tensor, "b s n"],
        lengths: Callable[[], Sequence[int]] | None = None,
    ) -> Float[Tensor, "b c"]:
        """Logits of the classes.

        `lengths` returns those of `sequence_lengths`; packed computation, without it, has to read
        the mask, for which the host waits for a GPU.
        """
        flat_tokens, flat_mask = tokens.flatten(0, 1), token_mask.flatten(0, 1)
        if self.packed:
            known = sequence_lengths(token_mask) if lengths is None else lengths()
            layout = packed(flat_tokens, flat_mask, known)
        else:
            layout = padded(flat_tokens, flat_mask)
        pooled = layout.sums(self.encoder(layout)) / self.num_pooled(flat_mask)
        pooled = pooled.unflatten(0, tokens.shape[:2])  # b s e
        if pooled.shape[1] == 1:
            return self.head(pooled[:, 0])
        a, b = pooled.unbind(1)
        return self.head(torch.cat([a, b, a * b, a - b], dim=-1))

    def num_pooled(self, token_mask: Bool[Tensor, "b n"]) -> Int[Tensor, "b 1"]:
        """By how much the sum over a sequence is divided."""
        if self.pooling == "token_mean":
            return token_mask.sum(-1, keepdim=True).clamp_min(1)
        return torch.full_like(token_mask[:, :1], token_mask.shape[1], dtype=torch.int64)
