"""Linformer and its unreduced transform: exact limits, closed forms, another implementation."""

import itertools

import pytest
import torch
from jaxtyping import Bool
from linformer.linformer import LinformerSelfAttention
from torch import Tensor, nn
from torch.testing import assert_close

from attention.base import AttentionCore, AttentionDims
from attention.linformer import LinformerAttention, UnreducedJLTAttention
from attention.multihead import MultiHeadAttention
from attention.softmax import FusedSoftmaxAttention

LENGTH = 12
DIMS = AttentionDims(num_heads=2, head_dim=4, max_seq_len=LENGTH)
HOLES = torch.stack([torch.arange(LENGTH) % 3 > 0, torch.arange(LENGTH) < 7])
NO_PADDING = torch.ones(2, LENGTH, dtype=torch.bool)


def linformer(projection_dim: int, *, train_projection: bool = True) -> LinformerAttention:
    """In float64; entries of standard deviation 1."""
    return LinformerAttention(
        DIMS, projection_dim=projection_dim, init_std=1.0, train_projection=train_projection
    ).double()


def unreduced_jlt(num_features: int) -> UnreducedJLTAttention:
    """In float64."""
    return UnreducedJLTAttention(DIMS, num_features=num_features).double()


def draw_inputs() -> list[Tensor]:
    """Queries, keys and values: b h n p, float64."""
    return [torch.randn(2, 2, LENGTH, 4).double().requires_grad_() for _ in range(3)]


def assert_same_function(
    actual: AttentionCore, expected: AttentionCore, token_mask: Bool[Tensor, "b n"]
) -> None:
    """Equal outputs and gradients on random inputs."""
    inputs = draw_inputs()
    out, reference = actual(*inputs, token_mask), expected(*inputs, token_mask)
    assert_close(out, reference)
    probe = torch.randn_like(out)
    assert_close(
        torch.autograd.grad((out * probe).sum(), inputs),
        torch.autograd.grad((reference * probe).sum(), inputs),
    )


def test_the_identity_as_projection_gives_softmax_attention() -> None:
    torch.manual_seed(0)
    core = linformer(LENGTH)
    with torch.no_grad():
        core.projection.copy_(torch.eye(LENGTH))
    assert_same_function(core, FusedSoftmaxAttention(DIMS, dropout=0.0), NO_PADDING)


def test_linformer_equals_its_definition_on_the_tokens_alone() -> None:
    torch.manual_seed(1)
    core, (q, k, v) = linformer(5), draw_inputs()
    expected = torch.zeros_like(v)
    for b, h in itertools.product(range(2), range(2)):
        tokens = HOLES[b]
        e = core.projection[h][:, tokens]
        weights = (q[b, h, tokens] @ (e @ k[b, h, tokens]).mT / 2).softmax(-1)  # sqrt(p) = 2
        expected[b, h, tokens] = weights @ (e @ v[b, h, tokens])
    assert_close(core(q, k, v, HOLES), expected)


def test_the_unreduced_transform_equals_its_definition_on_the_tokens_alone() -> None:
    torch.manual_seed(1)
    core, (q, k, v) = unreduced_jlt(5), draw_inputs()
    expected = torch.zeros_like(v)
    for b, h in itertools.product(range(2), range(2)):
        tokens = HOLES[b]
        s = core.sketch[h][tokens]
        weights = (q[b, h, tokens] @ k[b, h, tokens].mT / 2).softmax(-1)
        expected[b, h, tokens] = weights @ (s @ (s.mT @ v[b, h, tokens]))
    assert_close(core(q, k, v, HOLES), expected)


@pytest.mark.parametrize("variant", ["linformer", "linformer_jlt"])
def test_appended_padding_changes_nothing(variant: str) -> None:
    torch.manual_seed(2)
    core = linformer(5) if variant == "linformer" else unreduced_jlt(5)
    inputs = draw_inputs()
    short = core(*(x[:, :, :7] for x in inputs), HOLES[:, :7])
    token_mask = HOLES & (torch.arange(LENGTH) < 7)
    assert_close(core(*inputs, token_mask)[:, :, :7], short)


