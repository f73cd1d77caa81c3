"""What changes nothing: other sequences, other heads, the order of tokens, a shift of the keys."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attention.base import AttentionCore, AttentionDims
from attention.conformance.noise import InjectedNoise, noise_at, normal
from attention.conformance.subject import (
    DIMS,
    EXACT,
    NUM_TOKENS,
    Inputs,
    Measurement,
    Subject,
    attend,
    attend_with_gradients,
    inputs_for,
    largest,
    lengths_mask,
    num_nonfinite,
    relative_error,
)

SCALES = ((1.0, 1.0), (1.0, 30.0), (30.0, 1.0), (1.0, 0.0))
"""Scales of the queries and keys that are looked at, and of those that must not matter."""


def batch_mates(subject: Subject) -> Iterator[Measurement]:
    """A sequence alone, against the same with others of any length, content and scale."""
    yield from mates_do_not_matter(subject, DIMS)


def singletons(subject: Subject) -> Iterator[Measurement]:
    """One head, one sequence, one token: a lost dimension shows where a size is 1."""
    one_head = replace(DIMS, num_heads=1)
    yield from mates_do_not_matter(subject, one_head)
    for dims in (one_head, DIMS):
        core = subject.core(dims)
        for lengths in ([NUM_TOKENS], [1], [1, 1]):
            inputs = inputs_for(core, lengths_mask(lengths, max(lengths)))
            out, gradients = attend_with_gradients(core, inputs)
            where = f"b={len(lengths)} h={dims.num_heads} n={max(lengths)}"
            cause = "a squeeze without a dimension, or a lost keepdim?"
            wrong_shape = float(out.shape != inputs.qkv[2].shape)
            yield Measurement(f"shape {tuple(out.shape)}, {where}", wrong_shape, 0.0, cause)
            bad = num_nonfinite(out, *gradients.leaves)
            yield Measurement(f"non-finite entries, {where}", bad, 0.0, cause)


def mates_do_not_matter(subject: Subject, dims: AttentionDims) -> Iterator[Measurement]:
    """The first sequence, alone and before two others."""
    cause = "output depends on the other sequences of the batch: a reduction over dim 0?"
    for dtype, limit in ((torch.float64, EXACT), (torch.float32, 1e-3)):
        core = subject.core(dims, dtype)
        for length, others in ((NUM_TOKENS, [NUM_TOKENS, 3]), (20, [NUM_TOKENS, 0])):
            mask = lengths_mask([length, *others], NUM_TOKENS)
            for scale, mates_scale in SCALES:
                inputs = inputs_for(core, mask, scale=scale, dtype=dtype)
                mates = inputs_for(core, mask, scale=mates_scale, stream=1, dtype=dtype)
                batch = Inputs(tuple(map(first_and_rest, inputs.leaves, mates.leaves)), mask)
                where = f"h={dims.num_heads} lengths {[length, *others]}, mates x{mates_scale:g}"
                alone = attend(core, inputs.sequences(slice(1)))
                error = relative_error(attend(core, batch)[:1], alone)
                yield Measurement(f"{where}, {dtype}", error, limit, cause)
        leak = cross_gradient(core, inputs_for(core, mask, dtype=dtype), 0)
        yield Measurement("gradient to other sequences", leak, 0.0, cause)


def head_independence(subject: Subject) -> Iterator[Measurement]:
    """The first head, before another of other content and scale."""
    cause = "a head's output depends on another head: a reduction over dim 1, or a wrong reshape?"
    core = subject.core()
    mask = lengths_mask([NUM_TOKENS, 20], NUM_TOKENS)
    for scale, others_scale in SCALES:
        inputs = inputs_for(core, mask, scale=scale)
        others = inputs_for(core, mask, scale=others_scale, stream=1)
        mixed = Inputs(
            tuple(
                first_and_rest(mine.transpose(0, 1), other.transpose(0, 1)).transpose(0, 1)
                for mine, other in zip(inputs.leaves, others.leaves, strict=True)
            ),
            mask,
        )
        error = relative_error(attend(core, mixed)[:, :1], attend(core, inputs)[:, :1])
        yield Measurement(f"other head x{others_scale:g}", error, EXACT, cause)
    leak = cross_gradient(core, inputs_for(core, mask), 1)
    yield Measurement("gradient to the other head", leak, 0.0, cause)


def first_and_rest(first: Tensor, rest: Tensor) -> Tensor:
    """The first entry of one tensor along dim 0, and the others of another."""
    return torch.cat([first[:1], rest[1:]])


def cross_gradient(core: AttentionCore, inputs: Inputs, dim: int) -> float:
    """The largest gradient that the first entry along `dim` sends to the others."""
    leaf_inputs = inputs.map(lambda leaf: leaf.detach().requires_grad_())
    out = attend(core, leaf_inputs)
    gradients = torch.autograd.grad(
        out.narrow(dim, 0, 1).square().sum(), leaf_inputs.leaves, allow_unused=True
    )
    rest = (g.narrow(dim, 1, g.shape[dim] - 1) for g in gradients if g is not None)
    return largest(*rest)


def permutation(subject: Subject) -> Iterator[Measurement]:
    """Tokens in another order give the outputs in that order; of a random method, on average.

    The queries and keys are much alike, so that a method that looks at positions has little else
    to go by.
    """
    cause = "the position of a token matters: an order, a segment, a block or a learned position"
    core = subject.core(replace(DIMS, num_heads=1)).eval()
    order = noise_at((NUM_TOKENS,), 3).argsort()
    *rest, v = inputs_for(core, lengths_mask([NUM_TOKENS], NUM_TOKENS)).leaves
    alike = (leaf[:, :, :1] + 0.2 * leaf for leaf in rest)
    inputs = Inputs((*alike, v), torch.ones(1, NUM_TOKENS, dtype=torch.bool))
    moved = inputs.map(lambda leaf: leaf[:, :, order])
    if draws(core, inputs):
        score = mean_difference_score(core, moved, inputs, order)
        yield Measurement("mean over draws, in standard errors", score, 6.0, cause)
    else:
        error = relative_error(attend(core, moved), attend(core, inputs)[:, :, order])
        yield Measurement("permuted tokens", error, EXACT, cause)


def draws(core: AttentionCore, inputs: Inputs) -> bool:
    """Whether the core's output is random."""
    with InjectedNoise() as noise:
        core(*inputs.qkv, inputs.token_mask)
    return noise.num_draws > 0


