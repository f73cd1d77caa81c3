"""What seeds and test examples say about an accuracy, and about a difference of two.

A run's accuracy varies with its seed and with the test examples it happens to meet. A difference of
two variants is judged against both: seeds and examples are crossed random factors, as readers and
cases are in Obuchowski & Rockette, Communications in Statistics 24 (1995). With three seeds,
resampling them (a bootstrap) finds two thirds of their variance and no heavy tails, so its
intervals are too short; here variances are estimated by moments and the t distribution has
Satterthwaite's degrees of freedom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

Correct = Bool[np.ndarray, "_ _"]
"""Right answers: a row a seed, a column a test example, the same ones in the same order for all."""
Kind = Literal["t over seeds", "Wilson over test examples"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval, and what it accounts for."""

    low: float
    high: float
    kind: Kind

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Of the mean over seeds, two or more; the test examples are taken as given."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} value has no spread; a t interval takes two or more")
    mean, error = np.mean(values), stats.sem(values)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * error
    return Interval(float(mean - half), float(mean + half), "t over seeds")


def wilson_interval(num_correct: int, count: int, level: float = 0.95) -> Interval:
    """Of one model's accuracy over test examples like these; nothing is said about other seeds."""
    found = stats.binomtest(num_correct, count).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high), "Wilson over test examples")


def accuracy_interval(accuracies: Sequence[float], count: int, level: float = 0.95) -> Interval:
    """Over seeds where there are two or more, else over the `count` test examples."""
    if len(accuracies) > 1:
        return t_interval(accuracies, level)
    return wilson_interval(round(accuracies[0] * count), count, level)


@dataclass(frozen=True)
class Difference:
    """An estimated difference of two accuracies (fractions)."""

    estimate: float
    variance: float
    degrees_of_freedom: float
    p_value: float
    """Two-sided, of no difference."""
    over: Literal["seeds and test examples", "test examples"]
    """What varies: with a single seed on either side the trained weights are taken as given."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The confidence interval of the difference."""
        half = stats.t.ppf((1 + level) / 2, self.degrees_of_freedom) * self.variance**0.5
        return float(self.estimate - half), float(self.estimate + half)


def difference(first: Correct, second: Correct) -> Difference:
    """The accuracy of `first` less that of `second`, paired by test example.

    Seeds are independent draws on both sides. With a seed each, p is that of McNemar's exact test.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{first.shape[1]} and {second.shape[1]} test examples: results are paired by example, "
            f"and these are not the same ones"
        )
    per_example = first.mean(0) - second.mean(0)
    has_seeds = min(len(first), len(second)) > 1
    over_examples = float(per_example.var(ddof=1)) / len(per_example)
    parts = [_Part(over_examples, len(per_example) - 1)]
    if has_seeds:
        shared = _noise(first) + _noise(second)  # in both the seeds' and the examples' variance
        parts = [_seed_part(first), _seed_part(second), parts[0].less(shared)]
    variance, freedom = _sum(parts)
    estimate = float(per_example.mean())
    p_value = _p_value(estimate, variance, freedom)
    if len(first) == len(second) == 1:
        wins, losses = int((per_example > 0).sum()), int((per_example < 0).sum())
        p_value = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return Difference(
        estimate=estimate,
        variance=variance,
        degrees_of_freedom=freedom,
        p_value=p_value,
        over="seeds and test examples" if has_seeds else "test examples",
    )


def mean_difference(differences: Sequence[Difference]) -> Difference:
    """Of the plain averages over tasks, whose runs and examples have nothing in common."""
    estimate = float(np.mean([part.estimate for part in differences]))
    weight = len(differences) ** -2
    variance, freedom = _sum(
        [_Part(weight * d.variance, d.degrees_of_freedom) for d in differences]
    )
    with_seeds = all(d.over == "seeds and test examples" for d in differences)
    return Difference(
        estimate=estimate,
        variance=variance,
        degrees_of_freedom=freedom,
        p_value=_p_value(estimate, variance, freedom),
        over="seeds and test examples" if with_seeds else "test examples",
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, largest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def ties_with_best(
    means: Mapping[str, float], differences_to_best: Mapping[str, Difference], level: float = 0.95
) -> set[str]:
    """The best and every variant that cannot be told from it after Holm's correction."""
    best = max(means, key=means.__getitem__)
    adjusted = holm({name: d.p_value for name, d in differences_to_best.items() if name != best})
    return {best} | {name for name, p in adjusted.items() if p > 1 - level}


@dataclass(frozen=True)
class _Part:
    """An independently estimated part of a variance."""

    value: float
    degrees_of_freedom: float

    def less(self, noise: float) -> "_Part":
        """Without a part that is counted elsewhere."""
        return _Part(max(0.0, self.value - noise), self.degrees_of_freedom)


def _seed_part(correct: Correct) -> _Part:
    """The variance of a mean accuracy over seeds."""
    num_seeds = len(correct)
    return _Part(float(correct.mean(1).var(ddof=1)) / num_seeds, num_seeds - 1)


def _noise(correct: Correct) -> float:
    """What the noise of single answers adds to the variance of a mean accuracy."""
    residual: Float[np.ndarray, "s n"] = (
        correct - correct.mean(1, keepdims=True) - correct.mean(0) + correct.mean()
    )
    num_seeds, num_examples = correct.shape
    variance = (residual**2).sum() / ((num_seeds - 1) * (num_examples - 1))
    return float(variance) / correct.size


def _sum(parts: Sequence[_Part]) -> tuple[float, float]:
    """A sum of variance estimates, and Satterthwaite's degrees of freedom."""
    total = sum(part.value for part in parts)
    spread = sum(part.value**2 / part.degrees_of_freedom for part in parts)
    return total, total**2 / spread if spread > 0 else float("inf")


def _p_value(estimate: float, variance: float, freedom: float) -> float:
    if variance == 0:
        return 1.0 if estimate == 0 else 0.0
    return float(2 * stats.t.sf(abs(estimate) / variance**0.5, freedom))
