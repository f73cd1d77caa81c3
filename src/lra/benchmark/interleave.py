"""Timing of alternatives in turns, so that each meets the same moods of the machine."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from lra.measure import StepTimer

Run = Callable[[], object]
Stopwatch = Callable[[Run], float]
Samples = dict[str, list[float]]
Label = TypeVar("Label", bound=str)


def stopwatch(device: torch.device) -> Stopwatch:
    """Measures the seconds of a run on the device's own clock; the host waits after the run."""
    timer = StepTimer(device)

    def seconds(run: Run) -> float:
        timer.mark()
        run()
        timer.mark()
        return timer.collect()[0]

    return seconds


def interleave(
    alternatives: Mapping[str, Mapping[str, Run]],
    *,
    num_rounds: int,
    num_warmup: int,
    clock: Stopwatch,
) -> dict[str, Samples]:
    """Seconds of every run of every alternative, a sample a round, the first rounds left out.

    In each round every alternative has its turn, with its runs in their order; every other round
    goes backwards through the alternatives, so that none always follows the same one.
    """
    samples: dict[str, Samples] = {
        label: {quantity: [] for quantity in runs} for label, runs in alternatives.items()
    }
    for number in range(num_warmup + num_rounds):
        turns = list(alternatives)
        for label in turns if number % 2 == 0 else reversed(turns):
            for quantity, run in alternatives[label].items():
                seconds = clock(run)
                if number >= num_warmup:
                    samples[label][quantity].append(seconds)
    return samples


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile; of a single sample, itself."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def num_rounds_within(seconds: float, slowest_round: float, *, fewest: int, most: int) -> int:
    """Rounds for which the slowest alternative has time."""
    return max(fewest, min(most, int(seconds / max(slowest_round, 1e-9))))
