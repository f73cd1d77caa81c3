"""Padding: whatever stands there, however much of it, wherever it is."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool
from torch import Tensor

from attention.base import AttentionCore
from attention.conformance.noise import noise_at
from attention.conformance.subject import (
    BLOCK_SIZE,
    EXACT,
    NUM_FEATURES,
    NUM_TOKENS,
    Inputs,
    Measurement,
    Subject,
    attend_with_gradients,
    inputs_for,
    largest,
    lengths_mask,
    num_nonfinite,
    relative_error,
)

GARBAGE = 1e3


def padding_length(subject: Subject) -> Iterator[Measurement]:
    """Sequences of several lengths alone, against the same with padding up to twice the length."""
    core = subject.core()
    for count in (1, 2, NUM_FEATURES - 1, NUM_FEATURES, NUM_FEATURES + 1, NUM_TOKENS):
        padded = inputs_for(core, lengths_mask([count], 2 * NUM_TOKENS))
        out, gradients = attend_with_gradients(core, padded.first_tokens(count))
        for total in sorted({count + 1, NUM_TOKENS, 2 * NUM_TOKENS} - {count}):
            actual, actual_gradients = attend_with_gradients(core, padded.first_tokens(total))
            error = relative_error(actual[:, :, :count], out)
            cause = "a sum, a mean, a segment or a number of samples counts padding"
            yield Measurement(f"{count} tokens padded to {total}", error, EXACT, cause)
            error = gradient_error(actual_gradients.first_tokens(count), gradients)
            yield Measurement(f"gradient, {count} tokens padded to {total}", error, EXACT, cause)


def padding_content(subject: Subject) -> Iterator[Measurement]:
    """Garbage behind the tokens."""
    yield from garbage(subject, lengths_mask([NUM_TOKENS, 30, 9, 1], NUM_TOKENS))


def holes(subject: Subject) -> Iterator[Measurement]:
    """Garbage before and between the tokens, and tokens few and scattered."""
    positions = torch.arange(NUM_TOKENS)
    share = noise_at((NUM_TOKENS,), 5)
    last_only, left_padded = positions == NUM_TOKENS - 1, positions >= NUM_TOKENS - 20
    mask = torch.stack([share < 0.7, share < 0.2, left_padded, last_only])
    yield from garbage(subject, mask)


def garbage(subject: Subject, mask: Bool[Tensor, "b n"]) -> Iterator[Measurement]:
    """The same tokens over clean and over garbage padding, in float64 and in float32."""
    for dtype, limit in ((torch.float64, EXACT), (torch.float32, 1e-4)):
        core = subject.core(dtype=dtype)
        inputs = inputs_for(core, mask, dtype=dtype)
        out, gradients = attend_with_gradients(core, inputs.with_padding(0.0))
        dirty, dirty_gradients = attend_with_gradients(core, inputs.with_padding(GARBAGE))
        cause = "padding takes part as key, value or sample: is the mask applied, not inverted?"
        error = relative_error(dirty * inputs.at_tokens, out * inputs.at_tokens)
        yield Measurement(f"output at tokens, {dtype}", error, limit, cause)
        error = gradient_error(dirty_gradients.with_padding(0.0), gradients.with_padding(0.0))
        yield Measurement(f"gradient at tokens, {dtype}", error, limit, cause)
        leaked = largest(*(leaf * ~inputs.at_tokens for leaf in dirty_gradients.leaves))
        yield Measurement(f"gradient at padding, {dtype}", leaked, 0.0, cause)


def empty_sequence(subject: Subject) -> Iterator[Measurement]:
    """A sequence without tokens among others, and a batch of nothing else."""
    for lengths in ([NUM_TOKENS, 0, 5], [0, 0]):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            core = subject.core(dtype=dtype)
            inputs = inputs_for(core, lengths_mask(lengths, NUM_TOKENS), dtype=dtype)
            out, gradients = attend_with_gradients(core, inputs)
            empty = torch.tensor(lengths) == 0
            where = f"lengths {lengths}, {dtype}"
            bad = num_nonfinite(out, *gradients.leaves)
            cause = "0/0 in a mean, or a softmax over no key: see `attendable_keys`"
            yield Measurement(f"non-finite entries, {where}", bad, 0.0, cause)
            rest = largest(out[empty], *(leaf[empty] for leaf in gradients.leaves))
            cause = "the output of an empty sequence is not zero: see `zero_padding`"
            yield Measurement(f"output and gradient, {where}", rest, 0.0, cause)


def short_sequences(subject: Subject) -> Iterator[Measurement]:
    """Every short length, of the sequence and of its tokens; whole blocks plus and minus one."""
    core = subject.core()
    around = [factor * BLOCK_SIZE + offset for factor in (2, 4, 8) for offset in (-1, 0, 1)]
    counts = sorted({*range(1, NUM_FEATURES + 2), *around, NUM_TOKENS, core.dims.max_seq_len})
    for count in counts:
        inputs = inputs_for(core, lengths_mask([count, (count + 1) // 2], count))
        yield from finite_and_zero(core, inputs, f"n = {count}")
    few = range(2 * NUM_FEATURES + 2)
    yield from finite_and_zero(
        core, inputs_for(core, lengths_mask(few, NUM_TOKENS)), f"{few} tokens of {NUM_TOKENS}"
    )


def finite_and_zero(core: AttentionCore, inputs: Inputs, where: str) -> Iterator[Measurement]:
    """Shape, finite output and gradient, and zeros at padding."""
    out, gradients = attend_with_gradients(core, inputs)
    wrong_shape = float(out.shape != inputs.qkv[2].shape)
    yield Measurement(f"shape {tuple(out.shape)}, {where}", wrong_shape, 0.0, "pad and crop inside")
    cause = "too few tokens for a block, a sample or a landmark"
    bad = num_nonfinite(out, *gradients.leaves)
    yield Measurement(f"non-finite entries, {where}", bad, 0.0, cause)
    rest = largest(out * ~inputs.at_tokens)
    yield Measurement(f"output at padding, {where}", rest, 0.0, "see `zero_padding`")


def gradient_error(actual: Inputs, expected: Inputs) -> float:
    """The largest relative error of the gradients."""
    return max(map(relative_error, actual.leaves, expected.leaves))
