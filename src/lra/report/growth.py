"""How figures grow with the length, and where one variant overtakes another."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from attention.conformance.cost import exponent

FIRST_FITTED_TOKENS = 1024
"""Below it fixed costs hide the growth."""


def fitted_exponent(figures: Mapping[int, float]) -> float | None:
    """The exponent of n from 1,024 tokens up, by least squares in logarithms; None if unknown."""
    fitted = {n: figure for n, figure in figures.items() if n >= FIRST_FITTED_TOKENS and figure > 0}
    if len(fitted) < 2:
        return None
    return exponent(list(fitted), list(fitted.values()))


@dataclass(frozen=True)
class Crossover:
    """From which length on a ratio stays below 1, among the lengths measured."""

    num_tokens: float | None
    """None: not even at the greatest length."""
    is_first: bool
    """Whether the ratio is below 1 at every length measured: the true crossover may be lower."""
    greatest: int
    """The greatest length at which both were measured."""

    def __str__(self) -> str:
        if self.num_tokens is None:
            return f"never up to {self.greatest:,}"
        if self.is_first:
            return f"at {self.num_tokens:,.0f} already"
        return f"{self.num_tokens:,.0f}"


def crossover(ratios: Mapping[int, float]) -> Crossover | None:
    """Where a ratio falls below 1 for good, between lengths by the power law through both.

    None if there is no ratio.
    """
    if not ratios:
        return None
    lengths = sorted(ratios)
    above = [n for n in lengths if ratios[n] >= 1]
    if not above:
        return Crossover(lengths[0], True, lengths[-1])
    last = above[-1]
    if last == lengths[-1]:
        return Crossover(None, False, last)
    after = lengths[lengths.index(last) + 1]
    return Crossover(_root(last, ratios[last], after, ratios[after]), False, lengths[-1])


def _root(low: int, above: float, high: int, below: float) -> float:
    """Where the line through two points in logarithms is 0."""
    share = math.log(above) / (math.log(above) - math.log(below)) if above > 1 else 0.0
    return float(low * (high / low) ** share)
