"""Token embeddings whose gradients have the same bits in every run."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class TokenEmbedding(nn.Embedding):
    """`nn.Embedding` for a small vocabulary.

    On a GPU, torch adds up the gradients of a token's occurrences in no fixed order. A product with
    the one-hot matrix has one; that matrix is as large as one activation of `vocab_size` features.
    """

    def forward(self, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape e"]:
        """The rows of `weight` at the tokens."""
        if tokens.is_cuda and not torch.compiler.is_compiling():
            return _Lookup.apply(tokens, self.weight)
        return super().forward(tokens)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.vocab_size = len(weight)
        return F.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (tokens,) = ctx.saved_tensors
        ids = torch.arange(ctx.vocab_size, device=tokens.device)
        one_hot = (tokens.flatten() == ids[:, None]).to(grad.dtype)
        return None, one_hot @ grad.flatten(0, -2)
