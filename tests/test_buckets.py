"""Buckets: less padding, the same training."""

import numpy as np
import pytest
import torch
from test_trainer import Listener, make_trainer  # noqa: F401
from torch.testing import assert_close

from lra.tasks.base import Batch


def make_batch(lengths, max_seq_len):
    """Sequences of the given lengths [b s]; the label is the example's number."""
    mask = torch.arange(max_seq_len) < torch.tensor(lengths)[..., None]
    tokens = torch.randint(1, 9, mask.shape) * mask
    return Batch(tokens, mask, torch.arange(len(lengths)))


def test_every_example_is_in_one_bucket_of_the_next_power_of_two():
    lengths = [[0], [1], [2], [3], [4], [5], [8], [9], [16], [17], [20]]
    batch = make_batch(lengths, 20)
    pieces = batch.buckets(2)
    widths = {int(i): piece.tokens.shape[-1] for piece in pieces for i in piece.labels}
    assert [widths[i] for i in range(11)] == [1, 1, 2, 4, 4, 8, 8, 16, 16, 20, 20]
    assert all(len(piece) <= 2 for piece in pieces)
    for piece in pieces:
        for row, i in enumerate(piece.labels):
            assert torch.equal(piece.tokens[row], batch.tokens[i, :, : piece.tokens.shape[-1]])
            assert piece.token_mask[row].sum() == batch.token_mask[i].sum()


def test_the_longer_sequence_of_a_pair_and_the_last_token_after_holes_count():
    pairs = make_batch([[3, 9], [9, 3], [1, 2]], 32)
    assert [piece.tokens.shape for piece in pairs.buckets(9)] == [(1, 2, 2), (2, 2, 16)]
    pairs.token_mask[0, 1, :8] = False
    assert [piece.tokens.shape for piece in pairs.buckets(9)] == [(1, 2, 2), (2, 2, 16)]


@pytest.mark.parametrize("attention", ["softmax_no_dropout", "v_mean"])
def test_the_gradient_is_that_of_full_padding(make_trainer, attention):  # noqa: F811
    overrides = (f"attention={attention}", "model.dropout=0.0")
    gradients, widths = [], []
    for bucket in ("false", "true"):
        trainer = make_trainer(*overrides, f"trainer.bucket={bucket}", name=bucket)
        trainer.model.register_forward_pre_hook(
            lambda module, inputs: widths.append(inputs[0].shape[-1])
        )
        trainer.train_step()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5 * gradients[0].abs().max().item())
    full, *bucketed = widths
    assert len(bucketed) > 1
    assert max(bucketed) <= full
    assert np.mean(bucketed) < full


def test_every_example_is_evaluated_once_and_the_same(make_trainer):  # noqa: F811
    whole, bucketed = (
        make_trainer(f"trainer.bucket={bucket}", "attention=v_mean", name=bucket).evaluate("test")
        for bucket in ("false", "true")
    )
    assert bucketed.count == whole.count == len(whole.correct) == 40
    assert (bucketed.correct == whole.correct).all()
    assert 0 < whole.accuracy == whole.correct.mean() < 1
    assert bucketed.loss == pytest.approx(whole.loss, rel=1e-5)
    assert bucketed.accuracy == whole.accuracy


def test_a_run_in_buckets_samples_trains_and_checks(make_trainer):  # noqa: F811
    trainer, listener = make_trainer("trainer.bucket=true", "attention=skeinformer"), Listener()
    assert trainer.fit(listener) == "max_steps"
    assert [line["val/count"] for line in listener.metrics] == [40, 40, 40]
    assert all(np.isfinite(line["train/loss"]) for line in listener.metrics)


def test_buckets_and_the_mean_over_the_padded_length_exclude_each_other(make_trainer):  # noqa: F811
    with pytest.raises(ValueError, match=r"trainer.bucket=true changes .* use trainer.bucket=fals"):
        make_trainer("trainer.bucket=true", "protocol=paper")
