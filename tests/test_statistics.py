"""Intervals and paired tests recover known answers, in closed form and on simulated results."""

import numpy as np
import pytest
from scipy import stats

from lra.report.statistics import (
    accuracy_interval,
    difference,
    holm,
    mean_difference,
    t_interval,
    ties_with_best,
    wilson_interval,
)


def answers(generator, num_seeds, examples, seed_sd, skill=0.0):
    """Right answers of a simulated variant; the logit of each is skill + seed + example."""
    logits = skill + generator.normal(0, seed_sd, (num_seeds, 1)) + examples
    return generator.random(logits.shape) < 1 / (1 + np.exp(-logits))


def test_the_t_interval_is_the_textbooks():
    interval = t_interval([0.60, 0.62, 0.64])
    half = 4.302653 * 0.02 / 3**0.5  # the 97.5 % point of t with 2 degrees of freedom
    assert (interval.low, interval.high) == pytest.approx((0.62 - half, 0.62 + half), rel=1e-6)
    assert interval.kind == "t over seeds"
    assert 0.62 in interval
    assert 0.68 not in interval


def test_the_wilson_interval_solves_its_equation():
    interval = wilson_interval(30, 50)
    z = stats.norm.ppf(0.975)
    for bound in (interval.low, interval.high):
        assert abs(0.6 - bound) == pytest.approx(z * (bound * (1 - bound) / 50) ** 0.5)
    assert interval.kind == "Wilson over test examples"


def test_one_seed_gets_the_interval_over_examples_and_more_that_over_seeds():
    assert accuracy_interval([0.6], 50) == wilson_interval(30, 50)
    assert accuracy_interval([0.6, 0.7], 50) == t_interval([0.6, 0.7])
    with pytest.raises(ValueError, match="1 value has no spread"):
        t_interval([0.6])


def test_one_seed_each_is_mcnemars_exact_test():
    """15 examples only the first answers, 5 only the second: a coin with 15 heads of 20."""
    first = np.array([[True] * 15 + [False] * 5 + [True] * 80])
    second = np.array([[False] * 15 + [True] * 5 + [True] * 80])
    found = difference(first, second)
    assert found.estimate == pytest.approx(0.10)
    assert found.p_value == pytest.approx(0.04138947)
    assert found.over == "test examples"
    assert difference(first, first).p_value == 1


def test_where_examples_do_not_matter_the_test_is_welchs():
    """Every example is as hard as the next, so that only seeds vary."""
    generator = np.random.default_rng(3)
    first, second = (
        generator.random((seeds, 200_000)) < rate[:, None]
        for seeds, rate in (
            (4, np.array([0.60, 0.63, 0.61, 0.66])),
            (3, np.array([0.55, 0.64, 0.58])),
        )
    )
    found = difference(first, second)
    welch = stats.ttest_ind(first.mean(1), second.mean(1), equal_var=False)
    assert found.p_value == pytest.approx(welch.pvalue, rel=0.01)
    assert found.degrees_of_freedom == pytest.approx(welch.df, rel=0.01)


def test_where_seeds_do_not_matter_the_test_is_that_over_examples():
    """Every seed gives the same answers, so that only examples vary."""
    generator = np.random.default_rng(4)
    first, second = (generator.random((1, 500)) < rate for rate in (0.6, 0.55))
    found = difference(first.repeat(3, 0), second.repeat(3, 0))
    paired = stats.ttest_rel(first[0].astype(float), second[0].astype(float))
    assert found.p_value == pytest.approx(paired.pvalue)
    assert found.interval() == pytest.approx(tuple(paired.confidence_interval()))


@pytest.mark.parametrize("seed_sd", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("num_seeds", [3, 5])
def test_the_interval_of_a_difference_covers_the_truth_95_times_in_100(num_seeds, seed_sd):
    """Equal skill; a seed moves accuracy by 0.6 to 6 points. Binomial error of the count: 0.7 %."""
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        examples = generator.normal(0, 1, 1000)
        first, second = (answers(generator, num_seeds, examples, seed_sd) for _ in range(2))
        low, high = difference(first, second).interval()
        covered.append(low <= 0 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_the_intervals_of_an_accuracy_cover_the_truth_95_times_in_100():
    generator = np.random.default_rng(1)
    over_seeds = generator.normal(0.6, 0.01, (1200, 3))
    over_examples = generator.binomial(2000, 0.6, 1200)
    for intervals in (
        [t_interval(list(row)) for row in over_seeds],
        [wilson_interval(int(k), 2000) for k in over_examples],
    ):
        covered = np.mean([0.6 in interval for interval in intervals])
        assert covered == pytest.approx(0.95, abs=0.02)


def test_an_average_over_tasks_adds_the_variances_of_the_tasks():
    generator = np.random.default_rng(5)
    parts = []
    for _ in range(5):
        examples = generator.normal(0, 1, 400)
        parts.append(difference(*(answers(generator, 3, examples, 0.1) for _ in range(2))))
    average = mean_difference(parts)
    assert average.estimate == pytest.approx(np.mean([p.estimate for p in parts]))
    assert average.variance == pytest.approx(sum(p.variance for p in parts) / 25)
    assert average.degrees_of_freedom > max(p.degrees_of_freedom for p in parts)


def test_holms_example():
    """Each p against its step: 3 × 0.01, 2 × 0.02, and never below the one before."""
    found = holm({"a": 0.03, "b": 0.01, "c": 0.04})
    assert found == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_ties_are_told_from_what_is_worse():
    generator = np.random.default_rng(6)
    examples = generator.normal(0, 1, 2000)
    skills = {"best": 0.5, "equal": 0.49, "worse": 0.1}
    correct = {k: answers(generator, 3, examples, 0.02, skill) for k, skill in skills.items()}
    means = {name: float(found.mean()) for name, found in correct.items()}
    best = max(means, key=means.__getitem__)
    to_best = {name: difference(correct[best], found) for name, found in correct.items()}
    assert ties_with_best(means, to_best) == {"best", "equal"}


def test_results_on_other_examples_are_not_paired():
    with pytest.raises(ValueError, match=r"10 and 11 test examples: .* not the same ones"):
        difference(np.ones((2, 10), bool), np.ones((2, 11), bool))
