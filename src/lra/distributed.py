"""One run in several processes, each with its share of every batch.

A process trains on a contiguous share of the global batch; gradients are sums over examples divided
by the global batch, so that shares of unequal size count as they should. They are added up once a
step, in one message: the models of the benchmark have about a million parameters.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from lra.ranks import Rank, own_rank

T = TypeVar("T")


class OneProcess:
    """A run that is alone; `ManyProcesses` does the same for several."""

    def __init__(self, rank: Rank | None = None) -> None:
        self.rank = rank or Rank()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank.is_first

    def share(self, count: int) -> range:
        """Which of `count` examples are this process's."""
        rank, size = self.rank.rank, self.rank.world_size
        return range(count * rank // size, count * (rank + 1) // size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same in each; in place."""
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes."""

    def equalize(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process."""
        return flags

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the first one; nothing elsewhere."""
        return [value]

    def from_first(self, produce: Callable[[], T]) -> T:
        """What `produce` returns in the first process; it is not called elsewhere."""
        return produce()


class ManyProcesses(OneProcess):
    """The members of a process group; each calls the same methods in the same order."""

    def __init__(self, rank: Rank) -> None:
        super().__init__(rank)
        # what stays on the host goes by gloo, so that no GPU is waited for
        self._host = dist.new_group(backend="gloo")

    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        parameters = list(parameters)
        is_used = self.any(*(p.grad is not None for p in parameters))
        used = [p for p, flag in zip(parameters, is_used, strict=True) if flag]
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        total = self.sum(torch.cat([piece.flatten() for piece in pieces]))
        for parameter, piece in zip(used, total.split([p.numel() for p in used]), strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(piece.view_as(parameter))  # the same tensor: see `lra.cuda_graph`

    def equalize(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        votes = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._host)
        return tuple(bool(vote) for vote in votes)

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.rank.world_size
        dist.gather_object(value, values if self.is_first else None, group=self._host)
        return values if self.is_first else []

    def from_first(self, produce: Callable[[], T]) -> T:
        values: list[Any] = [produce() if self.is_first else None]
        dist.broadcast_object_list(values, src=0, group=self._host)
        return values[0]


@contextmanager
def joined_processes(device: torch.device) -> Iterator[OneProcess]:
    """The processes of this run: those that torchrun, or SLURM through submitit, started with it.

    Raises `ValueError` where SLURM started several and submitit, which knows how they meet, is not
    installed.
    """
    rank = own_rank()
    if rank.world_size == 1:
        yield OneProcess()
        return
    if "WORLD_SIZE" not in os.environ:
        meet_by_submitit()
    store, _, _ = next(rendezvous("env://"))
    # the store outlives processes that torchrun starts again; theirs is a chapter of its own
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"attempt_{attempt}", store),  # type: ignore[attr-defined]
        rank=rank.rank,
        world_size=rank.world_size,
    )
    try:
        yield ManyProcesses(rank)
    finally:
        dist.destroy_process_group()


def meet_by_submitit() -> None:
    """Set what `init_process_group` reads, from the tasks of a SLURM job."""
    try:
        from submitit.helpers import TorchDistributedEnvironment
    except ImportError as error:
        raise ValueError(
            "several tasks of one SLURM job need submitit to meet: pip install -e '.[slurm]'; or "
            "start them with torchrun"
        ) from error
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
