"""Skeinformer against a literal transcription of Algorithm 1, in float64."""

import itertools
from typing import get_args

import pytest
import torch
from torch.testing import assert_close

from attention.base import AttentionDims, checked_choice
from attention.skeinformer import (
    RowNormalization,
    SkeinformerAttention,
    adaptive_row_normalization,
    squared_column_norms,
    unbiased_column_weights,
)
from attention.sketching import (
    importance_log_weights,
    pick_tokens,
    sample_without_replacement,
)
from attention.softmax import SoftmaxAttention

DIMS = AttentionDims(num_heads=2, head_dim=8, max_seq_len=64)
B, H, N, P = 3, 2, 40, 8
LENGTHS = torch.tensor([40, 29, 17])


def make_core(**changes):
    arguments = {
        "num_samples": 12,
        "num_pilots": 9,
        "column_sampling": "importance",
        "row_normalization": "adaptive",
        "reuse_pilot": True,
    }
    return SkeinformerAttention(DIMS, **(arguments | changes))


@pytest.fixture(params=["any device", "CPU"], autouse=True)
def implementation(request, monkeypatch):
    """Both forms of the algorithm, whatever the size of the input."""
    min_scores = 0 if request.param == "CPU" else float("inf")
    monkeypatch.setattr("attention.skeinformer_cpu.MIN_SCORES", min_scores)


