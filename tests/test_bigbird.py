"""BigBird against its dense mask, an independent implementation, and the law of its table."""

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.testing import assert_close

from attention.base import AttentionDims
from attention.bigbird import BigBirdAttention, block_sparse_attention, block_table

BLOCK, RANDOM, HEADS, DIM = 4, 2, 3, 5
ALWAYS_FULL = (4 + RANDOM) * BLOCK


def build(max_seq_len: int, num_random_blocks: int = RANDOM) -> BigBirdAttention:
    dims = AttentionDims(HEADS, DIM, max_seq_len)
    return BigBirdAttention(dims, block_size=BLOCK, num_random_blocks=num_random_blocks)


def random_qkv(b: int, n: int) -> list[Tensor]:
    return [torch.randn(b, HEADS, n, DIM, dtype=torch.float64).requires_grad_() for _ in range(3)]


def dense_softmax(
    q: Float[Tensor, "b h n p"],
    k: Float[Tensor, "b h n p"],
    v: Float[Tensor, "b h n p"],
    allowed: Bool[Tensor, "b h n n"],
) -> Float[Tensor, "b h n p"]:
    """Softmax over the allowed pairs, written out; zero for rows without any."""
    weights = (q @ k.mT / q.shape[-1] ** 0.5).exp() * allowed
    return weights @ v / weights.sum(-1, keepdim=True).clamp_min(1e-300)


def allowed_pairs(
    table: Int[Tensor, "h m t"], num_blocks: int, mask: Bool[Tensor, " n"]
) -> Bool[Tensor, "h n n"]:
    """The definition: block by block from the table, all for the two global rows."""
    n, last = len(mask), num_blocks - 1
    allowed = torch.zeros(len(table), n, n, dtype=torch.bool)
    for h, rows in enumerate(table.tolist()):
        for i in range(num_blocks):
            blocks = range(num_blocks) if i in (0, last) else [j for j in rows[i] if j >= 0]
            assert len(set(blocks)) == len(blocks), "a block is taken twice"
            for j in blocks:
                allowed[h, i * BLOCK : (i + 1) * BLOCK, j * BLOCK : min((j + 1) * BLOCK, n)] = True
    return allowed & mask & mask[:, None]


def last_block(mask: Bool[Tensor, " n"]) -> int:
    return int(mask.nonzero().max()) // BLOCK + 1 if mask.any() else 1


def right_padded(lengths: list[int], n: int) -> Bool[Tensor, "b n"]:
    return torch.arange(n) < torch.tensor(lengths)[:, None]


