"""What a conformance check is given, and what it reports."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention.base import AttentionCore, AttentionDims
from attention.conformance.noise import InjectedNoise, noise_at, normal

NUM_FEATURES = 8
"""Samples, landmarks, projections, ... of the miniature that the suite expects to be built."""
BLOCK_SIZE = 4
"""Tokens a block of that miniature."""
NUM_TOKENS = 45
"""Length of the checked sequences: eleven blocks and one token."""
DIMS = AttentionDims(num_heads=2, head_dim=8, max_seq_len=96)

EXACT = 1e-6
"""Limit of a relative error in float64; sampling weights may be of float32."""


@dataclass(frozen=True)
class Subject:
    """A variant under test: `build` makes a core of few features for any dims."""

    name: str
    build: Callable[[AttentionDims], AttentionCore]

    def core(
        self, dims: AttentionDims = DIMS, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> AttentionCore:
        """A new core in training mode, initialized from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(dims).to(dtype)


@dataclass(frozen=True)
class Measurement:
    """A figure that a property bounds, and why it is likely too large where it is."""

    what: str
    figure: float
    limit: float
    likely_cause: str

    @property
    def holds(self) -> bool:
        """Whether the figure keeps the limit; NaN does not."""
        return self.figure <= self.limit

    @property
    def severity(self) -> float:
        """Figure over limit."""
        if self.figure <= 0:
            return 0.0
        return self.figure / self.limit if self.limit > 0 else float("inf")


Check = Callable[[Subject], Iterator[Measurement]]


@dataclass(frozen=True)
class Property:
    """A promise of the contract, with the check that measures it."""

    name: str
    statement: str
    check: Check


@dataclass(frozen=True)
class Inputs:
    """What a core is called with: one tensor for each input that has its own projection."""

    leaves: tuple[Float[Tensor, "b h n p"], ...]
    token_mask: Bool[Tensor, "b n"]

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as `MultiHeadAttention` passes them."""
        return self.leaves[0], self.leaves[-2 if len(self.leaves) == 3 else 0], self.leaves[-1]

    @property
    def at_tokens(self) -> Bool[Tensor, "b 1 n 1"]:
        """The token mask, to select from an output."""
        return self.token_mask[:, None, :, None]

    def map(self, change: Callable[[Tensor], Tensor], token_mask: Tensor | None = None) -> "Inputs":
        """Inputs with every tensor changed, and another mask if one is given."""
        mask = self.token_mask if token_mask is None else token_mask
        return Inputs(tuple(change(leaf) for leaf in self.leaves), mask)

    def to(self, dtype: torch.dtype) -> "Inputs":
        """The inputs in another precision."""
        return self.map(lambda leaf: leaf.to(dtype))

    def sequences(self, which: slice) -> "Inputs":
        """Some of the sequences."""
        return self.map(lambda leaf: leaf[which], self.token_mask[which])

    def first_tokens(self, count: int) -> "Inputs":
        """The sequences cut to their first positions."""
        return self.map(lambda leaf: leaf[:, :, :count], self.token_mask[:, :count])

    def with_padding(self, scale: float) -> "Inputs":
        """The same tokens, with normal noise of the given scale in the padding."""
        noise = scale * normal(noise_at(self.leaves[0].shape, 99))
        return self.map(lambda leaf: torch.where(self.at_tokens, leaf, noise.to(leaf.dtype)))


def inputs_for(
    core: AttentionCore,
    token_mask: Bool[Tensor, "b n"],
    *,
    scale: float = 1.0,
    stream: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Inputs:
    """Standard normal inputs, in the memory layout of `MultiHeadAttention`; `v` is not scaled."""
    b, n = token_mask.shape
    names = core.projections.split(",")
    leaves = []
    for number, name in enumerate(names):
        noise = normal(
            noise_at((b, n, core.dims.num_heads, core.dims.head_dim), 10 * stream + number)
        )
        leaf = noise if name == "v" else scale * noise
        leaves.append(leaf.to(dtype).transpose(1, 2))
    return Inputs(tuple(leaves), token_mask)


def lengths_mask(lengths: Sequence[int], num_positions: int) -> Bool[Tensor, "b n"]:
    """The mask of sequences of the given lengths, padded on the right."""
    return torch.arange(num_positions) < torch.tensor(lengths)[:, None]


def attend(core: AttentionCore, inputs: Inputs, *, noise_seed: int = 0) -> Float[Tensor, "b h n p"]:
    """The output under injected noise."""
    with InjectedNoise(noise_seed):
        return core(*inputs.qkv, inputs.token_mask)


def attend_with_gradients(
    core: AttentionCore, inputs: Inputs, *, noise_seed: int = 0
) -> tuple[Tensor, Inputs]:
    """The output, and the gradients of a fixed random functional of it."""
    leaf_inputs = inputs.map(lambda leaf: leaf.detach().requires_grad_())
    out = attend(core, leaf_inputs, noise_seed=noise_seed)
    cotangent = (2 * noise_at(out.shape, 77) - 1).to(out)
    gradients = torch.autograd.grad(
        out, leaf_inputs.leaves, cotangent, allow_unused=True, materialize_grads=True
    )
    return out.detach(), Inputs(gradients, inputs.token_mask)


def relative_error(actual: Float[Tensor, "*shape"], expected: Float[Tensor, "*shape"]) -> float:
    """Norm of the difference over that of the expectation, or over 1e-3 if that is larger.

    The inputs are of unit scale: below 1e-3 a gradient is rounding. Infinite if not finite.
    """
    if not actual.isfinite().all():
        return float("inf")
    difference = (actual.double() - expected.double()).norm()
    return float((difference / expected.double().norm().clamp_min(1e-3)).detach())


def num_nonfinite(*tensors: Tensor) -> float:
    """How many entries are infinite or not a number."""
    return float(sum(int((~tensor.isfinite()).sum()) for tensor in tensors))


def largest(*tensors: Tensor) -> float:
    """The largest magnitude; NaN if there is one."""
    return max((float(tensor.abs().max()) for tensor in tensors if tensor.numel()), default=0.0)
