"""The Nyström approximation against its limits, its formula, and independent implementations."""

from itertools import pairwise

import pytest
import torch
from nystrom_attention import NystromAttention
from torch import Tensor
from torch.testing import assert_close
from transformers import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from attention.base import AttentionDims
from attention.nystromformer import NystromformerAttention, cut_segments
from attention.softmax import FusedSoftmaxAttention

NUM_HEADS, HEAD_DIM, LENGTH = 2, 8, 24
DIMS = AttentionDims(NUM_HEADS, HEAD_DIM, LENGTH)


def nystromformer(
    num_landmarks: int, *, num_iterations: int = 6, conv_kernel_size: int | None = None
) -> NystromformerAttention:
    return NystromformerAttention(
        DIMS,
        num_landmarks=num_landmarks,
        num_iterations=num_iterations,
        conv_kernel_size=conv_kernel_size,
    ).double()


def draw_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Unit-scale q, k, v of three sequences: b h n p, float64."""
    q, k, v = torch.randn(3, 3, NUM_HEADS, LENGTH, HEAD_DIM, dtype=torch.float64)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def token_mask() -> Tensor:
    """One sequence with holes, one with padding at its end, one of seven tokens."""
    position = torch.arange(LENGTH)
    return torch.stack([position % 4 != 1, position < 19, (position > 2) & (position < 10)])


def assert_same_with_gradients(
    actual: Tensor, expected: Tensor, inputs: tuple[Tensor, ...], tolerance: float = 1e-9
) -> None:
    probe = torch.randn_like(expected)
    assert_close(actual, expected, rtol=0, atol=tolerance)
    assert_close(
        torch.autograd.grad((actual * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
        rtol=0,
        atol=20 * tolerance,
    )


def softmax_rows(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.T / q.shape[-1] ** 0.5
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def transcription(q: Tensor, k: Tensor, v: Tensor, num_landmarks: int) -> Tensor:
    """F Z G V for the tokens of one sequence and head: n p."""
    count = len(q)
    size = min(num_landmarks, count)
    bounds = [segment * count // size for segment in range(size + 1)]
    spans = [slice(*pair) for pair in pairwise(bounds)]
    landmark_q, landmark_k = (torch.stack([x[span].mean(0) for span in spans]) for x in (q, k))
    kernel = softmax_rows(landmark_q, landmark_k)
    identity = torch.eye(size, dtype=q.dtype)
    inverse = kernel.T / (kernel.sum(0).max() * kernel.sum(1).max())
    for _ in range(6):
        product = kernel @ inverse
        inner = 15 * identity - product @ (7 * identity - product)
        inverse = inverse @ (13 * identity - product @ inner) / 4
    return softmax_rows(q, landmark_k) @ inverse @ softmax_rows(landmark_q, k) @ v


def correlate(v: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
    """The depthwise convolution, offset by offset, of zero where there is no token."""
    v = v * mask[:, None, :, None]
    out = torch.zeros_like(v)
    reach = filters.shape[-1] // 2
    for offset in range(-reach, reach + 1):
        read = slice(max(offset, 0), LENGTH + min(offset, 0))
        write = slice(max(-offset, 0), LENGTH + min(-offset, 0))
        out[:, :, write] += filters[:, offset + reach, None, None] * v[:, :, read]
    return out


@pytest.mark.parametrize(("num_iterations", "tolerance"), [(20, 1e-6), (40, 1e-11)])
def test_a_landmark_for_every_token_and_a_converged_inverse_give_softmax(
    num_iterations: int, tolerance: float
) -> None:
    torch.manual_seed(0)
    inputs, mask = draw_inputs(), token_mask()
    actual = nystromformer(LENGTH, num_iterations=num_iterations)(*inputs, mask)
    expected = FusedSoftmaxAttention(DIMS, dropout=0.0)(*inputs, mask)
    assert_same_with_gradients(actual, expected, inputs, tolerance)


@pytest.mark.parametrize("conv_kernel_size", [None, 5])
def test_output_and_gradient_equal_those_of_the_formula_on_each_sequence_alone(
    conv_kernel_size: int | None,
) -> None:
    torch.manual_seed(1)
    inputs, mask = draw_inputs(), token_mask()
    core = nystromformer(10, conv_kernel_size=conv_kernel_size)
    expected = torch.zeros_like(inputs[2])
    for b, keys in enumerate(mask):
        for head in range(NUM_HEADS):
            rows = [x[b, head, keys] for x in inputs]
            expected[b, head, keys] = transcription(*rows, num_landmarks=10)
    if core.conv is not None:
        convolved = correlate(inputs[2], core.conv.weight[:, 0, :, 0], mask)
        expected = expected + convolved * mask[:, None, :, None]
    leaves = (*inputs, *core.parameters())
    assert_same_with_gradients(core(*inputs, mask), expected, leaves)


def test_surplus_landmarks_contribute_nothing() -> None:
    torch.manual_seed(2)
    inputs = tuple(x[2:] for x in draw_inputs())
    mask = token_mask()[2:]
    as_many_as_tokens, surplus = nystromformer(int(mask.sum())), nystromformer(LENGTH)
    assert_same_with_gradients(surplus(*inputs, mask), as_many_as_tokens(*inputs, mask), inputs)


@pytest.mark.parametrize("num_landmarks", [1, 5, 16])
def test_every_token_is_in_one_segment_and_sizes_differ_by_one_at_most(num_landmarks: int) -> None:
    torch.manual_seed(3)
    counts = torch.arange(1, 17)
    keys = torch.rand(16, 16).argsort(-1) < counts[:, None]  # 1 to 16 keys, scattered
    members, filled = cut_segments(keys, num_landmarks)
    for count, row_keys, row, row_filled in zip(counts, keys, members, filled, strict=True):
        assert row[row_filled].tolist() == row_keys.nonzero().flatten().tolist()
        sizes = row_filled.sum(-1)[: min(int(count), num_landmarks)]
        assert sizes.sum() == count
        assert sizes.min() >= max(1, sizes.max() - 1)


def test_transformers_computes_the_same_on_full_sequences() -> None:
    torch.manual_seed(4)
    config = NystromformerConfig(
        hidden_size=NUM_HEADS * HEAD_DIM,
        num_attention_heads=NUM_HEADS,
        num_landmarks=6,
        segment_means_seq_len=LENGTH,
        conv_kernel_size=7,
    )
    independent = NystromformerSelfAttention(config).double().eval()
    independent.init_option = "exact"  # scaled for each sequence and head
    core = nystromformer(6, conv_kernel_size=7)
    core.conv.load_state_dict(independent.conv.state_dict())
    x = torch.randn(3, LENGTH, config.hidden_size, dtype=torch.float64, requires_grad=True)
    projections = (independent.query, independent.key, independent.value)
    heads = [layer(x).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2) for layer in projections]
    actual = core(*heads, torch.ones(3, LENGTH, dtype=torch.bool)).transpose(1, 2).flatten(2)
    assert_same_with_gradients(actual, independent(x)[0], (x,))


def test_nystrom_attention_computes_the_same_for_one_sequence_and_head() -> None:
    torch.manual_seed(5)
    independent = NystromAttention(
        HEAD_DIM, dim_head=HEAD_DIM, heads=1, num_landmarks=6, residual=False
    ).double()
    independent.to_out = torch.nn.Identity()
    x = torch.randn(1, LENGTH, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    q, k, v = independent.to_qkv(x)[:, None].chunk(3, dim=-1)
    actual = nystromformer(6)(q, k, v, torch.ones(1, LENGTH, dtype=torch.bool))[:, 0]
    assert_same_with_gradients(actual, independent(x), (x,))


def test_autocast_does_not_reach_the_inverse() -> None:
    torch.manual_seed(6)
    inputs = tuple(x.to(torch.bfloat16) for x in draw_inputs())
    core = nystromformer(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = core(*inputs, token_mask())
    assert_close(actual, core(*inputs, token_mask()), rtol=0, atol=0)


def test_the_inverse_of_bfloat16_inputs_is_not_rounded() -> None:
    torch.manual_seed(7)
    q, k, v = (x.to(torch.bfloat16) for x in draw_inputs())
    core, mask = nystromformer(6), token_mask()
    expected = core(*(x.double() for x in (2 * q, 2 * k, v)), mask)
    error = (core(2 * q, 2 * k, v, mask) - expected).norm() / expected.norm()
    assert error < 1e-2  # bfloat16 resolves 0.4 %


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_landmarks": 0}, "num_landmarks=0"),
        ({"num_landmarks": 4, "num_iterations": 0}, "num_iterations=0"),
        ({"num_landmarks": 4, "conv_kernel_size": 4}, "conv_kernel_size=4"),
        ({"num_landmarks": 4, "conv_kernel_size": -1}, "conv_kernel_size=-1"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nystromformer(**arguments)
