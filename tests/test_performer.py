"""FAVOR+ against its theory, a kernel matrix written out, and an independent implementation."""

from functools import partial

import pytest
import torch
from jaxtyping import Bool, Float
from performer_pytorch import performer_pytorch
from scipy.stats import kstest
from torch import Tensor
from torch.testing import assert_close

from attention.base import AttentionDims
from attention.performer import PerformerAttention, draw_orthogonal_rows, summarize_keys
from attention.softmax import FusedSoftmaxAttention

DIM = 8
LENGTH = 24


def performer(*, num_random_features: int = 20, head_dim: int = DIM) -> PerformerAttention:
    """In float64, with a last block of features that is not full."""
    dims = AttentionDims(num_heads=2, head_dim=head_dim, max_seq_len=LENGTH)
    return PerformerAttention(dims, num_random_features=num_random_features).double()


def draw_inputs(scale: float, *, head_dim: int = DIM) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of the given scale, and values: b h n p, float64."""
    scales = torch.tensor([scale, scale, 1.0], dtype=torch.float64)
    q, k, v = torch.randn(3, 2, 2, LENGTH, head_dim).double() * scales[:, None, None, None, None]
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def scattered_mask() -> Bool[Tensor, "b n"]:
    """One sequence with holes, one with padding at its end."""
    return torch.stack([torch.arange(LENGTH) % 3 > 0, torch.arange(LENGTH) < 17])


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, token_mask: Tensor, projection: Tensor
) -> Tensor:
    """The n x n kernel matrix phi(Q) phi(K)', feature by feature, in the log domain."""
    q, k = q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25
    log_q = torch.einsum("bhip,mp->bhim", q, projection) - (q**2).sum(-1)[..., None] / 2
    log_k = torch.einsum("bhjp,mp->bhjm", k, projection) - (k**2).sum(-1)[..., None] / 2
    log_kernel = (log_q[:, :, :, None] + log_k[:, :, None]).logsumexp(-1)
    log_kernel = log_kernel.masked_fill(~token_mask[:, None, None, :], float("-inf"))
    return log_kernel.softmax(-1) @ v * token_mask[:, None, :, None]


