"""What the next measurement will take, so that one which would take too much is not begun."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_EXPONENT = 2.0
"""Of the growth in n: that of exact attention."""
MIN_EXPONENT = 1.0


@dataclass(frozen=True)
class Budget:
    """What a cell may take."""

    seconds: float
    """In all: warm-up, the fewest rounds, memory."""
    num_bytes: float
    """At its peak, beside what lives all the time."""


@dataclass(frozen=True)
class Footprint:
    """What a cell has taken."""

    num_tokens: int
    seconds: float
    """Of one round."""
    peak_bytes: float


def forecast(lengths: Sequence[int], figures: Sequence[float], num_tokens: int) -> float:
    """A figure at a greater length, by the power law through the last two points.

    Its exponent is held between 1 and 2, and is 2 where there is one point alone.
    """
    exponent = MAX_EXPONENT
    if len(lengths) > 1 and min(figures[-2:]) > 0:
        growth = math.log(figures[-1] / figures[-2]) / math.log(lengths[-1] / lengths[-2])
        exponent = min(max(growth, MIN_EXPONENT), MAX_EXPONENT)
    return figures[-1] * float(num_tokens / lengths[-1]) ** exponent


def objection(
    footprints: Sequence[Footprint], num_tokens: int, budget: Budget, num_rounds: int
) -> str | None:
    """Why a cell of `num_rounds` rounds is not to be begun, if it is not.

    `footprints` are those of smaller lengths, in order; without any there is no objection.
    """
    if not footprints:
        return None
    lengths = [footprint.num_tokens for footprint in footprints]
    peak = forecast(lengths, [footprint.peak_bytes for footprint in footprints], num_tokens)
    if peak > budget.num_bytes:
        return (
            f"would need about {peak / 2**30:.2g} GiB, "
            f"over memory_budget_gib={budget.num_bytes / 2**30:.3g}"
        )
    seconds = num_rounds * forecast(lengths, [f.seconds for f in footprints], num_tokens)
    if seconds > budget.seconds:
        return f"would take about {seconds:.0f} s, over time_budget_seconds={budget.seconds:g}"
    return None