def assert_same_function(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Equal values and equal gradients."""
    assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(expected)
    for got, want in zip(
        torch.autograd.grad((actual * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n", [ALWAYS_FULL + 1, 12 * BLOCK - 1, 12 * BLOCK])
def test_it_is_softmax_under_the_dense_mask_of_its_table(n: int) -> None:
    core = build(max_seq_len=13 * BLOCK)
    lengths = [n, n - BLOCK - 1, 8 * BLOCK, 5 * BLOCK + 1, 3 * BLOCK, 2 * BLOCK, BLOCK, 1, 0]
    mask = right_padded(lengths, n)
    with_holes = torch.rand(4, n) < 0.3
    with_holes[0, BLOCK : 3 * BLOCK] = False  # blocks without any token
    mask = torch.cat([mask, with_holes])
    q, k, v = random_qkv(len(mask), n)
    counts = [last_block(row) for row in mask]
    allowed = torch.stack(
        [
            allowed_pairs(core.block_tables[c - 1], c, row)
            for c, row in zip(counts, mask, strict=True)
        ]
    )
    assert_same_function(core(q, k, v, mask), dense_softmax(q, k, v, allowed), [q, k, v])


@pytest.mark.parametrize("n", [1, BLOCK, 4 * BLOCK, 5 * BLOCK - 1, ALWAYS_FULL, 12 * BLOCK])
def test_a_sequence_of_few_blocks_has_exact_attention_however_far_it_is_padded(n: int) -> None:
    mask = right_padded([min(n, ALWAYS_FULL), 2 * BLOCK + 1, 1], n)
    mask = torch.cat([mask, mask & (torch.rand_like(mask, dtype=torch.float) < 0.5)])
    q, k, v = random_qkv(len(mask), n)
    pairs = (mask[:, None, :, None] & mask[:, None, None, :]).expand(-1, HEADS, -1, -1)
    expected = dense_softmax(q, k, v, pairs)
    assert_same_function(build(max_seq_len=12 * BLOCK)(q, k, v, mask), expected, [q, k, v])


def test_enough_random_blocks_make_it_exact_at_any_length() -> None:
    c = 11
    n = c * BLOCK
    q, k, v = random_qkv(2, n)
    everything = torch.ones(2, n, dtype=torch.bool)
    table = block_table(torch.rand(HEADS, c, c), c, num_random_blocks=c).expand(2, HEADS, c, -1)
    attended = block_sparse_attention(q, k, v, everything, torch.tensor([c, c]), table, BLOCK)
    pairs = torch.ones(2, HEADS, n, n, dtype=torch.bool)
    assert_same_function(attended, dense_softmax(q, k, v, pairs), [q, k, v])


def test_padding_further_changes_nothing() -> None:
    core = build(max_seq_len=20 * BLOCK)
    for length in (ALWAYS_FULL + 1, 9 * BLOCK):
        q, k, v = random_qkv(1, 20 * BLOCK)
        padded = core(q, k, v, right_padded([length], 20 * BLOCK))
        cut = [x[:, :, :length] for x in (q, k, v)]
        assert_close(padded[:, :, :length], core(*cut, right_padded([length], length)))
        assert padded[:, :, length:].abs().max() == 0


def test_each_row_takes_the_window_the_ends_and_as_many_random_blocks_as_there_are() -> None:
    max_blocks = 11
    priority = torch.rand(HEADS, max_blocks, max_blocks)
    for c in range(3, max_blocks + 1):
        table = block_table(priority, c, RANDOM)
        for rows in table.tolist():
            for i in range(1, c - 1):
                fixed = {0, c - 1, i - 1, i, i + 1}
                taken = [j for j in rows[i] if j >= 0]
                random = set(taken) - fixed
                assert fixed <= set(taken) <= set(range(c))
                assert len(taken) == len(set(taken))
                assert len(random) == min(RANDOM, c - len(fixed))


def test_random_blocks_are_uniform_over_the_other_blocks_of_the_whole_sequence() -> None:
    num_tables, c = 5_000, 24
    table = block_table(torch.rand(num_tables, c + 2, c + 2), c, RANDOM)
    for i in range(1, c - 1):
        others = [j for j in range(c) if j not in {0, c - 1, i - 1, i, i + 1}]
        share = torch.bincount(table[:, i, 5:].flatten().long(), minlength=c) / num_tables
        expected = torch.zeros(c)
        expected[others] = RANDOM / len(others)
        five_sigma = 5 * (0.25 / num_tables) ** 0.5
        assert_close(share, expected, rtol=0, atol=five_sigma)


def test_every_layer_and_head_has_its_own_table_and_a_call_draws_nothing() -> None:
    n = 20 * BLOCK
    layers = [build(n) for _ in range(2)]
    tables = [table for layer in layers for table in layer.block_tables[-1]]
    assert len({tuple(table.flatten().tolist()) for table in tables}) == 2 * HEADS
    q, k, v = random_qkv(1, n)
    state = torch.get_rng_state()
    layers[0](q, k, v, torch.ones(1, n, dtype=torch.bool))
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("name", ["block_size", "num_random_blocks"])
def test_impossible_sizes_are_refused(name: str) -> None:
    sizes = {"block_size": 4, "num_random_blocks": 2, name: 0}
    with pytest.raises(ValueError, match=f"{name}=0"):
        BigBirdAttention(AttentionDims(1, 4, 32), **sizes)


def test_it_agrees_with_transformers_given_the_same_random_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import BigBirdConfig
    from transformers.models.big_bird import modeling_big_bird as theirs

    c = 2 * RANDOM + 6
    n = c * BLOCK
    core = build(max_seq_len=n)
    random_blocks = core.block_tables[-1, :, 1:-1, 5:]
    reference = theirs.BigBirdBlockSparseAttention(
        BigBirdConfig(
            hidden_size=HEADS * DIM,
            num_attention_heads=HEADS,
            block_size=BLOCK,
            num_random_blocks=RANDOM,
            max_position_embeddings=n,
        )
    )
    monkeypatch.setattr(
        reference, "_bigbird_block_rand_mask_with_head", lambda **_: list(random_blocks.numpy())
    )
    mask = torch.rand(2, n) < 0.7
    mask[:, -1] = True  # their last global block is the last of the padded length
    blocks, band, rows, columns = theirs.BigBirdModel.create_masks_for_block_sparse_attn(
        mask.double(), BLOCK
    )
    q, k, v = random_qkv(2, n)
    masks, sizes = (band, rows, columns, blocks, blocks), (HEADS, RANDOM, DIM, BLOCK, BLOCK)
    expected, _ = reference.bigbird_block_sparse_attention(
        q, k, v, *masks, *sizes, 2, n, n, seed=0, plan_from_length=None, plan_num_rand_blocks=None
    )
    assert_same_function(core(q, k, v, mask), expected.transpose(1, 2), [q, k, v])
