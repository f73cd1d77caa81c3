"""LSH attention against its limits, its formula, and independent implementations."""

from itertools import pairwise

import pytest
import torch
from reformer_pytorch.reformer_pytorch import LSHAttention
from torch import Tensor
from torch.testing import assert_close
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from attention.base import AttentionDims
from attention.reformer import ReformerAttention, hash_tokens, num_directions

NUM_HEADS, HEAD_DIM, CHUNK, LENGTH = 2, 8, 4, 32
DIMS = AttentionDims(NUM_HEADS, HEAD_DIM, LENGTH)


def reformer(
    num_hashes: int, *, chunk_size: int = CHUNK, max_seq_len: int = LENGTH
) -> ReformerAttention:
    dims = AttentionDims(NUM_HEADS, HEAD_DIM, max_seq_len)
    return ReformerAttention(dims, num_hashes=num_hashes, chunk_size=chunk_size)


def draw_inputs(num_sequences: int, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Unit-scale queries, which are the keys as well, and values: b h n p, float64."""
    qk, v = torch.randn(2, num_sequences, NUM_HEADS, length, HEAD_DIM, dtype=torch.float64)
    return qk.requires_grad_(), v.requires_grad_()


def scattered_mask(*num_tokens: int, length: int = LENGTH) -> Tensor:
    """Sequences of so many tokens, with holes."""
    return torch.rand(len(num_tokens), length).argsort(-1) < torch.tensor(num_tokens)[:, None]


def assert_same_with_gradients(
    actual: Tensor, expected: Tensor, inputs: tuple[Tensor, ...], tolerance: float = 1e-9
) -> None:
    probe = torch.randn_like(expected)
    assert_close(actual, expected, rtol=0, atol=tolerance)
    assert_close(
        torch.autograd.grad((actual * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
        rtol=0,
        atol=10 * tolerance,
    )


def shared_qk_scores(qk: Tensor) -> Tensor:
    """q_i . k_j with keys of unit length, to the epsilon of the authors' code."""
    unit_length = qk.square().mean(-1, keepdim=True).add(1e-6).mul(qk.shape[-1]).sqrt()
    return qk @ (qk / unit_length).mT


def full_attention(qk: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Every token attends to all others, or to itself where there is no other."""
    is_alone = (mask.sum(-1) == 1)[:, None, None]
    allowed = mask[:, None, :] & (~torch.eye(qk.shape[2], dtype=torch.bool) | is_alone)
    scores = shared_qk_scores(qk).masked_fill(~allowed[:, None], -torch.inf)
    return (scores.softmax(-1) @ v).masked_fill(~mask[:, None, :, None], 0)


def transcription(qk: Tensor, v: Tensor, rotations: Tensor) -> Tensor:
    """The tokens of one sequence and head, one by one: qk, v n p; rotations r p c."""
    count = len(qk)
    num_buckets = 2
    while num_buckets < 2 * count / CHUNK:
        num_buckets *= 2
    num_chunks = (count + CHUNK - 1) // CHUNK
    scores = shared_qk_scores(qk).exp()
    numerator, denominator = torch.zeros_like(v), torch.zeros_like(v)
    for rotation in rotations:
        rotated = qk @ rotation[:, : num_buckets // 2]
        buckets = torch.cat([rotated, -rotated], dim=-1).argmax(-1).tolist()
        order = sorted(range(count), key=lambda token: (buckets[token], token))
        chunk_of = {token: slot // CHUNK for slot, token in enumerate(order)}
        for i in range(count):
            in_reach = {chunk_of[i], (chunk_of[i] - 1) % num_chunks}
            weights = scores[i] * torch.tensor(
                [float(chunk_of[j] in in_reach and j != i) for j in range(count)]
            )
            numerator[i] += weights @ v
            denominator[i] += weights.sum()
    return numerator / denominator


@pytest.mark.parametrize("num_hashes", [1, 3])
def test_two_chunks_attend_to_all_other_tokens_whatever_the_hash(num_hashes: int) -> None:
    torch.manual_seed(0)
    inputs, mask = draw_inputs(6), scattered_mask(8, 7, 5, 4, 3, 1)
    actual = reformer(num_hashes)(inputs[0], *inputs, mask)
    assert_same_with_gradients(actual, full_attention(*inputs, mask), inputs)


def test_a_sequence_within_one_chunk_attends_to_all_other_tokens() -> None:
    torch.manual_seed(1)
    inputs = draw_inputs(2)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    actual = reformer(2, chunk_size=2 * LENGTH)(inputs[0], *inputs, mask)
    assert_same_with_gradients(actual, full_attention(*inputs, mask), inputs)


@pytest.mark.parametrize("num_hashes", [1, 2])
def test_output_and_gradient_equal_those_of_the_formula_on_each_sequence_alone(
    num_hashes: int,
) -> None:
    torch.manual_seed(2)
    inputs, mask = draw_inputs(5), scattered_mask(32, 29, 18, 9, 2)
    core = reformer(num_hashes)
    rotations = core.draw_rotations(inputs[0]).double()
    expected = torch.zeros_like(inputs[1])
    for b, keys in enumerate(mask):
        for head in range(NUM_HEADS):
            rows = [x[b, head, keys] for x in inputs]
            expected[b, head, keys] = transcription(*rows, rotations[head])
    assert_same_with_gradients(core.attend(*inputs, mask, rotations), expected, inputs)


def test_transformers_computes_the_same_in_one_round() -> None:
    torch.manual_seed(3)
    config = ReformerConfig(
        attention_head_size=HEAD_DIM,
        hidden_size=NUM_HEADS * HEAD_DIM,
        num_attention_heads=NUM_HEADS,
        lsh_attn_chunk_length=CHUNK,
        num_buckets=16,
        num_hashes=1,
        hash_seed=0,
        is_decoder=False,
    )
    independent = LSHSelfAttention(config).double().eval()
    x = torch.randn(3, LENGTH, config.hidden_size, dtype=torch.float64, requires_grad=True)
    projections = (independent.query_key, independent.value)
    qk, v = (layer(x).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2) for layer in projections)
    expected = independent(x).hidden_states
    torch.manual_seed(config.hash_seed)
    rotations = torch.randn(NUM_HEADS, HEAD_DIM, 1, 8, dtype=torch.float64).transpose(1, 2)
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    actual = reformer(1).attend(qk, v, mask, rotations).transpose(1, 2).flatten(2)
    assert_same_with_gradients(actual, expected, (x,))


def test_reformer_pytorch_computes_the_same_in_one_round() -> None:
    torch.manual_seed(4)
    inputs = draw_inputs(3)
    independent = LSHAttention(bucket_size=CHUNK, n_hashes=1)
    torch.manual_seed(0)
    # It scales logits by 1 / sqrt(p), and has half as many buckets.
    scaled_qk = inputs[0].flatten(0, 1) * HEAD_DIM**0.5
    expected = independent(scaled_qk, inputs[1].flatten(0, 1))[0].unflatten(0, (3, NUM_HEADS))
    torch.manual_seed(0)
    drawn = torch.randn(1, HEAD_DIM, 1, 4, dtype=torch.float64).transpose(1, 2)
    # A direction of zeros never wins.
    rotations = torch.cat([drawn, torch.zeros_like(drawn)], dim=-1).expand(NUM_HEADS, -1, -1, -1)
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    actual = reformer(1).attend(*inputs, mask, rotations)
    assert_same_with_gradients(actual, expected, inputs, 1e-5)


def test_more_rounds_come_closer_to_full_attention() -> None:
    torch.manual_seed(5)
    inputs = draw_inputs(4, length=256)
    mask = torch.ones(4, 256, dtype=torch.bool)
    expected = full_attention(*inputs, mask)
    cores = [reformer(num_hashes, max_seq_len=256) for num_hashes in (1, 2, 4, 8)]
    with torch.no_grad():
        errors = [(core(inputs[0], *inputs, mask) - expected).norm() for core in cores]
    assert all(later < 0.9 * earlier for earlier, later in pairwise(errors))


@pytest.mark.parametrize(
    ("length", "num_buckets"), [(1024, 32), (2000, 64), (2048, 64), (4000, 128), (4096, 128)]
)
def test_the_number_of_buckets_follows_the_number_of_tokens(length: int, num_buckets: int) -> None:
    torch.manual_seed(6)
    q = torch.randn(1, 1, 4096, 64)
    rotations = torch.eye(64)[None, None]
    buckets = hash_tokens(q, torch.arange(4096)[None] < length, rotations, 64)
    assert num_directions(length, 64) == num_buckets // 2
    assert len(buckets[0, 0, 0, :length].unique()) == num_buckets


def test_a_seed_hashes_a_sequence_alike_alone_and_padded_among_others() -> None:
    torch.manual_seed(7)
    inputs, mask, core = draw_inputs(3), scattered_mask(17, 32, 3), reformer(2)
    mask[0, 20:] = False
    torch.manual_seed(0)
    among_others = core(inputs[0], *inputs, mask)[:1, :, :20]
    torch.manual_seed(0)
    qk, v = (x[:1, :, :20] for x in inputs)
    assert_close(core(qk, qk, v, mask[:1, :20]), among_others)


def test_autocast_does_not_reach_hash_and_logits() -> None:
    torch.manual_seed(8)
    inputs, mask = [x.to(torch.bfloat16) for x in draw_inputs(2)], scattered_mask(32, 20)
    core = reformer(2)
    rotations = core.draw_rotations(inputs[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = core.attend(*inputs, mask, rotations)
    assert_close(actual, core.attend(*inputs, mask, rotations), rtol=0, atol=0)


def test_hash_and_logits_of_bfloat16_inputs_are_not_rounded() -> None:
    torch.manual_seed(9)
    qk, v = (x.to(torch.bfloat16) for x in draw_inputs(8))
    mask, core = scattered_mask(*[32] * 8), reformer(2)
    rotations = core.draw_rotations(qk)
    expected = core.attend(4 * qk.double(), v.double(), mask, rotations)
    error = (core.attend(4 * qk, v, mask, rotations) - expected).norm() / expected.norm()
    assert error < 5e-3  # bfloat16 resolves 0.4 %


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_hashes": 0}, "num_hashes=0"), ({"num_hashes": 1, "chunk_size": 0}, "chunk_size=0")],
)
def test_impossible_settings_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reformer(**arguments)
