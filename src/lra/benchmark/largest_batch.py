"""The largest batch whose training step fits a memory budget, each trial in a process of its own.

A trial may die: the process has no more memory than the budget (on a GPU a share of it, on a CPU
an address space). Memory grows in proportion to the batch, so that small trials foretell where to
look; what is reported has been tried, and so has the next size, unless the trial would take more
time or memory than there is: then it is foretold, and says so.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from lra.benchmark.steps import build_trainer, compose_run, open_task
from lra.measure import cpu_training_peak_bytes
from lra.trainer import Trainer

NUM_PROBES = 3
"""Sizes from which the others are foretold."""
SLACK_BYTES = 256 * 2**20
"""Of the address space: what libraries and the profiler take beside torch's tensors."""
MAX_TRIAL_SECONDS = 3600
OUT_OF_MEMORY = "can't allocate memory"
"""What torch's allocator says on a CPU."""


@dataclass(frozen=True)
class Trial:
    """A training step at one batch size."""

    batch_size: int
    how: Literal["measured", "died", "foretold"]
    peak_bytes: int | None = None
    """With weights and optimizer state; None where the process ran out of memory."""
    seconds: float | None = None
    """Of the step, slowed by the measurement."""


@dataclass(frozen=True)
class LargestBatch:
    """What was found, with the trials that led there."""

    batch_size: int | None
    """None: not even the smallest batch fits."""
    is_confirmed: bool
    """Whether it and the next size have been tried."""
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Limits:
    """What a step may take, and a trial."""

    budget_bytes: float
    trial_bytes: float
    """What the machine has."""
    trial_seconds: float


class Search:
    """Looks among batch sizes for the largest that fits, from where small trials point."""

    def __init__(
        self, sizes: Sequence[int], attempt: Callable[[Sequence[int]], list[Trial]], limits: Limits
    ) -> None:
        self.sizes = sizes
        self.attempt = attempt
        self.limits = limits
        self.trials: dict[int, Trial] = {}

    def find(self) -> LargestBatch:
        """Try what is needed to be sure, as far as the limits allow."""
        probes = self.sizes[:NUM_PROBES]
        self.trials = dict(zip(probes, self.attempt(probes), strict=True))
        budget = self.limits.budget_bytes
        place = sum(self.foretell_bytes(size) <= budget for size in self.sizes) - 1
        while place >= 0 and not self.fits(self.sizes[place]):
            place -= 1
        while place + 1 < len(self.sizes) and self.fits(self.sizes[place + 1]):
            place += 1
        around = self.sizes[max(place, 0) : place + 2]
        return LargestBatch(
            self.sizes[place] if place >= 0 else None,
            all(self.trials[size].how != "foretold" for size in around),
            tuple(self.trials[size] for size in sorted(self.trials)),
        )

    def fits(self, size: int) -> bool:
        """Whether a step keeps within the budget: tried, or foretold where that costs too much."""
        if size not in self.trials:
            foretold, limits = self.foretell_bytes(size), self.limits
            is_cheap = self.foretell_seconds(size) <= limits.trial_seconds
            if is_cheap and min(foretold, limits.budget_bytes) <= limits.trial_bytes:
                [self.trials[size]] = self.attempt([size])
            else:
                self.trials[size] = Trial(size, "foretold", int(foretold))
        peak = self.trials[size].peak_bytes
        return peak is not None and peak <= self.limits.budget_bytes

    def foretell_bytes(self, size: int) -> float:
        """By the line through the two greatest trials; infinite without any that lived."""
        lived = self._lived()
        if len(lived) < 2:
            return (
                float("inf")
                if not lived
                else (lived[0].peak_bytes or 0) * size / lived[0].batch_size
            )
        low, high = lived[-2:]
        more, less = high.peak_bytes or 0, low.peak_bytes or 0
        slope = (more - less) / (high.batch_size - low.batch_size)
        return more + slope * (size - high.batch_size)

    def foretell_seconds(self, size: int) -> float:
        """In proportion to the greatest trial."""
        lived = self._lived()
        return (lived[-1].seconds or 0.0) * size / lived[-1].batch_size if lived else 0.0

    def _lived(self) -> list[Trial]:
        return [t for _, t in sorted(self.trials.items()) if t.how == "measured"]


def batch_sizes(batch_size: int) -> list[int]:
    """Of micro-batches, a power of two of which are the batch; the whole batch comes last."""
    quotients = [1 << power for power in range(batch_size.bit_length())]
    return sorted(batch_size // q for q in quotients if batch_size % q == 0)


@dataclass(frozen=True)
class Attempts:
    """Trials of one variant on one task."""

    task: str
    attention: str
    overrides: tuple[str, ...]
    budget_bytes: float
    directory: Path
    """Where random data are kept, if the task's own are not prepared."""

    def __call__(self, sizes: Sequence[int]) -> list[Trial]:
        """Try sizes in turn in a process of its own; those after a death have died as well."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lra.benchmark.largest_batch"])
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(sender, self, sizes))
        process.start()
        sender.close()
        answers: list[Any] = []
        try:
            while len(answers) < len(sizes) and receiver.poll(MAX_TRIAL_SECONDS):
                answers.append(receiver.recv())
        except EOFError:  # killed, or out of memory
            pass
        process.kill()
        process.join()
        if answers and isinstance(answers[-1], str):
            raise RuntimeError(f"task={self.task} attention={self.attention}: {answers[-1]}")
        return [*answers, *(Trial(size, "died") for size in sizes[len(answers) :])]

    def measure(self, batch_size: int) -> Trial:
        """One size, in this process."""
        sizes = (f"trainer.{key}={batch_size}" for key in ("batch_size", "micro_batch_size"))
        config = compose_run(self.task, self.attention, (*self.overrides, *sizes))
        trainer = build_trainer(config, open_task(config, self.directory), self.directory)
        start = time.perf_counter()
        peak = training_peak_bytes(trainer, self.budget_bytes)
        return Trial(batch_size, "measured", peak, time.perf_counter() - start)


def _answer(sender: Connection, attempts: Attempts, sizes: Sequence[int]) -> None:
    """Send a trial a size; end where memory ran out, or with what else went wrong."""
    try:
        for size in sizes:
            sender.send(attempts.measure(size))
    except Exception as error:
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_memory and OUT_OF_MEMORY not in str(error):
            sender.send(f"{type(error).__name__}: {error}")


def training_peak_bytes(trainer: Trainer, budget_bytes: float) -> int:
    """Peak of one step of the trainer, under a limit that the budget sets."""
    first = trainer.reader.batch(0).split(1)[0]
    if trainer.device.type == "cuda":
        total = torch.cuda.get_device_properties(trainer.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(budget_bytes / total, 1.0))
        trainer.train_step()
        torch.cuda.reset_peak_memory_stats(trainer.device)
        trainer.train_step()
        torch.cuda.synchronize(trainer.device)
        return torch.cuda.max_memory_allocated(trainer.device)
    trainer.accumulate_gradient(first)  # one example: the optimizer's state comes to be
    trainer.update_weights()
    limit = address_space_bytes() + int(budget_bytes) + SLACK_BYTES
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, unlimited[1]))
    peak = cpu_training_peak_bytes(trainer.train_step, trainer.model, trainer.optimizer)
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    return peak


def address_space_bytes() -> int:
    """Of this process; Linux alone says."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def available_bytes() -> float:
    """Memory that this machine can give; infinite where it does not say."""
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    found: list[Any] = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else float("inf")
