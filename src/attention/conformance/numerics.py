"""Numbers: dtypes, scores of any size, and gradients that are those of the output."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor

from attention.base import AttentionCore
from attention.conformance.noise import ReplayedChoices, noise_at, normal
from attention.conformance.subject import (
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

LENGTHS = (NUM_TOKENS, 20)
STEP = 1e-4


def shapes(subject: Subject) -> Iterator[Measurement]:
    """Shape and dtype of `v`, zeros at padding, in every float dtype and under autocast."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        core = subject.core(dtype=dtype)
        inputs = inputs_for(core, lengths_mask(LENGTHS, NUM_TOKENS), dtype=dtype)
        out, gradients = attend_with_gradients(core, inputs)
        differs = float(out.shape != inputs.qkv[2].shape or out.dtype != dtype)
        cause = "the output has not the shape and dtype of v"
        yield Measurement(f"{tuple(out.shape)} {out.dtype} for {dtype}", differs, 0.0, cause)
        bad = num_nonfinite(out, *gradients.leaves)
        yield Measurement(f"non-finite entries, {dtype}", bad, 0.0, "overflow in a low precision")
        rest = largest(out * ~inputs.at_tokens)
        yield Measurement(f"output at padding, {dtype}", rest, 0.0, "see `zero_padding`")
    core = subject.core(dtype=torch.float32)
    inputs = inputs_for(core, lengths_mask(LENGTHS, NUM_TOKENS), dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(core, inputs)
    cause = "autocast runs an operator in another precision than the code expects"
    yield Measurement("non-finite entries, autocast", num_nonfinite(out), 0.0, cause)
    differs = float(out.dtype != torch.bfloat16)
    yield Measurement(f"{out.dtype} for bfloat16 under autocast", differs, 0.0, cause)


def large_scores(subject: Subject) -> Iterator[Measurement]:
    """Rounding errors, in units of what rounding q, k and v once does to the method in float64.

    Scores up to 1000. The noise is the same in both, and so are the indices the method chooses.
    """
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        core = subject.core(dtype=dtype)
        for max_score in (60.0, 100.0, 1000.0):
            inputs = scaled_to(core, max_score).to(dtype)
            for what, actual, expected, rounded in low_and_exact(core, inputs):
                where = f"{what}, scores to {max_score:g}, {dtype}"
                cause = "overflow of exp: subtract the maximum, or leave it to a softmax"
                yield Measurement(f"non-finite, {where}", num_nonfinite(actual), 0.0, cause)
                unit = torch.finfo(dtype).eps / 2 + torch.finfo(torch.float32).eps * max_score
                sensitivity = max(relative_error(other, expected) for other in rounded)
                error = relative_error(actual, expected) / (sensitivity + unit)
                cause = "exp is not stabilized, or a sum or a bias is kept in low precision"
                yield Measurement(f"rounding errors, {where}", error, 5.0, cause)


def low_and_exact(
    core: AttentionCore, inputs: Inputs
) -> Iterator[tuple[str, Tensor, Tensor, list[Tensor]]]:
    """Output and gradients: as computed, in float64, and in float64 from perturbed inputs."""
    exact_core, exact_inputs = deepcopy(core).double(), inputs.to(torch.float64)
    unit = torch.finfo(inputs.leaves[0].dtype).eps / 2
    choices = ReplayedChoices()
    with choices:
        exact = attend_with_gradients(exact_core, exact_inputs)
    with choices.replay():
        low = attend_with_gradients(core, inputs)
    others = []
    for stream in (41, 42):
        with choices.replay():
            others.append(attend_with_gradients(exact_core, perturbed(exact_inputs, unit, stream)))
    yield "output", low[0], exact[0], [other[0] for other in others]
    for index, name in enumerate(core.projections.split(",")):
        gradients = [result[1].leaves[index] for result in (low, exact, *others)]
        yield f"gradient of {name}", gradients[0], gradients[1], gradients[2:]


def perturbed(inputs: Inputs, unit: float, stream: int) -> Inputs:
    """Inputs with a relative error of the given standard deviation."""
    return inputs.map(lambda leaf: leaf * (1 + unit * normal(noise_at(leaf.shape, stream))))


def scaled_to(core: AttentionCore, max_score: float) -> Inputs:
    """Inputs whose largest score q'k / sqrt(p) is the given one."""
    mask = lengths_mask(LENGTHS, NUM_TOKENS)
    q, k, _ = inputs_for(core, mask).qkv
    largest_score = float((q @ k.mT).abs().max()) * q.shape[-1] ** -0.5
    return inputs_for(core, mask, scale=(max_score / largest_score) ** 0.5)


def gradcheck(subject: Subject) -> Iterator[Measurement]:
    """Derivatives along random directions against central differences, in float64.

    The noise is fixed, and so are the indices the method chooses: between two changes of choice
    the output is smooth.
    """
    core = subject.core()
    for seed in (0, 1):
        inputs = inputs_for(core, lengths_mask(LENGTHS, NUM_TOKENS), stream=seed)
        leaves = inputs.map(lambda leaf: leaf.detach().clone().requires_grad_())
        names = [*core.projections.split(","), *(name for name, _ in core.named_parameters())]
        tensors = [*leaves.leaves, *core.parameters()]
        choices = ReplayedChoices()
        with choices:
            loss = functional(core, leaves, seed)
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
        for name, tensor, gradient in zip(names, tensors, gradients, strict=True):
            direction = normal(noise_at(tensor.shape, 55))
            ends = []
            for step in (STEP, -STEP):
                with torch.no_grad(), moved(tensor, step * direction), choices.replay():
                    ends.append(functional(core, leaves, seed))
            slope = (ends[0] - ends[1]) / (2 * STEP)
            scale = max(float(gradient.norm()), 1e-3)
            error = abs(float((gradient * direction).sum() - slope)) / scale
            cause = "a detached path, a row whose gradient counts twice, or float32 inside"
            yield Measurement(f"derivative in {name}", error, 1e-5, cause)


def functional(core: AttentionCore, inputs: Inputs, noise_seed: int) -> Tensor:
    """A fixed random linear functional of the output."""
    out = attend(core, inputs, noise_seed=noise_seed)
    return (out * normal(noise_at(out.shape, 56))).sum()


@contextmanager
def moved(tensor: Tensor, step: Tensor) -> Iterator[None]:
    """The tensor, moved in place and back."""
    original = tensor.detach().clone()
    tensor.add_(step)
    yield
    tensor.copy_(original)
