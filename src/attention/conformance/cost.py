"""Cost of a training step through a core: time, memory kept for backward, multiply-adds."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import attention.biased_attention  # noqa: F401 (registers its operator)
from attention.base import AttentionCore, AttentionDims
from attention.conformance.subject import inputs_for, lengths_mask

LENGTHS = (512, 1024, 2048, 4096)


def fused_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    """Of scaled dot-product attention, from the shapes of its arguments."""
    return sdpa_flop_count(q, k, v)


def biased_flops(
    q: torch.Size, k: torch.Size, _v: Any, _bias: Any, out: torch.Size | None, *_: Any, **__: Any
) -> int:
    """Of `biased_attention`, which leaves out the second product without an output to write."""
    return (2 if out is None else 4) * q.numel() * k[2]


# torch counts the fused kernels of GPUs, and these as nothing
FUSED_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: fused_flops,
    torch.ops.lra.biased_attention: biased_flops,
}


@dataclass(frozen=True)
class Cost:
    """Cost of one sequence of n tokens, h = 2, p = 32."""

    num_tokens: int
    seconds: float
    """Forward and backward, the fastest of some repetitions."""
    saved_bytes: int
    """Unique storage that autograd keeps for the backward pass, inputs included."""
    multiply_adds: float
    """Of the forward pass, per head; matrix products alone."""


def costs(
    build: Callable[[AttentionDims], AttentionCore], lengths: Sequence[int] = LENGTHS
) -> list[Cost]:
    """Costs in float32, in training mode, at several lengths without padding."""
    dims = AttentionDims(num_heads=2, head_dim=32, max_seq_len=max(lengths))
    core = build(dims)
    return [cost(core, num_tokens) for num_tokens in lengths]


def cost(core: AttentionCore, num_tokens: int) -> Cost:
    """Cost of one sequence."""
    mask = lengths_mask([num_tokens], num_tokens)
    inputs = inputs_for(core, mask, dtype=torch.float32)
    leaves = inputs.map(lambda leaf: leaf.contiguous().requires_grad_())
    arguments = (*leaves.qkv, mask)
    with torch.random.fork_rng(devices=[]):
        saved = saved_bytes(core, arguments)
        seconds = min(step_seconds(core, arguments) for _ in range(2))
        counted = multiply_adds(core, arguments) / core.dims.num_heads
    return Cost(num_tokens, seconds, saved, counted)


def multiply_adds(core: nn.Module, arguments: tuple[Tensor, ...]) -> float:
    """Those of the matrix products of a forward pass, all heads and sequences together."""
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as flops, torch.no_grad():
        core(*arguments)
    return flops.get_total_flops() / 2


def step_seconds(core: AttentionCore, arguments: tuple[Tensor, ...]) -> float:
    """Wall time of a forward and a backward pass on the CPU."""
    start = time.perf_counter()
    core(*arguments).sum().backward()
    return time.perf_counter() - start


def saved_bytes(core: nn.Module, arguments: tuple[Tensor, ...]) -> int:
    """Unique storage that autograd keeps, parameters excluded."""
    owned = {p.untyped_storage().data_ptr() for p in (*core.parameters(), *core.buffers())}
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(partial(keep, kept), lambda tensor: tensor):
        out = core(*arguments)
    out.sum().backward()
    return sum(t.untyped_storage().nbytes() for ptr, t in kept.items() if ptr not in owned)


def keep(kept: dict[int, Tensor], tensor: Tensor) -> Tensor:
    """The tensor, entered under the address of its storage."""
    kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
    return tensor


def exponent(lengths: Sequence[int], figures: Sequence[float | int]) -> float:
    """The slope of log figure over log length, by least squares; NaN without figures."""
    if min(figures) <= 0:
        return math.nan
    x = torch.tensor(lengths, dtype=torch.float64).log2()
    y = torch.tensor(figures, dtype=torch.float64).log2()
    x = x - x.mean()
    return float(x @ y / (x @ x))
