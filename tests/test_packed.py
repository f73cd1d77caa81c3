"""Packed computation: without the padding behind the tokens, and otherwise the same."""

import pytest
import torch
from conftest import ATTENTIONS
from test_trainer import Listener, make_trainer  # noqa: F401
from torch.testing import assert_close

from attention.base import AttentionCore
from attention.conformance import noise
from attention.conformance.subject import BLOCK_SIZE, NUM_FEATURES
from lra.layout import sequence_lengths
from lra.model import Classifier
from lra.variants import load_miniature

MAX_SEQ_LEN = 93
LENGTHS = torch.tensor([[0, 45], [45, 90], [90, 7], [7, 1], [61, 45]])
UNPACKED = {"informer"}  # the paper's row takes padding for tokens
FLOAT32_WEIGHTS = {"skeinformer_no_norm"}  # of samples, in a run of float64


def make_model(attention, **changes):
    arguments = {
        "vocab_size": 16,
        "max_seq_len": MAX_SEQ_LEN,
        "num_sequences": 2,
        "num_classes": 3,
        "num_layers": 2,
        "embed_dim": 8,
        "hidden_dim": 12,
        "num_heads": 2,
        "dropout": 0.0,
        "pooling": "token_mean",
        "packed": False,
        "activation_checkpointing": False,
    }
    torch.manual_seed(1)
    core = load_miniature(attention, NUM_FEATURES, BLOCK_SIZE)
    model = Classifier(core, **(arguments | changes)).double()
    for parameter in model.encoder.parameters():  # far from the start, where attention is a mean
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()  # without the attention's dropout; nothing else may depend on it


def cores_of(model):
    return [module for module in model.modules() if isinstance(module, AttentionCore)]


@pytest.fixture
def same_noise(monkeypatch):
    """Draws by place in the sequence: the same for each sequence, each call of a layer's core."""
    noise_at = noise.noise_at
    monkeypatch.setattr(
        noise,
        "noise_at",
        lambda shape, *rest: noise_at((1, *shape[1:]), *rest).expand(shape),
    )

    def run(model, tokens, mask):
        model.zero_grad()
        with noise.InjectedNoise() as mode:
            for number, core in enumerate(cores_of(model)):
                core.register_forward_pre_hook(
                    lambda module, inputs, number=number: setattr(mode, "num_draws", 100 * number)
                )
            logits = model(tokens, mask)
            logits.square().sum().backward()
        return logits.detach(), {name: p.grad for name, p in model.named_parameters()}

    return run


@pytest.fixture
def batch():
    """Pairs of which one has no token, and some have holes."""
    mask = torch.arange(MAX_SEQ_LEN) < LENGTHS[..., None]
    holes = torch.rand(mask.shape) < 0.2
    holes[:2] = False
    return torch.randint(16, mask.shape), mask & ~holes


def assert_same(actual, expected, limit):
    (logits, gradients), (other_logits, other_gradients) = actual, expected
    assert_close(logits, other_logits, rtol=limit, atol=limit)
    for name, gradient in other_gradients.items():
        scale = max(1.0, gradient.abs().max().item())
        assert_close(gradients[name], gradient, rtol=0, atol=limit * scale, msg=name)


@pytest.mark.parametrize("attention", sorted(set(ATTENTIONS) - UNPACKED))
def test_packed_logits_and_gradients_are_those_of_the_padded_run(attention, batch, same_noise):
    padded, packed = (same_noise(make_model(attention, packed=p), *batch) for p in (False, True))
    assert_same(packed, padded, 1e-6 if attention in FLOAT32_WEIGHTS else 1e-12)


@pytest.mark.parametrize("pooling", ["token_mean", "padded_mean"])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_pooling_and_checkpointing_know_no_packing(
    pooling, activation_checkpointing, batch, same_noise
):
    changes = {"pooling": pooling, "activation_checkpointing": activation_checkpointing}
    models = [make_model("v_mean", packed=p, **changes).train() for p in (False, True)]
    padded, packed = (same_noise(model, *batch) for model in models)
    assert_same(packed, padded, 1e-12)


def test_a_batch_without_any_token_trains_every_weight(batch, same_noise):
    tokens, mask = batch
    padded, packed = (
        same_noise(make_model("linformer", packed=p), tokens, torch.zeros_like(mask))
        for p in (False, True)
    )
    assert_same(packed, padded, 1e-12)


def test_the_core_sees_sequences_of_one_length_and_no_padding_behind_them(batch):
    tokens, mask = batch
    mask[2:] = torch.arange(MAX_SEQ_LEN) < LENGTHS[2:, :, None]  # no holes
    model, calls, num_rows = make_model("softmax", packed=True), [], []
    first = model.encoder.layers[0]
    first.attention.core.register_forward_pre_hook(
        lambda module, inputs: calls.append((inputs[0].shape, inputs[-1]))
    )
    first.feed_forward.register_forward_pre_hook(
        lambda module, inputs: num_rows.append(len(inputs[0]))
    )
    model(tokens, mask)
    shapes = [tuple(shape) for shape, _ in calls]
    assert shapes == [(2, 2, 1, 4), (2, 2, 7, 4), (3, 2, 45, 4), (1, 2, 61, 4), (2, 2, 90, 4)]
    assert [called_mask.sum().item() for _, called_mask in calls] == [1, 14, 135, 61, 180]
    assert num_rows == [2 + 14 + 135 + 61 + 180]


def test_lengths_end_at_the_last_token_whatever_is_missing_before():
    mask = torch.zeros(1, 3, 6, dtype=torch.bool)
    mask[0, 0, [1, 3]] = mask[0, 2, 5] = True
    assert sequence_lengths(mask) == [4, 1, 6]


def test_training_and_evaluating_read_lengths_from_the_host(make_trainer, monkeypatch):  # noqa: F811
    trainer = make_trainer("model.packed=true")
    monkeypatch.setattr("lra.model.sequence_lengths", None)
    trainer.train_step()
    assert trainer.evaluate("test").count == 40


@pytest.mark.parametrize("attention", ["softmax_no_dropout", "v_mean"])
def test_a_step_in_micro_batches_has_the_same_gradient(make_trainer, attention):  # noqa: F811
    fixed = (f"attention={attention}", "model.dropout=0.0", "trainer.micro_batch_size=5")
    gradients = []
    for packed in ("false", "true"):
        trainer = make_trainer(*fixed, f"model.packed={packed}", name=packed)
        trainer.accumulate_gradient(trainer.reader.batch(0))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5 * gradients[0].abs().max().item())


def test_a_packed_run_samples_trains_and_checks(make_trainer):  # noqa: F811
    trainer, listener = make_trainer("model.packed=true", "attention=skeinformer"), Listener()
    assert trainer.fit(listener) == "max_steps"
    assert [line["val/count"] for line in listener.metrics] == [40, 40, 40]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.packed=true", "trainer.bucket=true"), "leaves nothing to save"),
        (("model.packed=true", "trainer.compile=true"), "would compile for each"),
        (("model.packed=true", "trainer.cuda_graph=true"), "would capture each"),
        (("trainer.bucket=true", "trainer.cuda_graph=true"), "would capture each"),
        (("model.packed=true", "attention=informer"), "model.packed=true changes what Informer"),
        (("trainer.bucket=true", "attention=informer"), "trainer.bucket=true changes what Informe"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(make_trainer, overrides, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        make_trainer(*overrides)
