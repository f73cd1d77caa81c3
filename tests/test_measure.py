"""Time and memory are what they are said to be."""

import time

import pytest
import torch

from lra.measure import StepTimer, cpu_peak_bytes, num_bytes


def test_peak_memory_of_known_allocations_is_exact():
    def allocate():
        a = torch.ones(1_000_000)  # 4 MB
        b = a + 1  # 8 MB alive
        del a
        c = b * 2  # 8 MB again
        del b, c

    cpu_peak_bytes(allocate)
    assert cpu_peak_bytes(allocate) == pytest.approx(8_000_000, abs=1000)


def test_peak_memory_grows_with_what_attention_keeps():
    def attend(n):
        q = torch.randn(1, 1, n, 8, requires_grad=True)
        (q @ q.mT).softmax(-1).matmul(q).sum().backward()

    small, large = (cpu_peak_bytes(lambda n=n: attend(n)) for n in (256, 512))
    assert 3.5 < large / small < 4.5


def test_measuring_writes_nothing_to_the_terminal(capfd):
    cpu_peak_bytes(lambda: None)
    assert capfd.readouterr() == ("", "")


def test_shared_storage_counts_once():
    x = torch.zeros(100)
    assert num_bytes([x, x[:10], x.view(10, 10), torch.zeros(5)]) == 420


def test_step_timer_measures_between_marks_and_forgets():
    timer = StepTimer(torch.device("cpu"))
    for pause in (0, 0.02, 0.05):
        time.sleep(pause)
        timer.mark()
    first, second = timer.collect()
    assert 0.02 <= first < second
    assert timer.collect() == []
