"""The contract of an attention variant."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn


@dataclass(frozen=True)
class AttentionDims:
    """What the backbone fixes: heads h, features per head p, and the longest sequence in tokens."""

    num_heads: int
    head_dim: int
    max_seq_len: int


class AttentionCore(nn.Module, ABC):
    """Non-causal self-attention over heads; the projections belong to `MultiHeadAttention`.

    The contract of `forward`, checked for every variant by the tests:

    - Any `1 <= n <= dims.max_seq_len`. The output has the shape, dtype and device of `v`.
    - `q` is not scaled beforehand; the core applies `1 / sqrt(p)`.
    - `token_mask` is True at tokens, False at padding, holes allowed, and may be all False.
      Outputs at tokens do not depend on (finite) padding; outputs at padding are zero; a fully
      masked sequence gives zeros and finite gradients.
    - An example's output does not depend on its batch-mates.
    - Randomness comes from torch's default generator of q's device, and the number of draws
      depends on shapes only. What is drawn once is a parameter or a buffer.
    - `self.training` may switch attention dropout and nothing else.

    Impossible hyper-parameters raise `ValueError` at construction, with the value and the limit.
    What a method cannot promise, `not_promised` says; `attention.conformance` checks both.
    """

    projections: ClassVar[Literal["q,k,v", "qk,v", "v"]] = "q,k,v"
    """The inputs that need a projection of their own; inputs that share one are the same tensor."""

    def __init__(self, dims: AttentionDims) -> None:
        super().__init__()
        self.dims = dims

    @abstractmethod
    def forward(
        self,
        q: Float[Tensor, "b h n p"],
        k: Float[Tensor, "b h n p"],
        v: Float[Tensor, "b h n p"],
        token_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b h n p"]:
        """Attend; see the class for the contract."""

    @property
    def effective_features(self) -> int | None:
        """What `num_features`, the paper's d, came out as, where a method rounds it; else None."""
        return None

    def not_promised(self) -> dict[str, str]:
        """The properties of `attention.conformance` that do not hold, each with the reason.

        May depend on the hyper-parameters. A declared property that holds after all is an error.
        """
        return {}


def zero_padding(
    x: Float[Tensor, "b h n p"], token_mask: Bool[Tensor, "b n"]
) -> Float[Tensor, "b h n p"]:
    """Set the rows of padding to zero, in value and in gradient."""
    return x.masked_fill(~token_mask[:, None, :, None], 0)


def attendable_keys(token_mask: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """The keys that may be attended to: the tokens, or every position where there is no token.

    No softmax over these keys is ever empty; `zero_padding` clears what a sequence without
    tokens computes.
    """
    return token_mask | ~token_mask.any(-1, keepdim=True)


def checked_probability(name: str, value: float) -> float:
    """The value, if it is a probability below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value} is not in [0, 1)")
    return value


def checked_count(name: str, value: int) -> int:
    """The value, if it is a positive integer."""
    if value < 1:
        raise ValueError(f"{name}={value} is not a positive integer")
    return value


def checked_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """The value, if it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value} is not one of {', '.join(choices)}")
    return value
