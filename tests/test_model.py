"""The backbone around the attention."""

import pytest
import torch
from torch.testing import assert_close

from attention.softmax import SoftmaxAttention
from attention.v_mean import VMeanAttention
from lra.model import Classifier


def make_model(num_sequences=1, **changes):
    arguments = {
        "vocab_size": 16,
        "max_seq_len": 24,
        "num_sequences": num_sequences,
        "num_classes": 10,
        "num_layers": 2,
        "embed_dim": 8,
        "hidden_dim": 12,
        "num_heads": 2,
        "dropout": 0.0,
        "pooling": "token_mean",
        "packed": False,
        "activation_checkpointing": False,
    }
    return Classifier(lambda dims: SoftmaxAttention(dims, dropout=0.0), **(arguments | changes))


@pytest.fixture
def batch():
    tokens = torch.randint(16, (3, 2, 24))
    mask = torch.arange(24) < torch.tensor([24, 9, 1])[:, None]
    return tokens, mask[:, None].expand(3, 2, 24)


def test_padding_never_reaches_a_logit(batch):
    tokens, mask = batch
    model = make_model(num_sequences=2)
    garbage = torch.where(mask, tokens, torch.randint(16, tokens.shape))
    assert_close(model(garbage, mask), model(tokens, mask))


def test_padded_mean_divides_by_the_padded_length(batch):
    tokens, mask = (x[:, :1] for x in batch)
    by_tokens, by_length = make_model(), make_model(pooling="padded_mean")
    by_length.load_state_dict(by_tokens.state_dict())
    pooled = {}
    for name, model in (("tokens", by_tokens), ("length", by_length)):
        model.head = torch.nn.Identity()
        pooled[name] = model(tokens, mask)
    lengths = mask.sum(-1)
    assert_close(pooled["length"] * 24, pooled["tokens"] * lengths)


def test_two_sequences_are_compared_by_product_and_difference(batch):
    tokens, mask = batch
    model = make_model(num_sequences=2)
    model.head = torch.nn.Identity()
    a, b, product, difference = model(tokens, mask).chunk(4, dim=-1)
    assert_close(product, a * b)
    assert_close(difference, a - b)
    swapped = model(tokens.flip(1), mask.flip(1)).chunk(4, dim=-1)
    assert_close(swapped[0], b)


def test_a_sequence_without_tokens_pools_to_zero():
    model = make_model()
    model.head = torch.nn.Identity()
    assert model(torch.zeros(1, 1, 24).long(), torch.zeros(1, 1, 24).bool()).abs().max() == 0


def test_activation_checkpointing_changes_memory_not_gradients(batch):
    tokens, mask = (x[:, :1] for x in batch)
    plain, saving = make_model(), make_model(activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for model in (plain, saving):
        model(tokens, mask).square().sum().backward()
    for p, s in zip(plain.parameters(), saving.parameters(), strict=True):
        assert_close(p.grad, s.grad)


def test_the_papers_backbone_has_the_papers_shape():
    """Two layers, 64, 128, 2 heads: embeddings + layers + norm + head, counted by hand."""
    sizes = {"embed_dim": 64, "hidden_dim": 128, "max_seq_len": 2048}
    model = make_model(**sizes)
    layer = 2 * 128 + (64 * 192 + 192) + (64 * 64 + 64) + (64 * 128 + 128) + (128 * 64 + 64)
    expected = 16 * 64 + 2048 * 64 + 2 * layer + 128 + (64 * 128 + 128) + (128 * 10 + 10)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_a_variant_without_queries_carries_no_weights_for_them():
    with_queries = make_model()
    without = Classifier(
        VMeanAttention,
        vocab_size=16,
        max_seq_len=24,
        num_sequences=1,
        num_classes=10,
        num_layers=2,
        embed_dim=8,
        hidden_dim=12,
        num_heads=2,
        dropout=0.0,
        pooling="token_mean",
        packed=False,
        activation_checkpointing=False,
    )
    counts = [sum(p.numel() for p in m.parameters()) for m in (with_queries, without)]
    assert counts[0] - counts[1] == 2 * 2 * (8 * 8 + 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_heads": 3}, "embed_dim=8 is not a multiple of num_heads=3")],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model(**changes)
