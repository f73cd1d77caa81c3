"""Dropout of sixteen bits is dropout."""

import pytest
import torch
from torch.testing import assert_close

from lra.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_entries_are_dropped_with_the_probability_and_keep_their_mean(p, dtype):
    x = torch.ones(1000, 1001, dtype=dtype)
    out = Dropout(p)(x)
    assert out.dtype == dtype
    share = (out == 0).double().mean().item()
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5 + 1e-5)
    kept = out[out != 0].unique()
    assert kept.tolist() == pytest.approx([1 / (1 - p)], rel=1e-4 + torch.finfo(dtype).eps)


def test_entries_are_dropped_independently():
    dropped = (Dropout(0.5)(torch.ones(1 << 20)) == 0).double() - 0.5
    for shift in (1, 2, 3, 4, 5, 64):  # neighbors share a random word
        assert abs((dropped[shift:] * dropped[:-shift]).mean() / 0.25) < 5e-3


def test_the_gradient_is_dropped_and_scaled_as_the_entry():
    x = torch.randn(33, 7, requires_grad=True)
    out = Dropout(0.3)(x)
    out.sum().backward()
    assert_close(x.grad * x.detach(), out.detach())


def test_the_seed_decides_and_evaluation_drops_nothing():
    dropout, x = Dropout(0.2), torch.randn(5, 3)
    outs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outs.append(dropout(torch.ones(100)))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert dropout.eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_a_probability_too_large_is_refused():
    with pytest.raises(ValueError, match=r"dropout=1.0 is not in \[0, 1\)"):
        Dropout(1.0)
