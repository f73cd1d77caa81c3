"""Which examples a step sees."""

import threading

import numpy as np
import pytest
import torch

from lra.order import DataOrder, Reader
from lra.tasks.base import Batch


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
    assert sorted(np.bincount(order.indices(0))) == [2, 3, 3]


class Numbers:
    """Examples that are their own index, and remember which thread read them."""

    labels = np.arange(20)

    def __init__(self):
        self.threads = set()

    def __len__(self):
        return 20

    def batch(self, indices):
        self.threads.add(threading.current_thread())
        tokens = torch.from_numpy(indices)[:, None, None]
        return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), tokens[:, 0, 0])


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_reader_gives_each_step_its_batch_whatever_was_read_before(num_workers):
    order, numbers = DataOrder(seed=0, num_examples=20, batch_size=4), Numbers()
    reader = Reader(numbers, order, num_workers=num_workers)
    for step in (0, 1, 2, 9, 3, 3):
        assert reader.batch(step).labels.tolist() == order.indices(step).tolist()
    assert (threading.current_thread() in numbers.threads) == (num_workers == 0)
