"""The conformance suite itself: it passes exact attention and names what is wrong with others."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from attention.base import AttentionCore, attendable_keys, zero_padding
from attention.conformance.cost import costs, exponent
from attention.conformance.noise import InjectedNoise, ReplayedChoices, noise_at
from attention.conformance.subject import Subject
from attention.conformance.suite import PROPERTIES, examine
from lra.variants import load_attention, selected_variants, variant_names

BY_NAME = {checked.name: checked for checked in PROPERTIES}
ROOT = Path(__file__).parents[1]


class Exact(AttentionCore):
    def forward(self, q, k, v, token_mask):
        keys = attendable_keys(token_mask)[:, None, None, :]
        return zero_padding(F.scaled_dot_product_attention(q, k, v, attn_mask=keys), token_mask)


class ReturnsFloat32(Exact):
    def forward(self, q, k, v, token_mask):
        return super().forward(q, k, v, token_mask).float()


class KeepsPaddedRows(Exact):
    def forward(self, q, k, v, token_mask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=token_mask[:, None, None, :])


class DividesByTheShape(Exact):
    def forward(self, q, k, v, token_mask):
        return super().forward(q, k, v, token_mask) / v.shape[2]


class AttendsToPadding(Exact):
    def forward(self, q, k, v, token_mask):
        return zero_padding(F.scaled_dot_product_attention(q, k, v), token_mask)


class AssumesALeftAlignedMask(Exact):
    def forward(self, q, k, v, token_mask):
        left = torch.arange(v.shape[2]) < token_mask.sum(-1, keepdim=True)
        return zero_padding(super().forward(q, k, v, left), token_mask)


class HasAnEmptySoftmax(Exact):
    def forward(self, q, k, v, token_mask):
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(
            ~token_mask[:, None, None, :], -torch.inf
        )
        return scores.softmax(-1) @ v * token_mask[:, None, :, None]


class NeedsTwoTokens(Exact):
    def forward(self, q, k, v, token_mask):
        spread = v[:, :, :2].diff(dim=2).mean(2, keepdim=True)
        return super().forward(q, k, v + 0 * spread, token_mask)


class CentersOverTheBatch(Exact):
    def forward(self, q, k, v, token_mask):
        return super().forward(q, k, zero_padding(v - v.mean(0), token_mask), token_mask)


class CentersOverTheHeads(Exact):
    def forward(self, q, k, v, token_mask):
        return super().forward(q, k, v - v.mean(1, keepdim=True), token_mask)


class SqueezesHeads(Exact):
    def forward(self, q, k, v, token_mask):
        mean = q.mean(2, keepdim=True).squeeze(1)  # h = 1 makes this b 1 p, and b = h broadcasts
        return super().forward(
            q + 0 * mean.reshape(q.shape[0], -1, 1, q.shape[3]), k, v, token_mask
        )


class LearnsPositions(Exact):
    def __init__(self, dims):
        super().__init__(dims)
        self.positions = nn.Parameter(torch.randn(dims.max_seq_len, 1))

    def forward(self, q, k, v, token_mask):
        return super().forward(q, k * self.positions[: v.shape[2]], v, token_mask)


class SamplesThePast(Exact):
    """Random and positional: a token sees a random number of earlier tokens on top."""

    def forward(self, q, k, v, token_mask):
        share = torch.rand(*v.shape[:3], 1, device=v.device, dtype=v.dtype)
        return super().forward(q, k, v + share * v.roll(1, 2), token_mask)


class LosesMass(Exact):
    def forward(self, q, k, v, token_mask):
        return 0.99 * super().forward(q, k, v, token_mask)


class ComparesKeyNorms(Exact):
    def forward(self, q, k, v, token_mask):
        return super().forward(q, F.normalize(k, dim=-1), v, token_mask)


class OverflowsExp(Exact):
    def forward(self, q, k, v, token_mask):
        keys = attendable_keys(token_mask)[:, None, None, :]
        weights = (q @ k.mT * q.shape[-1] ** -0.5).exp() * keys
        return zero_padding(weights @ v / weights.sum(-1, keepdim=True), token_mask)


class KeepsScoresInHalf(Exact):
    def forward(self, q, k, v, token_mask):
        keys = attendable_keys(token_mask)[:, None, None, :]
        scores = (q.bfloat16() @ k.bfloat16().mT).to(q.dtype) * q.shape[-1] ** -0.5
        return zero_padding(scores.masked_fill(~keys, -torch.inf).softmax(-1) @ v, token_mask)


class DetachesKeys(Exact):
    def forward(self, q, k, v, token_mask):
        return super().forward(q, k.detach(), v, token_mask)


class HoldsAPlainTensor(Exact):
    def __init__(self, dims):
        super().__init__(dims)
        self.scales = [torch.ones(1)]


class FreezesAParameter(Exact):
    def __init__(self, dims):
        super().__init__(dims)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, q, k, v, token_mask):
        return super().forward(q, k, v, token_mask) * self.gain.detach()


class LosesABuffer(Exact):
    def __init__(self, dims):
        super().__init__(dims)
        self.register_buffer("gain", torch.rand(1), persistent=False)

    def forward(self, q, k, v, token_mask):
        return super().forward(q, k, v, token_mask) * self.gain


class RemembersTheFirstLength(Exact):
    first_length = None

    def forward(self, q, k, v, token_mask):
        out = super().forward(q, k, v, token_mask) * (self.first_length or 1)
        self.first_length = v.shape[2]
        return out


class DrawsByContent(Exact):
    def forward(self, q, k, v, token_mask):
        torch.rand(int(token_mask.sum()))
        return super().forward(q, k, v, token_mask)


class ReseedsNumpy(Exact):
    def forward(self, q, k, v, token_mask):
        np.random.seed(int(v.abs().sum() * 100))  # noqa: NPY002 (the bug)
        return super().forward(q, k, v, token_mask)


class ScalesInEvaluation(Exact):
    def forward(self, q, k, v, token_mask):
        out = super().forward(q, k, v, token_mask)
        return out if self.training else 2 * out


class OwnsAGenerator(Exact):
    def __init__(self, dims):
        super().__init__(dims)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, q, k, v, token_mask):
        noise = torch.rand(v.shape, generator=self.generator, dtype=v.dtype)
        return super().forward(q, k, v * noise, token_mask)


@pytest.mark.parametrize(
    ("name", "core"),
    [
        ("shapes", ReturnsFloat32),
        ("shapes", KeepsPaddedRows),
        ("padding_length", DividesByTheShape),
        ("padding_content", AttendsToPadding),
        ("holes", AssumesALeftAlignedMask),
        ("empty_sequence", HasAnEmptySoftmax),
        ("short_sequences", NeedsTwoTokens),
        ("batch_mates", CentersOverTheBatch),
        ("singletons", CentersOverTheBatch),
        ("head_independence", CentersOverTheHeads),
        ("permutation", LearnsPositions),
        ("permutation", SamplesThePast),
        ("constant_values", LosesMass),
        ("key_shift", ComparesKeyNorms),
        ("large_scores", OverflowsExp),
        ("gradcheck", KeepsScoresInHalf),
        ("gradcheck", DetachesKeys),
        ("parameters", HoldsAPlainTensor),
        ("parameters", FreezesAParameter),
        ("parameters", LosesABuffer),
        ("determinism", RemembersTheFirstLength),
        ("determinism", DrawsByContent),
        ("determinism", ReseedsNumpy),
        ("modes", ScalesInEvaluation),
        ("checkpointing", OwnsAGenerator),
    ],
)
def test_a_broken_core_fails_the_property_it_breaks(name, core):
    verdict = examine(Subject("broken", core), BY_NAME[name])
    assert verdict.status == "FAIL"
    assert verdict.worst.likely_cause in verdict.explanation


@pytest.mark.parametrize("checked", PROPERTIES, ids=lambda checked: checked.name)
def test_exact_attention_passes(checked):
    assert examine(Subject("exact", Exact), checked).status == "pass"


class Declares(Exact):
    def not_promised(self):
        return {"permutation": "it claims to be positional"}


def test_an_exception_that_holds_after_all_is_an_error():
    verdict = examine(Subject("declares", Declares), BY_NAME["permutation"])
    assert (verdict.status, verdict.is_error) == ("HOLDS", True)


def test_an_exception_that_does_not_hold_is_none():
    class Positional(LearnsPositions, Declares):
        pass

    verdict = examine(Subject("positional", Positional), BY_NAME["permutation"])
    assert (verdict.status, verdict.is_error) == ("not promised", False)
    assert "it claims to be positional" in verdict.explanation


def test_a_crash_is_no_declared_exception():
    class Crashes(Declares):
        def forward(self, q, k, v, token_mask):
            raise IndexError("block 7 of 4")

    verdict = examine(Subject("crashes", Crashes), BY_NAME["permutation"])
    assert verdict.status == "FAIL"
    assert "block 7 of 4" in verdict.explanation


def test_an_exception_from_no_property_is_refused():
    class Mistyped(Exact):
        def not_promised(self):
            return {"permutations": "order"}

    with pytest.raises(ValueError, match=r"permutations.*permutation"):
        examine(Subject("mistyped", Mistyped), BY_NAME["shapes"])


def test_noise_is_the_corner_of_larger_noise_and_independent_across_streams():
    noise = noise_at((40, 30, 50), 1)
    assert torch.equal(noise_at((2, 3, 5), 1), noise[:2, :3, :5])
    other = noise_at((40, 30, 50), 2)
    for sample in (noise, other, noise_at((60_000,), 3)):
        assert_close(sample.mean().item(), 0.5, atol=5 / (12 * 60_000) ** 0.5, rtol=0)
        assert_close(sample.var().item(), 1 / 12, atol=2e-3, rtol=0)
    for shift in ((noise[1:], noise[:-1]), (noise[:, :, 1:], noise[:, :, :-1]), (noise, other)):
        a, b = (x.flatten() for x in shift)
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / 55_000**0.5


def test_every_kind_of_draw_is_injected_with_its_distribution():
    n = (20_000,)
    with InjectedNoise():
        draws = {
            torch.rand(n): (0.5, 1 / 12),
            torch.randn(n): (0.0, 1.0),
            torch.empty(n).exponential_(2.0): (0.5, 0.25),
            torch.empty(n).uniform_(-1, 3): (1.0, 4 / 3),
            torch.empty(n).normal_(2.0, 3.0): (2.0, 9.0),
            torch.empty(n).bernoulli_(0.3): (0.3, 0.21),
            torch.bernoulli(torch.full(n, 0.3)): (0.3, 0.21),
            torch.randint(3, 6, n).float(): (4.0, 2 / 3),
            torch.randint(3, n).float(): (1.0, 2 / 3),
            torch.randn_like(torch.ones(n)): (0.0, 1.0),
        }
    for draw, (mean, variance) in draws.items():
        standard_error = (variance / 20_000) ** 0.5
        assert_close(draw.mean().item(), mean, atol=5 * standard_error, rtol=0)
        assert_close(draw.var().item(), variance, atol=0, rtol=0.1)


def test_a_draw_that_cannot_be_injected_is_refused():
    with InjectedNoise(), pytest.raises(RuntimeError, match="multinomial"):
        torch.multinomial(torch.ones(4), 2)


def test_choices_are_those_of_the_first_run():
    x = torch.tensor([[3.0, 1.0, 2.0]])
    choices = ReplayedChoices()
    with choices:
        x.topk(2), x.argmax(-1), x.max(-1, keepdim=True)
    with choices.replay():
        assert (-x).topk(2).indices.tolist() == [[0, 2]]
        assert (-x).argmax(-1).tolist() == [0]
        assert (-x).max(-1, keepdim=True).values.tolist() == [[-3.0]]


def test_costs_of_softmax_are_what_its_formula_says():
    few = (128, 256, 512)
    written = costs(load_attention("softmax_no_dropout", 8), few)
    assert [cost.multiply_adds for cost in written] == [2 * n**2 * 32 for n in few]
    # scores after the mask, weights, mask, q, k, v: of these only the n x n ones matter
    assert exponent(few, [cost.saved_bytes for cost in written]) > 1.7
    fused = costs(load_attention("softmax_fused", 8), few)
    assert exponent(few, [cost.saved_bytes for cost in fused]) < 1.05
    assert_close(exponent((1, 2, 4), (3.0, 12.0, 48.0)), 2.0)


def test_variants_are_selected_by_name_list_and_pattern():
    assert selected_variants("v_mean,softmax") == ["v_mean", "softmax"]
    assert selected_variants("all") == selected_variants("glob(*)") == variant_names()
    with pytest.raises(ValueError, match=r"'mine'.*softmax"):
        selected_variants("mine")
    with pytest.raises(ValueError, match=r"'mine'.*softmax"):
        load_attention("mine", 8)


def test_the_script_prints_every_property_and_fails_if_one_does(monkeypatch, capsys):
    main = runpy.run_path(str(ROOT / "scripts" / "check_attention.py"))["main"]
    assert main(["attention=v_mean"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in BY_NAME)
    monkeypatch.setattr("attention.v_mean.VMeanAttention.not_promised", Declares.not_promised)
    assert main(["attention=v_mean"]) == 1
    assert "HOLDS" in capsys.readouterr().out


def test_every_planted_bug_finds_its_text_and_every_variant_has_six(monkeypatch):
    monkeypatch.chdir(ROOT)
    script = runpy.run_path("scripts/mutate_attention.py")
    modules = {script["module_of"](variant) for variant in variant_names()}
    assert {path.stem for path in script["LISTS"].iterdir()} == modules
    for path in script["LISTS"].iterdir():
        list(script["trials_of"](path))