@pytest.mark.parametrize("scale", [0.3, 2.0, 20.0])
def test_output_and_gradient_equal_those_of_the_kernel_matrix(scale: float) -> None:
    torch.manual_seed(0)
    core, inputs, token_mask = performer(), draw_inputs(scale), scattered_mask()
    probe = torch.randn_like(inputs[2])
    actual = core(*inputs, token_mask)
    expected = explicit_attention(*inputs, token_mask, core.projection)
    assert_close(actual, expected)
    assert_close(
        torch.autograd.grad((actual * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
    )


def test_performer_pytorch_computes_the_same_without_its_epsilon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(1)
    core, inputs = performer(), draw_inputs(1.0)
    exact_kernel = partial(performer_pytorch.softmax_kernel, eps=0.0)
    monkeypatch.setattr(performer_pytorch, "softmax_kernel", exact_kernel)
    independent = performer_pytorch.FastAttention(DIM, nb_features=20).double()
    independent.projection_matrix.copy_(core.projection)
    actual = core(*inputs, torch.ones(2, LENGTH, dtype=torch.bool))
    expected = independent(*inputs)
    assert_close(actual, expected)
    assert_close(
        torch.autograd.grad(actual.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    )


def estimate_kernel(
    q: Float[Tensor, " p"], k: Float[Tensor, " p"], projections: Float[Tensor, "t m p"]
) -> Float[Tensor, " t"]:
    """phi(q)' phi(k), one estimate per projection."""
    x = torch.stack([q, k])[:, None, None]  # 2 1 1 p, each a sequence of one key
    one_key = torch.ones(2, 1, dtype=torch.bool)
    scaled = projections * DIM**-0.25
    log_phi = torch.stack([summarize_keys(x, x, one_key, w)[1] for w in scaled])  # t 2 1 m 1
    return log_phi.sum(1).exp().mean((1, 2, 3))


def test_the_kernel_estimate_is_unbiased_and_orthogonal_rows_lower_its_variance() -> None:
    torch.manual_seed(2)
    num_trials = 8000
    q, k = 0.4 * torch.randn(2, DIM).double()
    truth = (q @ k * DIM**-0.5).exp()
    independent = torch.randn(num_trials, DIM, DIM).double()
    orthogonal = torch.stack([draw_orthogonal_rows(DIM, DIM) for _ in range(num_trials)]).double()

    variance = {}
    for name, projections in {"independent": independent, "orthogonal": orthogonal}.items():
        estimates = estimate_kernel(q, k, projections)
        variance[name] = estimates.var().item()
        standard_error = (variance[name] / num_trials) ** 0.5
        assert abs(estimates.mean() - truth) < 3 * standard_error, name

    theory = truth**2 * (((q + k).square().sum() * DIM**-0.5).exp() - 1) / DIM
    assert_close(variance["independent"], theory.item(), rtol=0.1, atol=0)
    assert variance["orthogonal"] < 0.95 * theory


def test_the_error_falls_with_the_root_of_the_number_of_features() -> None:
    torch.manual_seed(3)
    head_dim, num_features = 32, [64, 256, 1024, 4096]
    dims = AttentionDims(num_heads=2, head_dim=head_dim, max_seq_len=LENGTH)
    token_mask = torch.ones(2, LENGTH, dtype=torch.bool)
    errors = torch.zeros(len(num_features))
    for _ in range(5):
        inputs = draw_inputs(0.5, head_dim=head_dim)
        exact = FusedSoftmaxAttention(dims, dropout=0.0)(*inputs, token_mask)
        for i, m in enumerate(num_features):
            core = performer(num_random_features=m, head_dim=head_dim)
            errors[i] += (core(*inputs, token_mask) - exact).norm().item() / 5
    slope = (errors[-1] / errors[0]).log() / torch.tensor(num_features[-1] / num_features[0]).log()
    assert -0.6 < slope < -0.4


def test_features_are_blockwise_orthogonal_gaussian_rows() -> None:
    torch.manual_seed(4)
    num_blocks = 500
    rows = draw_orthogonal_rows(num_blocks * DIM - 3, DIM)
    assert rows.shape == (num_blocks * DIM - 3, DIM)

    norms = rows.norm(dim=-1)
    assert kstest(norms.numpy(), "chi", args=(DIM,)).pvalue > 0.01

    blocks = (rows / norms[:, None])[: (num_blocks - 1) * DIM].unflatten(0, (-1, DIM))
    assert_close(blocks @ blocks.mT, torch.eye(DIM).expand(num_blocks - 1, -1, -1))

    # Under the Haar measure an entry has mean 0 and variance 1 / p; QR alone gives a biased one.
    standard_error = (DIM * (num_blocks - 1)) ** -0.5
    assert (blocks.mean(0).abs() < 5 * standard_error).all()
    assert kstest(rows.flatten().numpy(), "norm").pvalue > 0.01


def test_a_query_far_from_every_key_keeps_its_output_and_gradient() -> None:
    """The largest features of queries and keys differ, so that their plain product underflows."""
    torch.manual_seed(5)
    core = performer(num_random_features=DIM).float()
    core.projection.copy_(3 * torch.eye(DIM))
    q, k, v = (x.detach().float() for x in draw_inputs(1.0))
    q[0, ..., 0] += 200
    k[0, ..., 0] -= 200
    inputs = [x.requires_grad_() for x in (q, k, v)]
    token_mask = torch.ones(2, LENGTH, dtype=torch.bool)
    out = core(*inputs, token_mask)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    expected = explicit_attention(*doubles, token_mask, core.projection.double())
    assert_close(out.double(), expected, rtol=0.02, atol=0.02)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)
    assert all(grad.any() for grad in grads)


def test_under_autocast_only_the_inputs_are_rounded() -> None:
    torch.manual_seed(6)
    core = performer().float()
    inputs = [x.detach().bfloat16() for x in draw_inputs(4.0)]
    token_mask = scattered_mask()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = core(*inputs, token_mask)
    expected = core(*(x.float() for x in inputs), token_mask)
    assert_close(actual, expected.bfloat16(), rtol=0, atol=0)


def test_a_head_without_features_is_refused() -> None:
    with pytest.raises(ValueError, match="num_random_features=0"):
        performer(num_random_features=0)
