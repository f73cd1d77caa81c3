"""Public implementations of the attention variants, called like ours.

Each peer is the attention alone: what its package would project, it is given projected, and the
projection back is left out. Inputs and output are shaped as a core's, and `q` is not scaled. With
equal features a peer computes what its variant computes, up to what either draws at random and to
what `Peer.departs` says.

Peers are compared without padding: the mask has to be True everywhere, and is not passed on,
which is the fastest they go. They read `q`, `k` and `v` in place where these are views of b n h p
tensors, as the backbone makes them; other layouts cost some of them a copy.

The packages belong to the extra `dev`, and are imported when a peer is built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.base import AttentionDims

BLOCK_SIZE = 64
NUM_RANDOM_BLOCKS = 3
NUM_HASHES = 2
CONV_KERNEL_SIZE = 35
"""As in the YAMLs of the variants; everything else follows from num_features."""


@dataclass(frozen=True)
class Peer:
    """A public implementation of a variant."""

    variant: str
    """The name of its YAML in `conf/attention`."""
    package: str
    build: Callable[[AttentionDims, int], nn.Module]
    """From dims and num_features to a module that is called with q, k, v, token_mask.

    Raises ModuleNotFoundError where the package is missing, with the command that installs it.
    """
    departs: str = ""
    """What it computes otherwise than the variant."""

    @property
    def label(self) -> str:
        """Variant and package, such as `reformer (transformers)`."""
        return f"{self.variant} ({self.package})"


class PeerAttention(nn.Module):
    """A package's module, called with q, k, v and a mask that is True everywhere."""

    attention: Any

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        """Attend, as if every position were a token."""
        return self.attention(q, k, v)


class Given(nn.Module):
    """In the place of a projection: returns what it was given last."""

    value: Any = None

    def forward(self, _: Tensor) -> Any:
        """What was given."""
        return self.value


class Chunks(tuple[Tensor, ...]):
    """The result of a projection that is chunked already."""

    __slots__ = ()

    def chunk(self, chunks: int, dim: int) -> tuple[Tensor, ...]:
        """The chunks."""
        return self


class TransformersBigBird(PeerAttention):
    """BigBirdBlockSparseAttention; to be left in training mode.

    It draws its random blocks in each call (in evaluation, all are the first block), and
    assembles the n x n weights.
    """

    def __init__(self, dims: AttentionDims, num_features: int) -> None:
        modeling = import_package("transformers.models.big_bird.modeling_big_bird")
        config = modeling.BigBirdConfig(
            hidden_size=dims.num_heads * dims.head_dim,
            num_attention_heads=dims.num_heads,
            max_position_embeddings=dims.max_seq_len,
            block_size=BLOCK_SIZE,
            num_random_blocks=NUM_RANDOM_BLOCKS,
        )
        super().__init__(modeling.BigBirdBlockSparseAttention(config))
        del self.attention.query, self.attention.key, self.attention.value
        self.make_masks = modeling.BigBirdModel.create_masks_for_block_sparse_attn

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        b, h, n, p = q.shape
        blocks, band, rows, columns = self.make_masks(q.new_ones(b, n), BLOCK_SIZE)
        masks = band, rows, columns, blocks, blocks
        sizes = h, NUM_RANDOM_BLOCKS, p, BLOCK_SIZE, BLOCK_SIZE, b, n, n
        out, _ = self.attention.bigbird_block_sparse_attention(
            *(q, k, v), *masks, *sizes, seed=None, plan_from_length=None, plan_num_rand_blocks=None
        )
        return out.transpose(1, 2)


class TransformersNystromformer(PeerAttention):
    """NystromformerSelfAttention; n has to be a multiple of the number of landmarks."""

    def __init__(
        self, dims: AttentionDims, num_features: int, *, conv_kernel_size: int | None = None
    ) -> None:
        modeling = import_package("transformers.models.nystromformer.modeling_nystromformer")
        config = modeling.NystromformerConfig(
            hidden_size=dims.num_heads * dims.head_dim,
            num_attention_heads=dims.num_heads,
            num_landmarks=num_features,
            conv_kernel_size=conv_kernel_size or 1,
            attention_probs_dropout_prob=0.0,
        )
        super().__init__(modeling.NystromformerSelfAttention(config))
        if conv_kernel_size is None:  # which the configuration does not allow to say
            self.attention.conv_kernel_size = None
            del self.attention.conv
        self.attention.init_option = "exact"  # Z0 is scaled for each sequence and head, as ours
        self.attention.query, self.attention.key, self.attention.value = (Given() for _ in "qkv")

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        projections = self.attention.query, self.attention.key, self.attention.value
        give(projections, [x.transpose(1, 2) for x in (q, k, v)])
        self.attention.seq_len = q.shape[2]
        return split_heads(self.attention(q[:, 0])[0], q.shape[1])


class NystromAttentionPackage(PeerAttention):
    """NystromAttention of nystrom-attention, without its convolution."""

    def __init__(self, dims: AttentionDims, num_features: int) -> None:
        package = import_package("nystrom_attention")
        super().__init__(
            package.NystromAttention(
                dims.num_heads * dims.head_dim,
                dim_head=dims.head_dim,
                heads=dims.num_heads,
                num_landmarks=num_features,
                residual=False,
            )
        )
        self.attention.to_qkv, self.attention.to_out = Given(), nn.Identity()

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        give([self.attention.to_qkv], [Chunks(merge_heads(x) for x in (q, k, v))])
        return split_heads(self.attention(q[:, 0]), q.shape[1])


