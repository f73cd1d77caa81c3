"""Alternatives take turns, and a cell that would take too much is not begun."""

import time

import pytest
import torch

from lra.benchmark.budget import Budget, Footprint, forecast, objection
from lra.benchmark.interleave import interleave, num_rounds_within, quartiles, stopwatch


def test_every_alternative_has_a_turn_in_every_round_whichever_neighbor_it_had_before():
    order: list[str] = []

    def clock(run):
        run()
        return float(len(order))

    runs = {
        label: {
            "forward": lambda label=label: order.append(f"{label} forward"),
            "training": lambda label=label: order.append(f"{label} training"),
        }
        for label in "abc"
    }
    samples = interleave(runs, num_rounds=2, num_warmup=1, clock=clock)
    assert [turn[0] for turn in order[::2]] == list("abccbaabc")
    assert all(turn.endswith("training") for turn in order[1::2])
    # the first six samples were the warm-up's
    assert samples["c"] == {"forward": [7.0, 17.0], "training": [8.0, 18.0]}


def test_a_slow_minute_meets_all_alternatives_so_that_their_ratio_stays():
    turn = 0

    def clock(run):
        nonlocal turn
        turn += 1
        return run() * (10 if 20 < turn < 40 else 1)

    runs = {"fast": {"step": lambda: 1.0}, "slow": {"step": lambda: 3.0}}
    samples = interleave(runs, num_rounds=31, num_warmup=0, clock=clock)
    middles = {label: quartiles(s["step"])[1] for label, s in samples.items()}
    assert middles["slow"] / middles["fast"] == 3


def test_rounds_end_with_the_budget_but_never_below_the_fewest():
    assert num_rounds_within(10, 1.0, fewest=3, most=15) == 10
    assert num_rounds_within(10, 0.001, fewest=3, most=15) == 15
    assert num_rounds_within(10, 100.0, fewest=3, most=15) == 3


def test_the_stopwatch_measures_a_run():
    assert stopwatch(torch.device("cpu"))(lambda: time.sleep(0.03)) == pytest.approx(0.03, abs=0.02)


def test_quartiles_of_known_samples():
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2, 3, 4)
    assert quartiles([7.0]) == (7, 7, 7)


@pytest.mark.parametrize(("exponent", "expected"), [(1.5, 1.5), (0.3, 1.0), (3.0, 2.0)])
def test_a_forecast_follows_the_power_law_between_linear_and_quadratic(exponent, expected):
    lengths = [256, 512, 1024]
    figures = [3.0 * n**exponent for n in lengths]
    assert forecast(lengths, figures, 8192) == pytest.approx(figures[-1] * 8**expected)


def test_a_forecast_from_one_length_is_quadratic():
    assert forecast([1024], [2.0], 4096) == 32


def test_an_objection_names_what_would_be_exceeded():
    budget = Budget(seconds=60, num_bytes=4 * 2**30)
    points = [Footprint(1024, 1.0, 2**28), Footprint(2048, 4.0, 2**30)]
    assert objection([], 10**9, budget, 5) is None
    assert objection(points, 4096, budget, 3) is None
    assert objection(points, 4096, budget, 5) == (
        "would take about 80 s, over time_budget_seconds=60"
    )
    assert objection(points, 8192, budget, 0) == "would need about 16 GiB, over memory_budget_gib=4"
