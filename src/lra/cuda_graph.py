"""Work as a CUDA graph: all its kernels for the price of one launch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lra.checkpoint import random_state, restore_random_state
from lra.tasks.base import Batch

NUM_WARMUP = 3
"""Runs before the capture: libraries choose their kernels, and compilers compile."""


T = TypeVar("T")


class HostWaitsError(ValueError):
    """Work that no CUDA graph can hold."""


@dataclass(frozen=True)
class Captured:
    """A graph, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    totals: Float[Tensor, "3"]


class GraphedGradient:
    """`add_gradient`, captured once for each shape of a batch and replayed from then on.

    It adds to the `grad` of the parameters, which must stay the same tensors: set them to zero, not
    to None. The random numbers are those of the plain function.
    Raises `ValueError` for parameters elsewhere than on a GPU.
    """

    def __init__(
        self,
        add_gradient: Callable[[Batch], Float[Tensor, "3"]],
        parameters: Sequence[nn.Parameter],
    ) -> None:
        self._add_gradient = add_gradient
        self._parameters = [p for p in parameters if p.requires_grad]
        if any(not p.is_cuda for p in self._parameters):
            raise ValueError("trainer.cuda_graph=true needs a GPU; use trainer.cuda_graph=false")
        self._captured: dict[torch.Size, Captured] = {}

    def __call__(self, batch: Batch) -> Float[Tensor, "3"]:
        """What `add_gradient` returns, until the next call.

        Raises `HostWaitsError` for a model that makes the host wait for the device.
        """
        shape = batch.tokens.shape
        if shape not in self._captured:
            self._captured[shape] = self._capture(batch)
        captured = self._captured[shape]
        captured.batch.copy_(batch)
        captured.graph.replay()
        return captured.totals

    def _capture(self, batch: Batch) -> Captured:
        gradients = []
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        before = [gradient.clone() for gradient in gradients]
        random = random_state()
        batch = batch.to(self._parameters[0].device)
        try:
            graph, totals = capture(lambda: self._add_gradient(batch))
        except HostWaitsError as error:
            raise HostWaitsError(f"{error}; use trainer.cuda_graph=false") from error
        torch._foreach_copy_(gradients, before)
        restore_random_state(random)
        return Captured(graph, batch, totals)


def capture(run: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
    """Run some times, then once more as a graph; returns it, and what each replay overwrites.

    Raises `HostWaitsError` where the host waits for the device. No more random numbers can then be
    drawn on it: end the process.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(NUM_WARMUP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = run()
    except RuntimeError as error:
        if "captur" not in str(error):
            raise
        raise HostWaitsError(
            "it makes the host wait for the device, which a CUDA graph cannot hold"
        ) from error
    return graph, result