class TransformersReformer(PeerAttention):
    """LSHSelfAttention; its number of buckets is that of the first length it sees."""

    def __init__(self, dims: AttentionDims, num_features: int) -> None:
        modeling = import_package("transformers.models.reformer.modeling_reformer")
        config = modeling.ReformerConfig(
            attention_head_size=dims.head_dim,
            hidden_size=dims.num_heads * dims.head_dim,
            num_attention_heads=dims.num_heads,
            lsh_attn_chunk_length=BLOCK_SIZE,
            lsh_attention_probs_dropout_prob=0.0,
            max_position_embeddings=dims.max_seq_len,
            num_hashes=NUM_HASHES,
            is_decoder=False,
        )
        super().__init__(modeling.LSHSelfAttention(config))
        self.attention.query_key, self.attention.value = Given(), Given()

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        projections = self.attention.query_key, self.attention.value
        give(projections, [merge_heads(x) for x in (q, v)])
        return split_heads(self.attention(q[:, 0]).hidden_states, q.shape[1])


class ReformerPytorch(PeerAttention):
    """LSHAttention of reformer-pytorch, which takes heads as sequences."""

    def __init__(self, dims: AttentionDims, num_features: int) -> None:
        package = import_package("reformer_pytorch.reformer_pytorch")
        super().__init__(package.LSHAttention(bucket_size=BLOCK_SIZE, n_hashes=NUM_HASHES))

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        scaled_q = q * q.shape[-1] ** 0.5  # it divides by that much
        out, *_ = self.attention(scaled_q.flatten(0, 1), v.flatten(0, 1))
        return out.unflatten(0, q.shape[:2])


class LinformerPackage(PeerAttention):
    """LinformerSelfAttention of linformer, without its linear layers."""

    def __init__(self, dims: AttentionDims, num_features: int) -> None:
        package = import_package("linformer.linformer")
        inner_dim = dims.num_heads * dims.head_dim
        super().__init__(
            package.LinformerSelfAttention(
                inner_dim, dims.max_seq_len, k=num_features, heads=dims.num_heads
            )
        )
        self.attention.to_q, self.attention.to_k, self.attention.to_v = (Given() for _ in "qkv")
        self.attention.to_out = nn.Identity()

    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        projections = self.attention.to_q, self.attention.to_k, self.attention.to_v
        give(projections, [merge_heads(x) for x in (q, k, v)])
        # All that it reads of its input is the shape: b n and the width of the heads together.
        shape = q.shape[0], q.shape[2], q.shape[1] * q.shape[3]
        return split_heads(self.attention(q.new_empty(()).expand(shape)), q.shape[1])


def build_performer_pytorch(dims: AttentionDims, num_features: int) -> nn.Module:
    """FastAttention of performer-pytorch, which is called as it is."""
    package = import_package("performer_pytorch.performer_pytorch")
    return PeerAttention(package.FastAttention(dims.head_dim, nb_features=num_features))


def build_convolving_nystromformer(dims: AttentionDims, num_features: int) -> nn.Module:
    """transformers' Nyströmformer as its authors used it."""
    return TransformersNystromformer(dims, num_features, conv_kernel_size=CONV_KERNEL_SIZE)


PEERS: tuple[Peer, ...] = (
    Peer("bigbird", "transformers", TransformersBigBird),
    Peer("nystromformer", "transformers", TransformersNystromformer),
    Peer(
        "nystromformer",
        "nystrom-attention",
        NystromAttentionPackage,
        departs="Z0 is scaled by maxima over the batch",
    ),
    Peer("nystromformer_conv", "transformers", build_convolving_nystromformer),
    Peer(
        "performer",
        "performer-pytorch",
        build_performer_pytorch,
        departs="adds 1e-4 to every feature",
    ),
    Peer("reformer", "transformers", TransformersReformer),
    Peer("reformer", "reformer-pytorch", ReformerPytorch, departs="has half as many buckets"),
    Peer(
        "linformer",
        "linformer",
        LinformerPackage,
        departs="projects keys and values by a matrix each, which its heads share",
    ),
)


def import_package(name: str) -> Any:
    """A module of a public package; ModuleNotFoundError with the remedy if it is missing."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        message = f"{error.msg}; to compare with public implementations: pip install -e '.[dev]'"
        raise ModuleNotFoundError(message, name=error.name) from error


def give(projections: Any, values: list[Any]) -> None:
    """Have each `Given` return its value."""
    for projection, value in zip(projections, values, strict=True):
        projection.value = value


def merge_heads(x: Float[Tensor, "b h n p"]) -> Float[Tensor, "b n e"]:
    """The features of all heads of each token."""
    return x.transpose(1, 2).flatten(2)


def split_heads(x: Float[Tensor, "b n e"], num_heads: int) -> Float[Tensor, "b h n p"]:
    """The reverse."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
