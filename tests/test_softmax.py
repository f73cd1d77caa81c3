"""Standard attention, V-Mean and the projections around a core."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attention.base import AttentionCore, AttentionDims
from attention.multihead import MultiHeadAttention
from attention.softmax import FusedSoftmaxAttention, SoftmaxAttention
from attention.v_mean import VMeanAttention

DIMS = AttentionDims(num_heads=2, head_dim=4, max_seq_len=32)


@pytest.fixture
def inputs():
    q, k, v = (torch.randn(3, 2, 11, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.rand(3, 11) < 0.7
    mask[0], mask[2] = True, False
    return q, k, v, mask


@pytest.mark.parametrize("variant", [SoftmaxAttention, FusedSoftmaxAttention])
def test_softmax_is_its_formula_over_the_tokens(inputs, variant):
    q, k, v, mask = inputs
    out = variant(DIMS, dropout=0.0)(q, k, v, mask)
    for b in range(3):
        tokens = mask[b].nonzero().flatten()
        expected = torch.zeros_like(v[b])
        scores = q[b][:, tokens] @ k[b][:, tokens].mT / 2
        expected[:, tokens] = (scores.exp() / scores.exp().sum(-1, keepdim=True)) @ v[b][:, tokens]
        assert_close(out[b], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", [SoftmaxAttention, FusedSoftmaxAttention])
def test_dropout_of_weights_is_on_in_training_only(inputs, variant):
    core = variant(DIMS, dropout=0.5)
    exact = variant(DIMS, dropout=0.0)(*inputs)
    assert not torch.equal(core(*inputs), exact)
    assert_close(torch.stack([core(*inputs) for _ in range(2000)]).mean(0), exact, rtol=0, atol=0.2)
    assert_close(core.eval()(*inputs), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", [SoftmaxAttention, FusedSoftmaxAttention])
def test_dropout_falls_on_weights_not_on_features(inputs, variant):
    q, k, v, mask = inputs
    out = variant(DIMS, dropout=0.5)(q, k, torch.ones_like(v), mask)
    assert_close(out, out[..., :1].expand_as(out))
    assert out[0].std() > 0.1


def test_softmax_agrees_with_torchs_own_multi_head_attention(inputs):
    mask = inputs[-1][:2]
    ours = MultiHeadAttention(SoftmaxAttention(DIMS, dropout=0.0), 8).double()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.in_proj_weight, theirs.in_proj_bias = ours.project_in.weight, ours.project_in.bias
    theirs.out_proj = ours.project_out
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    expected, _ = theirs(x, x, x, key_padding_mask=~mask)
    assert_close(ours(x.flatten(0, 1), [mask])[mask.flatten()], expected[mask], rtol=0, atol=1e-12)


def test_v_mean_is_the_mean_over_tokens(inputs):
    _, _, v, mask = inputs
    out = VMeanAttention(DIMS)(v, v, v, mask)
    assert_close(
        out[1, :, mask[1]], v[1][:, mask[1]].mean(1, keepdim=True).expand(-1, mask[1].sum(), -1)
    )
    assert out[2].abs().max() == 0


def test_inputs_that_share_a_projection_are_one_tensor():
    class Shared(AttentionCore):
        projections = "qk,v"

        def forward(self, q, k, v, token_mask):
            assert q is k
            assert v is not k
            return v

    attention = MultiHeadAttention(Shared(DIMS), 8)
    assert attention.project_in.out_features == 16
    attention(torch.randn(5, 8), [torch.ones(1, 5, dtype=torch.bool)])


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_is_no_probability_is_refused(dropout):
    with pytest.raises(ValueError, match=f"dropout={dropout}"):
        SoftmaxAttention(DIMS, dropout=dropout)
