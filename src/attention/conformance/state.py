"""State and randomness: parameters, buffers, seeds, modes, checkpointing."""

import pickle
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention.base import AttentionCore
from attention.conformance.noise import WithoutDropout
from attention.conformance.subject import (
    EXACT,
    NUM_TOKENS,
    Inputs,
    Measurement,
    Subject,
    attend,
    attend_with_gradients,
    inputs_for,
    lengths_mask,
    relative_error,
)


def parameters(subject: Subject) -> Iterator[Measurement]:
    """Everything learned is trained, everything drawn is saved, nothing is a plain tensor."""
    core, other = subject.core(seed=0), subject.core(seed=1)
    plain = plain_tensors(core)
    cause = "a tensor attribute moves and saves with the module only as parameter or buffer"
    yield Measurement(f"plain tensors {plain}", float(len(plain)), 0.0, cause)
    inputs = inputs_for(core, lengths_mask([core.dims.max_seq_len] * 2, core.dims.max_seq_len))
    leaves = inputs.map(lambda leaf: leaf.detach().requires_grad_())
    attend(core, leaves).square().sum().backward()
    untrained = [name for name, p in core.named_parameters() if p.grad is None or not p.grad.any()]
    cause = "a frozen, detached or unused parameter; what is not trained is a buffer"
    yield Measurement(f"untrained parameters {untrained}", float(len(untrained)), 0.0, cause)
    other.load_state_dict(core.state_dict())
    error = relative_error(attend(other, inputs), attend(core, inputs))
    cause = "a buffer that was drawn is not in the state dict"
    yield Measurement("output after load_state_dict", error, EXACT, cause)


def plain_tensors(core: AttentionCore) -> list[str]:
    """Names of tensor attributes that are neither parameters nor buffers."""
    return [
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in core.named_modules()
        for name, value in vars(module).items()
        if name not in ("_parameters", "_buffers", "_modules") and holds_tensor(value)
    ]


def holds_tensor(value: object) -> bool:
    """Whether a value is a tensor or a container with one."""
    if isinstance(value, dict):
        return any(map(holds_tensor, value.values()))
    if isinstance(value, list | tuple | set):
        return any(map(holds_tensor, value))
    return isinstance(value, Tensor)


def determinism(subject: Subject) -> Iterator[Measurement]:
    """The seed decides; neither the content nor an earlier call does."""
    core = subject.core()
    inputs = inputs_for(core, lengths_mask([NUM_TOKENS, 20], NUM_TOKENS))
    different = inputs_for(core, lengths_mask([0, 7], NUM_TOKENS), scale=30.0, stream=1)
    longer = inputs_for(core, lengths_mask([60, 61], 61), stream=2)
    for mode in (True, False):
        core.train(mode)
        foreign_states = foreign_generators()
        first, state = seeded(core, inputs)
        _, different_state = seeded(core, different)
        seeded(core, longer)
        again, _ = seeded(core, inputs)
        where = "training" if mode else "evaluation"
        error = relative_error(again, first)
        cause = "state is kept between calls, or noise is not torch's default generator"
        yield Measurement(f"the same seed again, {where}", error, 0.0, cause)
        moved = float(not torch.equal(state, different_state))
        cause = "the number of draws depends on the content or the mask"
        yield Measurement(f"generator state depends on content, {where}", moved, 0.0, cause)
        touched = float(foreign_generators() != foreign_states)
        cause = "draws from, or reseeds, Python's or NumPy's generator"
        yield Measurement(f"foreign generators touched, {where}", touched, 0.0, cause)


def foreign_generators() -> tuple[object, bytes]:
    """The states of Python's and of NumPy's global generator."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 (what must stay untouched)
    return random.getstate(), pickle.dumps(numpy_state)


def seeded(core: nn.Module, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The output under seed 0, and the state of the generator after it."""
    torch.manual_seed(0)
    out = core(*inputs.qkv, inputs.token_mask)
    return out, torch.get_rng_state()


def modes(subject: Subject) -> Iterator[Measurement]:
    """But for dropout, evaluation computes what training does."""
    core = subject.core()
    inputs = inputs_for(core, lengths_mask([NUM_TOKENS, 20], NUM_TOKENS))
    with WithoutDropout():
        out, gradients = attend_with_gradients(core.train(), inputs)
        eval_out, eval_gradients = attend_with_gradients(core.eval(), inputs)
    cause = "`self.training` switches more than `F.dropout`"
    yield Measurement("output", relative_error(eval_out, out), EXACT, cause)
    error = max(map(relative_error, eval_gradients.leaves, gradients.leaves))
    yield Measurement("gradient", error, EXACT, cause)


def checkpointing(subject: Subject) -> Iterator[Measurement]:
    """Recomputation in the backward pass sees the same noise, so the gradient is the same."""
    core = subject.core()
    inputs = inputs_for(core, lengths_mask([NUM_TOKENS, 20], NUM_TOKENS))
    plain, recomputed = (seeded_gradients(core, inputs, again) for again in (False, True))
    cause = "noise from a generator that `torch.utils.checkpoint` does not restore"
    error = max(map(relative_error, recomputed, plain))
    yield Measurement("gradient", error, EXACT, cause)


def seeded_gradients(core: AttentionCore, inputs: Inputs, recompute: bool) -> tuple[Tensor, ...]:
    """Gradients of inputs and parameters under seed 0."""
    torch.manual_seed(0)
    leaf_inputs = inputs.map(lambda leaf: leaf.detach().requires_grad_())
    arguments = (*leaf_inputs.qkv, inputs.token_mask)
    out = checkpoint(core, *arguments, use_reentrant=False) if recompute else core(*arguments)
    return torch.autograd.grad(
        out.square().sum(),
        (*leaf_inputs.leaves, *core.parameters()),
        allow_unused=True,
        materialize_grads=True,
    )
