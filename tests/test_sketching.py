"""Samplers follow the laws they promise."""

import torch
from torch.testing import assert_close

from attention.sketching import pick_tokens, sample_with_replacement, sample_without_replacement


def test_picked_tokens_are_tokens_and_uniform():
    mask = torch.zeros(2, 50, dtype=torch.bool)
    mask[0, [3, 4, 20, 41, 49]] = True
    mask[1, 7] = True
    picked = pick_tokens(mask, torch.rand(2, 1, 50_000))
    counts = torch.bincount(picked[0, 0], minlength=50)
    assert_close(counts[mask[0]] / 50_000, torch.full((5,), 0.2), rtol=0.05, atol=0)
    assert counts[~mask[0]].sum() == 0
    assert (picked[1] == 7).all()


def test_noise_just_below_one_picks_the_last_token():
    mask = torch.ones(1, 100_000, dtype=torch.bool)
    noise = torch.full((1, 1, 1), 1 - 2.0**-24)
    assert pick_tokens(mask, noise).item() == 99_999


def test_inclusion_follows_plackett_luce():
    weights = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    trials = 100_000
    log_weights = weights.log().expand(trials, 1, 5)
    exponential = torch.empty(trials, 1, 5).exponential_()
    index, valid = sample_without_replacement(log_weights, exponential, 2)
    assert valid.all()
    frequency = torch.bincount(index.flatten(), minlength=5) / trials
    # P(i) = w_i + sum over j of w_j w_i / (1 - w_j)
    pairs = weights[:, None] * weights / (1 - weights[:, None])
    theory = weights + pairs.sum(0) - pairs.diagonal()
    assert_close(frequency, theory, rtol=0, atol=0.006)


def test_a_key_of_weight_zero_is_never_a_valid_sample():
    log_weights = torch.full((1, 1, 6), float("-inf"))
    log_weights[..., [1, 4]] = 0.0
    index, valid = sample_without_replacement(log_weights, torch.empty(1, 1, 6).exponential_(), 4)
    assert set(index[valid].tolist()) == {1, 4}
    assert valid.sum() == 2


def test_samples_with_replacement_have_their_probabilities():
    probs = torch.tensor([0.0, 0.5, 0.2, 0.3, 0.0])[None, None]
    index = sample_with_replacement(probs, torch.rand(1, 1, 100_000))
    frequency = torch.bincount(index.flatten(), minlength=5) / 100_000
    assert_close(frequency, probs[0, 0], rtol=0, atol=0.006)
    extremes = sample_with_replacement(probs, torch.tensor([[[0.0, 1 - 2.0**-24, 1.0]]]))
    assert extremes.flatten().tolist() == [1, 3, 3]
