"""Time and memory of training steps."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StepTimer:
    """Seconds of each training step, on the device's own clock.

    On a GPU, events in its stream mark the steps, so that timing never makes the host wait.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[torch.cuda.Event | float] = []

    def mark(self) -> None:
        """Mark the boundary between two steps."""
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def collect(self) -> list[float]:
        """Seconds between the marks so far, and forget them; waits for the device."""
        synchronize(self._device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        seconds = [_seconds_between(start, end) for start, end in pairs]
        self._marks = []
        return seconds


def _seconds_between(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
    return start.elapsed_time(end) / 1000


def cpu_training_peak_bytes(
    step: Callable[[], None], model: nn.Module, optimizer: Optimizer
) -> int:
    """Peak bytes during one training step on the CPU, with weights and optimizer state."""
    optimizer.zero_grad(set_to_none=True)
    state = [x for values in optimizer.state.values() for x in values.values()]
    resident = num_bytes([*model.state_dict().values(), *filter(torch.is_tensor, state)])
    return resident + cpu_peak_bytes(step)


def cpu_peak_bytes(run: Callable[[], object]) -> int:
    """High-water mark of torch's CPU allocator during `run()`, above its start.

    The profiler reports each allocation, so that the figure is exact and does not depend on what
    the C library keeps; it slows `run` down.
    """
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silenced_stderr():  # the profiler's library announces start and stop there
        profiler.start()
    try:
        run()
    finally:
        with _silenced_stderr():
            profiler.stop()
    events: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    cpu = torch.autograd.DeviceType.CPU  # type: ignore[attr-defined]
    changes = [e for e in events if e.name() == "[memory]" and e.device_type() == cpu]
    current = peak = 0
    for change in sorted(changes, key=lambda e: e.start_ns()):
        current += change.nbytes()
        peak = max(peak, current)
    return peak


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    original, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(null)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors occupy, shared storage counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
