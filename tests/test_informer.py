"""Informer against a literal transcription of Algorithm 1, its limits, and its cost."""

import math
from typing import Any

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from attention.base import AttentionDims
from attention.informer import (
    InformerAttention,
    max_mean_measurement,
    num_active_queries,
    top_queries,
)

DIM = 5


def build(
    num_heads: int, max_seq_len: int, *, masked: bool, num_features: int = 6
) -> InformerAttention:
    dims = AttentionDims(num_heads, DIM, max_seq_len)
    return InformerAttention(dims, num_features=num_features, masks_padding=masked)


def random_qkv(b: int, h: int, n: int) -> list[Tensor]:
    return [torch.randn(b, h, n, DIM, dtype=torch.float64).requires_grad_() for _ in range(3)]


def masks_of_all_kinds(n: int) -> Bool[Tensor, "b n"]:
    """Full, padded right and left, with holes, one token, none."""
    position = torch.arange(n)
    holes = torch.rand(2, n) < torch.tensor([[0.7], [0.3]])
    regular = [position >= 0, position < n // 2, position > n // 2, position == 3, position < 0]
    return torch.cat([torch.stack(regular), holes])


def algorithm_1(
    q: Float[Tensor, "n p"],
    k: Float[Tensor, "n p"],
    v: Float[Tensor, "n p"],
    noise: Float[Tensor, " U"],
    num_queries: int,
) -> Float[Tensor, "n p"]:
    """One head of one sequence of n tokens, query by query and sampled key by sampled key."""
    n, p = q.shape
    sample = [math.floor(u * n) for u in noise.double().tolist()]
    scores = [[(q[i] @ k[j]).item() / math.sqrt(p) for j in sample] for i in range(n)]
    measurement = [max(row) - sum(row) / len(sample) for row in scores]
    active = sorted(range(n), key=lambda i: -measurement[i])[:num_queries]
    mean = v.sum(0) / n
    rows = [
        torch.softmax(k @ q[i] / math.sqrt(p), 0) @ v if i in active else mean for i in range(n)
    ]
    return torch.stack(rows)


def transcribed(
    inputs: list[Tensor], mask: Bool[Tensor, "b n"], noise: Tensor, num_queries: int, masked: bool
) -> Tensor:
    """Algorithm 1 over the tokens of each sequence, or over all that is there; padding zeroed."""
    out = torch.zeros_like(inputs[2])
    for b, tokens in enumerate(mask):
        seen = (tokens if masked else torch.ones_like(tokens)).nonzero()[:, 0]
        for h in range(out.shape[1] if len(seen) else 0):
            q, k, v = (x[b, h, seen] for x in inputs)
            rows = algorithm_1(q, k, v, noise[b, h], num_queries)
            out = out.index_put((torch.tensor(b), torch.tensor(h), seen), rows)
    return out * mask[:, None, :, None]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("b", "h"), [(7, 2), (7, 1), (1, 2), (1, 1)])