def test_the_linformer_package_computes_the_same_with_copied_weights() -> None:
    torch.manual_seed(3)
    core = linformer(5)
    ours = MultiHeadAttention(core, embed_dim=8).double()
    package = LinformerSelfAttention(8, LENGTH, k=5, heads=2).double()
    with torch.no_grad():
        core.projection.copy_(core.projection[:1].expand(2, -1, -1))  # the package's heads share it
        package.proj_k.copy_(core.projection[0].mT)
        package.proj_v.copy_(core.projection[0].mT)
        for theirs, weight in zip(
            (package.to_q, package.to_k, package.to_v), ours.project_in.weight.chunk(3), strict=True
        ):
            theirs.weight.copy_(weight)
        ours.project_in.bias.zero_()
        package.to_out.load_state_dict(ours.project_out.state_dict())
    for length in (LENGTH, 9):
        x = torch.randn(2, length, 8).double()
        attended = ours(x.flatten(0, 1), [NO_PADDING[:, :length]]).unflatten(0, (2, length))
        assert_close(attended, package(x))


def test_each_head_and_column_of_the_projection_is_trained() -> None:
    torch.manual_seed(4)
    core = linformer(5)
    core(*draw_inputs(), NO_PADDING).square().sum().backward()
    assert isinstance(core.projection, nn.Parameter)
    assert core.projection.grad is not None
    assert core.projection.grad.ne(0).all()


def test_what_is_drawn_and_not_trained_is_in_the_checkpoint() -> None:
    torch.manual_seed(5)
    frozen = [linformer(5, train_projection=False), unreduced_jlt(5)]
    redrawn = [linformer(5, train_projection=False), unreduced_jlt(5)]
    for core, restored in zip(frozen, redrawn, strict=True):
        assert not list(core.parameters())
        restored.load_state_dict(core.state_dict())
        assert_same_function(restored, core, HOLES)


def test_the_projection_has_the_standard_deviation_asked_for() -> None:
    torch.manual_seed(6)
    dims = AttentionDims(num_heads=2, head_dim=4, max_seq_len=500)
    core = LinformerAttention(dims, projection_dim=40, init_std=0.02, train_projection=True)
    assert core.projection.shape == (2, 40, 500)
    assert_close(core.projection.std().item(), 0.02, rtol=0.02, atol=0)
    assert_close(core.projection.mean().item(), 0.0, rtol=0, atol=3 * 0.02 / 40_000**0.5)


def test_the_identity_as_sketch_gives_softmax_attention() -> None:
    torch.manual_seed(7)
    core = unreduced_jlt(LENGTH)
    core.sketch.copy_(torch.eye(LENGTH))
    assert_same_function(core, FusedSoftmaxAttention(DIMS, dropout=0.0), HOLES)


def test_the_unreduced_transform_is_unbiased_with_the_variance_of_theory() -> None:
    """E||B V - R||² = (||B||² ||V||² + ||B V||²) / d for R = B S S' V (Frobenius norms)."""
    torch.manual_seed(8)
    num_trials, num_features = 3000, 6
    q, k, v = (x.detach() for x in draw_inputs())
    token_mask = HOLES[:1].expand(2, -1)
    weights = (q @ k.mT / 2).masked_fill(~token_mask[:, None, None, :], float("-inf")).softmax(-1)
    weights, values = (x * token_mask[:, None, :, None] for x in (weights, v))
    exact = weights @ values
    draws = torch.stack(
        [unreduced_jlt(num_features)(q, k, v, token_mask) for _ in range(num_trials)]
    )  # t b h n p
    assert ((draws.mean(0) - exact).abs() <= 5 * draws.std(0) / num_trials**0.5).all()

    squared_error = (draws - exact).square().sum((-1, -2))  # t b h
    norm_w, norm_v, norm_exact = (x.square().sum((-1, -2)) for x in (weights, values, exact))
    theory = (norm_w * norm_v + norm_exact) / num_features  # b h
    standard_error = squared_error.std(0) / num_trials**0.5
    assert ((squared_error.mean(0) - theory).abs() < 3 * standard_error).all()


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="init_std=0"):
        LinformerAttention(DIMS, projection_dim=4, init_std=0.0, train_projection=True)
    with pytest.raises(ValueError, match="projection_dim=0"):
        linformer(0)
    with pytest.raises(ValueError, match="num_features=-1"):
        unreduced_jlt(-1)
