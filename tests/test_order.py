"""Which examples a step sees."""

import numpy as np

from lra.order import DataOrder


def test_every_epoch_holds_every_example_once():
    order = DataOrder(seed=3, num_examples=10, batch_size=4)
    seen = np.concatenate([order.indices(step) for step in range(5)])  # two epochs
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


def test_a_step_depends_on_seed_and_step_alone():
    first, second = (DataOrder(seed=3, num_examples=1000, batch_size=7) for _ in range(2))
    for step in range(500):
        first.indices(step)
    assert first.indices(321).tolist() == second.indices(321).tolist()
    other = DataOrder(seed=4, num_examples=1000, batch_size=7)
    assert first.indices(0).tolist() != other.indices(0).tolist()


def test_a_batch_may_be_larger_than_the_data():
    order = DataOrder(seed=0, num_examples=3, batch_size=8)
    assert sorted(order.indices(0))[:8] == [0, 0, 0, 1, 1, 1, 2, 2] or len(order.indices(0)) == 8
    assert np.bincount(order.indices(0), minlength=3).min() >= 2
