"""Algorithm 1 cut to tokens, with its gradient written out, against the form for autograd."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from attention.base import AttentionDims
from attention.conformance.cost import FUSED_ON_CPU, cost
from attention.conformance.subject import BLOCK_SIZE, NUM_FEATURES, Subject
from attention.conformance.suite import PROPERTIES, examine
from attention.skeinformer import SkeinformerAttention
from attention.skeinformer_cpu import sequences
from lra.variants import load_miniature

VARIANTS = (
    "skeinformer",
    "skeinformer_uniform",
    "skeinformer_simple_norm",
    "skeinformer_no_reuse",
    "skeinformer_uniform_released",
    "skeinformer_simple_norm_released",
)
MIN_SCORES = "attention.skeinformer_cpu.MIN_SCORES"
B, H, N, P = 5, 2, 70, 8


@pytest.fixture(autouse=True)
def _at_any_size(monkeypatch):
    monkeypatch.setattr(MIN_SCORES, 0)


@pytest.fixture
def mask():
    """Two neighbors of one length, holes, no tokens, and fewer tokens than samples."""
    mask = torch.arange(N) < torch.tensor([61, 61, 70, 0, 7])[:, None]
    mask[2, 3:50:2] = False
    return mask


def make_core(variant="skeinformer", num_features=12):
    build = load_miniature(variant, num_features, BLOCK_SIZE)
    return build(AttentionDims(num_heads=H, head_dim=P, max_seq_len=4096))


@pytest.mark.parametrize("variant", VARIANTS)
def test_output_and_gradients_are_those_of_the_form_for_autograd(variant, mask, monkeypatch):
    core = make_core(variant)
    core = SkeinformerAttention(
        core.dims, num_samples=12, num_pilots=40, column_sampling=core.column_sampling,
        row_normalization=core.row_normalization, reuse_pilot=core.reuse_pilot,
    )  # fmt: skip
    inputs = [torch.randn(B, H, N, P, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    noise = core.draw_noise(inputs[0])
    direction = torch.randn_like(inputs[0])
    results = []
    for min_scores in (0, float("inf")):
        monkeypatch.setattr(MIN_SCORES, min_scores)
        out = core.attend(*inputs, mask, *noise)
        results.append([out, *torch.autograd.grad(out, inputs, direction)])
    assert type(out.grad_fn) is not type(results[0][0].grad_fn)
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["skeinformer", "skeinformer_simple_norm"])
@pytest.mark.parametrize("checked", PROPERTIES, ids=lambda checked: checked.name)
def test_the_contract_holds_at_any_size(variant, checked):
    verdict = examine(Subject(variant, load_miniature(variant, NUM_FEATURES, BLOCK_SIZE)), checked)
    if verdict.error is not None:
        raise verdict.error
    assert not verdict.is_error, f"{variant}, {checked.name}: {verdict.explanation}"


def test_pilot_scores_are_computed_once_and_never_kept():
    n, d = 1024, 63  # with the key of the rest 64, which needs no filling up
    measured = cost(make_core(num_features=d), n)
    assert measured.multiply_adds == pytest.approx(4 * n * d * P, rel=0.02)
    assert cost(make_core("skeinformer_no_reuse", d), n).multiply_adds == pytest.approx(
        3 * n * d * P, rel=0.02
    )
    assert measured.saved_bytes < 1.15 * 4 * (4 * n * H * P)  # q, k, v and the output, in float32


def test_padding_costs_nothing():
    core = make_core()
    counts = []
    for num_positions in (200, 400):
        mask = (torch.arange(num_positions) < 200).expand(2, -1)
        qkv = [torch.randn(2, H, num_positions, P) for _ in range(3)]
        flops = FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU)
        with torch.no_grad(), flops:
            core(*qkv, mask)
        counts.append(flops.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_sequences_of_one_length_are_computed_together(mask):
    runs = list(sequences(mask))
    assert [(b.start, b.stop) for b, _ in runs] == [(0, 2), (2, 3), (4, 5)]
    assert runs[0][1] == slice(0, 61)
    assert runs[1][1].tolist() == mask[2].nonzero().flatten().tolist()


def test_autocast_does_not_lower_the_precision(mask):
    core = make_core()
    qkv = [torch.randn(B, H, N, P) for _ in range(3)]
    noise = core.draw_noise(qkv[0])
    expected = core.attend(*qkv, mask, *noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(core.attend(*qkv, mask, *noise), expected)


def test_a_compiled_graph_does_not_depend_on_lengths(monkeypatch):
    sketch = make_core().cpu_sketch
    assert sketch.pays_off(torch.empty(1, H, N, P))
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert not sketch.pays_off(torch.empty(1, H, N, P))


def test_a_short_sequence_is_not_worth_a_loop(monkeypatch):
    monkeypatch.undo()
    core = make_core(num_features=256)
    assert core.cpu_sketch.pays_off(torch.empty(8, H, 4096, P))
    assert not core.cpu_sketch.pays_off(torch.empty(8, H, 64, P))
    assert not core.cpu_sketch.pays_off(torch.empty(8, H, 4096, P, device="meta"))


def test_half_precision_is_computed_in_float32(mask):
    core = make_core()
    qkv = [torch.randn(B, H, N, P, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    noise = core.draw_noise(qkv[0])
    direction = torch.randn_like(qkv[0])
    out = core.attend(*qkv, mask, *noise)
    gradients = torch.autograd.grad(out, qkv, direction)
    wide = [x.detach().float().requires_grad_() for x in qkv]
    expected = core.attend(*wide, mask, *noise)
    expected_gradients = torch.autograd.grad(expected, wide, direction.float())
    for found, reference in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        assert torch.equal(found, reference.bfloat16())


def test_without_a_compiler_the_form_for_autograd_takes_over(monkeypatch):
    monkeypatch.setattr("attention.skeinformer_cpu.is_available", lambda: False)
    assert not make_core().cpu_sketch.pays_off(torch.empty(1, H, N, P))