def mean_difference_score(
    core: AttentionCore, moved: Inputs, inputs: Inputs, order: Tensor
) -> float:
    """Largest difference of mean outputs, in standard errors."""
    one = mean_outputs(core, moved, range(32))
    other = mean_outputs(core, inputs, range(32, 64))[:, :, order]
    variance = (one.var(0) + other.var(0)) / len(one)
    return float(((one.mean(0) - other.mean(0)).abs() / (variance + EXACT**2).sqrt()).max())


def mean_outputs(core: AttentionCore, inputs: Inputs, seeds: Iterable[int]) -> Tensor:
    """For each seed, the mean output of 32 copies of a sequence, which draw their own noise."""
    mask = inputs.token_mask.expand(32, -1)
    copies = inputs.map(lambda leaf: leaf.expand(32, -1, -1, -1), mask)
    return torch.stack([attend(core, copies, noise_seed=seed).mean(0) for seed in seeds])


def constant_values(subject: Subject) -> Iterator[Measurement]:
    """Values that are all c give c: the weights of a row sum to 1."""
    core = subject.core().eval()
    mask = lengths_mask([NUM_TOKENS, 20, 1], NUM_TOKENS)
    inputs = inputs_for(core, mask)
    q, k, v = inputs.qkv
    constant = v[:, :, :1].expand_as(v)
    with InjectedNoise():
        out = core(q, k, constant, mask)
    error = relative_error(out * inputs.at_tokens, constant * inputs.at_tokens)
    cause = "the weights of a row do not sum to 1: a wrong denominator, or an epsilon in it"
    yield Measurement("constant values", error, 1e-6, cause)


def key_shift(subject: Subject) -> Iterator[Measurement]:
    """One vector added to all keys changes nothing."""
    core = subject.core().eval()
    mask = lengths_mask([NUM_TOKENS, 20], NUM_TOKENS)
    q, k, v = inputs_for(core, mask).qkv
    shift = normal(noise_at((1, k.shape[1], 1, k.shape[3]), 4))
    shared = core.projections == "qk,v"
    shifted_q, shifted_k = (q + shift, q + shift) if shared else (q, k + shift)
    with InjectedNoise():
        expected = core(q, k, v, mask)
    with InjectedNoise():
        actual = core(shifted_q, shifted_k, v, mask)
    error = relative_error(actual, expected)
    cause = "scores are compared across rows, or keys enter other than through a softmax"
    yield Measurement("shifted keys", error, 1e-6, cause)