def test_it_is_algorithm_1_on_the_same_sampled_keys(b: int, h: int, masked: bool) -> None:
    n = 23
    core = build(h, n, masked=masked)
    assert 1 < core.num_queries < n // 2
    mask = masks_of_all_kinds(n)[:b]
    inputs = random_qkv(b, h, n)
    noise = torch.rand(b, h, core.num_queries)
    actual = core.attend(*inputs, mask, noise)
    expected = transcribed(inputs, mask, noise, core.num_queries, masked)
    assert_close(actual, expected)
    weights = torch.randn_like(expected)
    for got, want in zip(
        torch.autograd.grad((actual * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        assert_close(got, want)


def test_a_sequence_of_no_more_tokens_than_exact_rows_has_exact_attention() -> None:
    n = 40
    core = build(2, n, masked=True, num_features=11)
    mask = torch.zeros(4, n, dtype=torch.bool)
    mask[0, : core.num_queries] = True
    mask[1, -core.num_queries :] = True
    mask[2, torch.randperm(n)[: core.num_queries]] = True
    mask[3, 5] = True
    q, k, v = random_qkv(4, 2, n)
    scores = (q @ k.mT * DIM**-0.5).masked_fill(~mask[:, None, None, :], -math.inf)
    assert_close(core(q, k, v, mask), scores.softmax(-1) @ v * mask[:, None, :, None])


def test_exactly_u_rows_of_every_sequence_and_head_are_exact_and_the_others_are_the_mean() -> None:
    n = 60
    core = build(2, n, masked=True)
    mask = torch.rand(3, n) < 0.6
    q, k, v = random_qkv(3, 2, n)
    out = core(q, k, v, mask)
    token = mask[:, None, :, None]
    exact = (q @ k.mT * DIM**-0.5).masked_fill(~token.mT, -math.inf).softmax(-1) @ v
    mean = ((v * token).sum(2, keepdim=True) / token.sum(2, keepdim=True)).expand_as(v)
    is_exact, is_mean = (((out - x).abs() < 1e-12).all(-1) & mask[:, None] for x in (exact, mean))
    assert (is_exact.sum(-1) == core.num_queries).all()
    assert ((is_exact ^ is_mean) == mask[:, None]).all()


@pytest.mark.parametrize(
    ("num_features", "seq_len", "u"),
    [
        *[(256, 1024, 259), (256, 2048, 272), (256, 4096, 279)],
        *[(128, 1024, 133), (128, 2048, 136), (128, 4096, 144)],
        *[(8, 1024, 14), (8, 4096, 9)],
    ],
)
def test_u_is_that_of_the_paper(num_features: int, seq_len: int, u: int) -> None:
    assert num_active_queries(num_features, seq_len) == u
    assert build(1, seq_len, masked=False, num_features=num_features).num_queries == u


def test_the_measurement_on_all_keys_is_the_definition_and_no_shift_of_the_keys_moves_it() -> None:
    q, k, _ = random_qkv(2, 3, 1100)  # more queries than a chunk has
    scores = q @ k.mT * DIM**-0.5
    expected = scores.amax(-1) - scores.mean(-1)
    assert_close(max_mean_measurement(q, k), expected)
    shift = 10 * torch.randn(2, 3, 1, DIM, dtype=torch.float64)
    assert_close(max_mean_measurement(q, k + shift), expected)


def test_padding_is_picked_last() -> None:
    measurement = torch.tensor([[[9.0, 1.0, 2.0, 8.0, 0.0]]])
    keys = torch.tensor([[False, True, True, False, True]])
    assert set(top_queries(measurement, keys, 2).flatten().tolist()) == {1, 2}
    assert {1, 2, 4} < set(top_queries(measurement, keys, 4).flatten().tolist())
    assert top_queries(measurement, keys, 9).shape == (1, 1, 5)


def test_the_plain_row_takes_padding_for_tokens() -> None:
    n = 30
    core = build(2, n, masked=False)
    q, k, v = random_qkv(2, 2, n)
    mask = torch.arange(n) < torch.tensor([[20], [0]])
    noise = torch.rand(2, 2, core.num_queries)
    as_tokens = core.attend(q, k, v, torch.ones_like(mask), noise)
    assert_close(core.attend(q, k, v, mask, noise), as_tokens * mask[:, None, :, None])


class LargestTensor(TorchDispatchMode):
    """The largest number of elements of any tensor that exists."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.num_elements = max(self.num_elements, out.untyped_storage().nbytes() // 4)
        return out


def test_no_tensor_holds_a_key_for_every_query_and_sample() -> None:
    b, h, n, p = 1, 2, 2048, 32
    core = InformerAttention(AttentionDims(h, p, n), num_features=256, masks_padding=True)
    q, k, v = (torch.randn(b, h, n, p) for _ in range(3))
    with LargestTensor() as largest:
        core(q, k, v, torch.ones(b, n, dtype=torch.bool))
    assert b * h * n * p <= largest.num_elements < b * h * n * core.num_queries // 2


def test_an_impossible_number_of_features_is_refused() -> None:
    with pytest.raises(ValueError, match="num_features=0"):
        build(1, 8, masked=False, num_features=0)
