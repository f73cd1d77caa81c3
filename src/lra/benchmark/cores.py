"""A core on random inputs: what one benchmark cell runs and counts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.base import AttentionDims
from attention.conformance.cost import multiply_adds, saved_bytes
from lra.cuda_graph import capture
from lra.measure import cpu_peak_bytes
from lra.settings import DTYPES, Precision

CHUNK_ROWS = 256
NUM_ERROR_DRAWS = 4
INPUT_SEED = 0


@dataclass(frozen=True)
class Workload:
    """What every core of a session is given: normal q, k and v in the backbone's layout."""

    batch_size: int
    num_heads: int
    head_dim: int
    num_tokens: int
    padding: float
    """Share of all positions; the first sequence has none, the others in even steps more."""
    precision: Precision
    device: torch.device
    cuda_graph: bool = False
    """Whether what is timed is a CUDA graph, as `trainer.cuda_graph` makes of a step."""

    @property
    def dims(self) -> AttentionDims:
        """For building a core."""
        return AttentionDims(self.num_heads, self.head_dim, self.num_tokens)

    def token_mask(self) -> Bool[Tensor, "b n"]:
        """Sequences padded on the right."""
        steps = torch.linspace(0, 2, self.batch_size) if self.batch_size > 1 else torch.ones(1)
        lengths = ((1 - self.padding * steps) * self.num_tokens).round().clamp_min(1)
        return (torch.arange(self.num_tokens) < lengths[:, None]).to(self.device)

    def tensor(self, number: int) -> Float[Tensor, "b h n p"]:
        """A view of a b n h p tensor, as the backbone makes it."""
        generator = torch.Generator().manual_seed(INPUT_SEED + number)
        shape = (self.batch_size, self.num_tokens, self.num_heads, self.head_dim)
        values = torch.randn(shape, generator=generator).to(self.device, DTYPES[self.precision])
        return values.transpose(1, 2)


@dataclass(frozen=True)
class Candidate:
    """What stands in a row: how to build it, and which of q and k are the same tensor."""

    label: str
    build: Callable[[AttentionDims], nn.Module]
    shares_qk: bool = False


class CoreRun:
    """A candidate with its inputs, ready to run again and again."""

    def __init__(self, candidate: Candidate, workload: Workload) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(INPUT_SEED)
            self.core = candidate.build(workload.dims).to(workload.device)
        self.shares_qk = candidate.shares_qk
        self.workload = workload
        self.token_mask = workload.token_mask()
        k, v, q = (workload.tensor(number).requires_grad_() for number in range(3))
        self.inputs = (k, k, v) if candidate.shares_qk else (q, k, v)
        self.cotangent = workload.tensor(3)
        dtype = DTYPES[workload.precision]
        self.autocast = torch.autocast(workload.device.type, dtype, enabled=dtype != torch.float32)
        parameters = [p for p in self.core.parameters() if p.requires_grad]
        self.leaves = list(dict.fromkeys((*self.inputs, *parameters)))

    def infer(self) -> Tensor:
        """A forward pass in evaluation mode, without gradients."""
        self.core.eval()
        with torch.no_grad(), self.autocast:
            return self.core(*self.inputs, self.token_mask)

    def train(self) -> None:
        """A forward and a backward pass in training mode."""
        self.core.train()
        with self.autocast:
            out = self.core(*self.inputs, self.token_mask)
        torch.autograd.grad(out, self.leaves, self.cotangent.to(out.dtype), allow_unused=True)

    def timed(self) -> dict[str, Callable[[], object]]:
        """What the clock measures. Raises `HostWaitsError` for what no CUDA graph can hold."""
        runs: dict[str, Callable[[], object]] = {
            "forward_seconds": self.infer,
            "training_seconds": self.train,
        }
        if not self.workload.cuda_graph:
            return runs
        return {key: capture(run)[0].replay for key, run in runs.items()}

    def saved_bytes(self) -> int:
        """Unique storage that autograd keeps for the backward pass, inputs included."""
        self.core.train()
        with self.autocast:
            return saved_bytes(self.core, (*self.inputs, self.token_mask))

    def multiply_adds(self) -> float:
        """Of a forward pass, a head of one sequence; matrix products alone."""
        self.core.eval()
        with self.autocast:
            counted = multiply_adds(self.core, (*self.inputs, self.token_mask))
        return counted / (self.workload.batch_size * self.workload.num_heads)

    def error(self, exact: Float[Tensor, "b h n p"]) -> float:
        """‖out - exact‖ / ‖exact‖ at tokens, the mean of some draws of the core's noise."""
        is_token = self.token_mask[:, None, :, None]
        size = exact.masked_fill(~is_token, 0).norm()
        errors = []
        with torch.random.fork_rng([self.workload.device] if exact.is_cuda else []):
            for draw in range(NUM_ERROR_DRAWS):
                torch.manual_seed(draw)
                difference = (self.infer().double() - exact).masked_fill(~is_token, 0)
                errors.append(float(difference.norm() / size))
        return sum(errors) / len(errors)


def exact_attention(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    token_mask: Bool[Tensor, "b n"],
) -> Float[Tensor, "b h n p"]:
    """Softmax attention in float64, some rows at a time."""
    q, k, v = (tensor.detach().double() for tensor in (q, k, v))
    hidden = ~token_mask[:, None, None, :]
    rows = []
    for chunk in q.split(CHUNK_ROWS, dim=2):
        logits = chunk @ k.mT * q.shape[-1] ** -0.5  # b h c n
        rows.append(logits.masked_fill_(hidden, float("-inf")).softmax(-1) @ v)
    return torch.cat(rows, dim=2)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """High-water mark of the device's allocator during `run()`, above its start."""
    if device.type != "cuda":
        return cpu_peak_bytes(run)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