@pytest.fixture
def qkv():
    return [torch.randn(B, H, N, P, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.fixture
def mask():
    """Padding of three lengths, and holes in the second sequence."""
    mask = torch.arange(N) < LENGTHS[:, None]
    mask[1, 3:11:2] = False
    return mask


def softmax_matrix(q, k, tokens):
    return (q @ k[tokens].T / P**0.5).softmax(-1)


def algorithm_1(q, k, v, mask, pilots, columns, *, normalization, reuse):
    """Lines 5 to 12 for one sequence and head, with exponentials, loops and given samples."""
    tokens = mask.nonzero().flatten().tolist()
    chosen = set(columns)
    rest = [j for j in tokens if j not in chosen]
    out = torch.zeros_like(v)
    for i in tokens:
        scores = torch.stack([torch.exp(q[i] @ k[j] / P**0.5) for j in columns])
        total, weighted = scores.sum(), scores @ v[columns]
        if normalization == "adaptive" and rest:
            fill = scores.prod() ** (1 / len(columns))  # geometric mean
            total = total + len(rest) * fill
            weighted = weighted + fill * v[rest].sum(0)
        if normalization == "truncated":
            total = torch.stack([torch.exp(q[i] @ k[j] / P**0.5) for j in tokens]).sum()
        out[i] = weighted / total
    if reuse:
        for i in sorted(set(pilots)):
            out[i] = softmax_matrix(q[i : i + 1], k, tokens)[0] @ v[tokens]
    return out


@pytest.mark.parametrize("normalization", ["adaptive", "simple", "truncated"])
@pytest.mark.parametrize("sampling", ["importance", "uniform"])
@pytest.mark.parametrize("reuse", [True, False])
def test_output_and_gradient_are_those_of_algorithm_1(qkv, mask, normalization, sampling, reuse):
    q, k, v = qkv
    core = make_core(row_normalization=normalization, column_sampling=sampling, reuse_pilot=reuse)
    pilot_noise, column_noise = core.draw_noise(q)
    pilot_noise[..., 1] = pilot_noise[..., 0]  # a pilot drawn twice
    out = core.attend(q, k, v, mask, pilot_noise, column_noise)
    pilots = pick_tokens(mask, pilot_noise)
    _, weights = core.attend_pilots(q, k, v, mask, pilots)
    columns, valid = sample_without_replacement(weights, column_noise, core.num_samples)
    expected = torch.zeros_like(out)
    for b, h in itertools.product(range(B), range(H)):
        expected[b, h] = algorithm_1(
            q[b, h], k[b, h], v[b, h], mask[b], pilots[b, h].tolist(),
            columns[b, h][valid[b, h]].tolist(), normalization=normalization, reuse=reuse,
        )  # fmt: skip
    assert_close(out, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(out)
    grads = torch.autograd.grad((out * direction).sum(), qkv)
    references = torch.autograd.grad((expected * direction).sum(), qkv)
    for grad, reference in zip(grads, references, strict=True):
        assert_close(grad, reference, rtol=1e-11, atol=1e-12)


def test_column_weights_are_equation_5(qkv, mask):
    q, k, v = (x.detach() for x in qkv)
    pilots = pick_tokens(mask, torch.rand(B, H, 9))
    weights = importance_log_weights(squared_column_norms(q, k, mask, pilots), v.square().sum(-1))
    for b, h in itertools.product(range(B), range(H)):
        tokens = mask[b].nonzero().flatten()
        rows = softmax_matrix(q[b, h][pilots[b, h]], k[b, h], tokens)
        expected = rows.square().sum(0).sqrt() * v[b, h][tokens].norm(dim=-1)
        assert_close(weights[b, h, tokens].double().exp(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("normalization", ["adaptive", "simple", "truncated"])
@pytest.mark.parametrize("num_samples", [40, 57])
def test_as_many_samples_as_tokens_are_softmax(qkv, mask, normalization, num_samples):
    core = make_core(num_samples=num_samples, row_normalization=normalization, reuse_pilot=False)
    assert_close(
        core(*qkv, mask), SoftmaxAttention(DIMS, dropout=0.0)(*qkv, mask), rtol=0, atol=1e-12
    )


def test_each_sequence_has_its_own_number_of_samples(qkv, mask):
    # 17 tokens are fewer than 20 samples: the third sequence is exact beside longer ones
    out = make_core(num_samples=20, reuse_pilot=False)(*qkv, mask)
    exact = SoftmaxAttention(DIMS, dropout=0.0)(*qkv, mask)
    assert_close(out[2], exact[2], rtol=0, atol=1e-12)
    assert (out[0] - exact[0]).abs().max() > 0.01


def test_gradient_is_exact_when_pilots_repeat(mask):
    core = make_core(num_samples=3, num_pilots=6)
    inputs = [torch.randn(2, 1, 7, P, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    pilot_noise, column_noise = core.draw_noise(inputs[0])
    pilot_noise[..., 3:] = pilot_noise[..., :3]
    assert torch.autograd.gradcheck(
        lambda q, k, v: core.attend(q, k, v, mask, pilot_noise, column_noise), inputs
    )


def test_a_sequence_alone_is_the_sequence_in_a_batch(qkv, mask):
    core = make_core()
    noise = core.draw_noise(qkv[0])
    whole = core.attend(*qkv, mask, *noise)
    for b in range(B):
        part = slice(b, b + 1)
        alone = core.attend(*(x[part] for x in qkv), mask[part], *(x[part] for x in noise))
        assert_close(alone, whole[part], rtol=0, atol=1e-12)


def test_padding_and_its_content_never_reach_a_token(qkv, mask):
    core = make_core()
    pilot_noise, column_noise = core.draw_noise(qkv[0])
    out = core.attend(*qkv, mask, pilot_noise, column_noise)
    padded = [torch.cat([x, torch.full_like(x, 1e3)], 2) for x in qkv]
    long_mask = torch.cat([mask, torch.zeros_like(mask)], 1)
    noise = torch.cat([column_noise, torch.rand_like(column_noise)], 2)
    longer = core.attend(*padded, long_mask, pilot_noise, noise)
    assert_close(longer[:, :, :N], out, rtol=0, atol=1e-12)
    assert longer[:, :, N:].abs().max() == 0


def test_permuting_tokens_permutes_the_output(qkv, mask):
    core = make_core(num_pilots=1, reuse_pilot=False, column_sampling="uniform")
    pilot_noise, column_noise = core.draw_noise(qkv[0])
    order = torch.randperm(N)
    out = core.attend(*qkv, mask, pilot_noise, column_noise)
    permuted = core.attend(
        *(x[:, :, order] for x in qkv), mask[:, order], pilot_noise, column_noise[..., order]
    )
    assert_close(permuted, out[:, :, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "largest", "limits"),
    [
        (torch.float32, 100, (2e-6, 1e-5)),
        (torch.float32, 1000, (2e-6, 1e-4)),
        (torch.bfloat16, 100, (8e-3, 3e-2)),
        (torch.bfloat16, 1000, (8e-3, 0.2)),
        (torch.float16, 100, (1e-3, 4e-3)),
        (torch.float16, 1000, (1e-3, 3e-2)),
    ],
)
def test_large_scores_keep_their_precision(mask, dtype, largest, limits):
    """Output and gradients against float64 on the same rounded inputs and the same samples."""
    core = make_core(column_sampling="uniform")
    q, k, v = (torch.randn(B, H, N, P, dtype=torch.float64) for _ in range(3))
    q = q * largest / (q @ k.mT / P**0.5).abs().max()
    inputs = [x.to(dtype) for x in (q, k, v)]
    noise = core.draw_noise(inputs[0])
    direction = torch.randn(B, H, N, P, dtype=torch.float64)
    results = []
    for precision in (dtype, torch.float64):
        leaves = [x.to(precision).requires_grad_() for x in inputs]
        out = core.attend(*leaves, mask, *noise)
        grads = torch.autograd.grad((out * direction).sum(), leaves)
        results.append([x.double() for x in (out, *grads)])
    errors = [(low - high).norm() / high.norm() for low, high in zip(*results, strict=True)]
    assert errors[0] < limits[0]
    assert max(errors[1:]) < limits[1]


def test_the_count_of_filled_keys_is_not_rounded_in_half_precision():
    """log(3948) = 8.281 would be 8.25 in bf16, 3 % of the fill's weight."""
    d, n = 8, 3956
    q, k = torch.zeros(1, 1, 1, P), torch.zeros(1, 1, n, P)
    q[..., 0], k[0, 0, :d, 0] = P**0.5, torch.tensor([6.875, -6.875] * 4)
    v = torch.zeros(1, 1, n, P)
    v[0, 0, :d] = 1
    columns, valid = torch.arange(d)[None, None], torch.ones(1, 1, d, dtype=torch.bool)
    keys = torch.ones(1, n, dtype=torch.bool)
    shares = []
    for dtype in (torch.bfloat16, torch.float64):
        inputs = (x.to(dtype).expand(-1, -1, n, -1) for x in (q, k, v))
        out = adaptive_row_normalization(*inputs, keys, columns, valid)
        shares.append(out[0, 0, 0, 0].item())
    assert 0.4 < shares[1] < 0.6
    assert abs(shares[0] - shares[1]) < 0.003


def test_definition_3_1_is_unbiased_with_the_variance_of_the_theory():
    """E||BV - R||² = ((Σ ||B^(i)|| ||V_i||)² - ||BV||²) / d for the optimal probabilities."""
    n, d, trials = 24, 6, 4000
    q, k, v = (torch.randn(1, 1, n, P, dtype=torch.float64) for _ in range(3))
    matrix = (q @ k.mT / P**0.5).softmax(-1)
    exact = matrix @ v
    importance = matrix.norm(dim=2) * v.norm(dim=-1)  # 1 1 n
    uniform = torch.rand(trials, 1, d)
    weights = unbiased_column_weights(importance.log().expand(trials, 1, n), uniform)
    sketched = (matrix * weights[:, :, None]) @ v
    error = (sketched - exact).square().sum((1, 2, 3))
    theory = (importance.sum() ** 2 - exact.square().sum()) / d
    standard_error = error.std() / trials**0.5
    assert abs(error.mean() - theory) < 3 * standard_error
    deviation = (sketched.mean(0) - exact[0]).abs() / (sketched.std(0) / trials**0.5)
    assert deviation.mean() < 1.0  # of |z| for a standard normal z: 0.80


def test_no_row_normalization_uses_those_weights(qkv, mask):
    q, k, v = qkv
    core = make_core(row_normalization="none", reuse_pilot=False)
    pilot_noise, column_noise = core.draw_noise(q)
    out = core.attend(q, k, v, mask, pilot_noise, column_noise)
    _, log_weights = core.attend_pilots(q, k, v, mask, pick_tokens(mask, pilot_noise))
    weights = unbiased_column_weights(log_weights, column_noise)
    logits = (q @ k.mT / P**0.5).masked_fill(~mask[:, None, None], float("-inf"))
    expected = (logits.softmax(-1) * weights[:, :, None].double()) @ v
    assert_close(out, expected * mask[:, None, :, None], rtol=1e-10, atol=1e-12)


def test_more_samples_and_reused_pilots_come_closer_to_softmax():
    q, k, v = (torch.randn(8, 2, 64, P, dtype=torch.float64) for _ in range(3))
    mask = torch.ones(8, 64, dtype=torch.bool)
    exact = SoftmaxAttention(DIMS, dropout=0.0)(q, k, v, mask)

    def error(**changes):
        torch.manual_seed(0)
        return (make_core(**changes)(q, k, v, mask) - exact).norm()

    errors = [error(num_samples=d, num_pilots=16) for d in (4, 16, 48, 64)]
    assert errors == sorted(errors, reverse=True)
    assert error(num_pilots=16) < error(num_pilots=16, reuse_pilot=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_pilots": -1}, "num_pilots=-1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_core(**changes)


def test_an_unknown_choice_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="row_normalization=l2 is not one of adaptive, simple"):
        checked_choice("row_normalization", "l2", get_args(RowNormalization))
