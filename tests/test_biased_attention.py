"""Attention in C++ against softmax written out in float64, for any shape, layout and processor."""

import ctypes
import stat
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from attention import biased_attention as module
from attention.biased_attention import (
    SOURCE,
    biased_attention,
    biased_attention_gradients,
    is_available,
    num_parts,
)
from attention.compilation import load_compiled
from attention.conformance.subject import relative_error
from lra.measure import cpu_peak_bytes

TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6}
B, H = 2, 3


def tensors(num_rows, num_keys, head_dim, dtype, scale=1.0):
    """q, k, v and a gradient in the backbone's layout, and a bias that excludes a key."""
    sizes = (num_rows, num_keys, num_keys, num_rows)
    q, k, v, grad = (torch.randn(B, n, H, head_dim, dtype=dtype).transpose(1, 2) for n in sizes)
    bias = torch.randn(num_keys, dtype=dtype)
    bias[num_keys // 2] = -torch.inf
    return q * scale, k, v, grad, bias


def results(q, k, v, grad, bias):
    """Output, log-sum-exp, squares and gradients of the kernel, in layouts of its caller."""
    out = torch.full_like(q, torch.nan)
    lse, squares = biased_attention(q, k, v, bias, out, True)
    gradients = [torch.full_like(x, torch.nan) for x in (q, k, v)]
    biased_attention_gradients(grad, q, k, v, bias, out, lse, tuple(gradients))
    return [out, lse, squares, *gradients]


def expected_results(q, k, v, grad, bias):
    """The same from softmax in float64."""
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias.double()
    weights = scores.softmax(-1)
    out = weights @ v
    gradients = torch.autograd.grad(out, (q, k, v), grad.double())
    found = [out, scores.logsumexp(-1), weights.square().sum(2), *gradients]
    return [x.detach() for x in found]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("num_rows", "num_keys", "head_dim"),
    [(1, 2, 1), (31, 33, 8), (33, 65, 40), (64, 1500, 32), (1500, 257, 32), (1025, 1100, 5)],
)
def test_output_squares_and_gradients(num_rows, num_keys, head_dim, dtype):
    given = tensors(num_rows, num_keys, head_dim, dtype)
    for found, expected in zip(results(*given), expected_results(*given), strict=True):
        assert relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("scale", [30, 1000])
def test_scores_of_any_size(scale):
    given = tensors(40, 50, 32, torch.float64, scale)
    for found, expected in zip(results(*given), expected_results(*given), strict=True):
        assert relative_error(found, expected) < 1e-11


def test_a_row_of_infinite_log_sum_exp_gives_and_gets_no_gradient():
    q, k, v, grad, _ = tensors(40, 50, 8, torch.float64)
    out = torch.empty_like(q)
    lse, _ = biased_attention(q, k, v, None, out, False)
    rows = [3, 4, 39]
    lse[:, :, rows], out[:, :, rows] = torch.inf, 7.0
    silent = grad.clone()
    silent[:, :, rows] = 0
    found = [torch.empty_like(x) for x in (q, k, v)]
    biased_attention_gradients(grad, q, k, v, None, out, lse, tuple(found))
    zeros = torch.zeros_like(k[0, 0, 0]).expand(k.shape[-2], -1)
    expected = expected_results(q, k, v, silent, zeros[:, 0])[3:]
    for part, expected_part in zip(found, expected, strict=True):
        assert_close(part, expected_part, rtol=0, atol=1e-13)


def test_what_is_not_wanted_is_not_computed():
    q, k, v, _, bias = tensors(5, 6, 4, torch.float64)
    lse, squares = biased_attention(q, k, v, bias, None, False)
    assert squares.shape == (B, H, 6)
    assert not squares.any()
    assert_close(lse, expected_results(q, k, v, q, bias)[1])


def test_bits_do_not_depend_on_the_number_of_threads():
    given = tensors(1100, 1200, 32, torch.float32)
    threads, found = torch.get_num_threads(), []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        found.append(results(*given))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_on_lesser_processors(capability, dtype, monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    library = load_compiled.__wrapped__(SOURCE)
    if library is None or library._name == load_compiled(SOURCE)._name:
        pytest.skip(f"no other code for {capability}")
    monkeypatch.setattr(module, "load_compiled", lambda source: library)
    given = tensors(70, 1050, 40, dtype)
    for found, expected in zip(results(*given), expected_results(*given), strict=True):
        assert relative_error(found, expected) < TOLERANCE[dtype]


def test_the_kernel_has_the_fields_that_are_passed():
    assert num_parts(32, "block") == 1
    assert num_parts(1025, "tile") == 2
    assert ctypes.sizeof(module.Attention) == 8 * (6 + 4 + 8 * 5)
    expected = ctypes.c_int64.in_dll(module.library(), "bytes_of_arguments").value
    assert ctypes.sizeof(module.Attention) == expected


def test_without_a_compiler_there_is_a_warning_and_the_form_for_autograd(tmp_path, monkeypatch):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for name, reason in ((compiler, "no room"), (tmp_path / "missing", "No such file")):
        monkeypatch.setenv("CXX", str(name))
        with pytest.warns(UserWarning, match=f"install a C\\+\\+ compiler.*{reason}"):
            assert load_compiled.__wrapped__(SOURCE) is None
    assert not [path for path in cache.rglob("*") if path.is_file()]
    monkeypatch.setattr(module, "load_compiled", lambda source: None)
    assert not is_available()


def test_a_library_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_compiled.__wrapped__(SOURCE) is not None
    (library,) = tmp_path.rglob("*.so")
    monkeypatch.setenv("CXX", "c++")  # as by default
    before = library.stat().st_mtime_ns
    assert load_compiled.__wrapped__(SOURCE)._name == str(library)
    assert library.stat().st_mtime_ns == before
    assert [path for path in Path(tmp_path, "lra").iterdir()] == [library]


def test_what_the_kernel_needs_for_a_while_is_memory_of_torch():
    q, k, v, _, _ = tensors(10, 4096, 32, torch.float32)
    packed = 2 * 4 * 4096 * 32  # keys and values of a sequence, while its rows are computed
    assert cpu_peak_bytes(lambda: biased_attention(q, k, v, None, None, False)) > packed
