"""The loop: gradients, stopping, evaluation and resuming."""

import json
import math

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch.testing import assert_close

from lra.record import RunDirectory
from lra.run import SPLITS, build_model
from lra.trainer import NonFiniteLossError, Trainer

SMALL = (
    "task=listops_short",
    "num_features=8",
    "trainer.batch_size=16",
    "trainer.max_steps=12",
    "trainer.warmup_steps=3",
    "trainer.check_steps=4",
    "trainer.min_steps=0",
    "trainer.max_eval_examples=40",
    "optimizer.lr=0.01",
    "model.embed_dim=16",
    "model.hidden_dim=16",
)


class Listener:
    """A tracker that remembers."""

    def __init__(self):
        self.metrics = []

    def log(self, metrics):
        self.metrics.append(dict(metrics))

    def finish(self, record):
        self.record = record


@pytest.fixture
def make_trainer(compose_run, data_dir, tmp_path):
    def make(*overrides, name="run", device="cpu"):
        config = compose_run(*SMALL, f"data_dir={data_dir}", *overrides)
        torch.manual_seed(config.seed)
        task = instantiate(config.task)
        directory = RunDirectory(tmp_path / name)
        directory.path.mkdir(exist_ok=True)
        return Trainer(
            instantiate(config.trainer),
            model=build_model(config, task),
            examples={split: task.examples(split) for split in SPLITS},
            optimizer=instantiate(config.optimizer),
            scheduler=instantiate(config.scheduler),
            directory=directory,
            device=torch.device(device),
            seed=config.seed,
        )

    return make


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_a_cuda_graph_without_a_gpu_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"needs a GPU; use trainer\.cuda_graph=false"):
        make_trainer("trainer.cuda_graph=true")


@pytest.mark.parametrize("size", [1, 4, 5])
def test_micro_batches_accumulate_to_the_gradient_of_the_batch(make_trainer, size):
    overrides = ("attention=softmax_no_dropout", "model.dropout=0.0")
    gradients = []
    for micro in (16, size):
        trainer = make_trainer(*overrides, f"trainer.micro_batch_size={micro}")
        batch = trainer.reader.batch(0)
        trainer.accumulate_gradient(batch)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert_close(gradients[1], gradients[0], rtol=0, atol=1e-6 * gradients[0].abs().max().item())


def test_training_lowers_the_loss_and_logs_every_check(make_trainer):
    trainer, listener = make_trainer("trainer.max_steps=40", "optimizer.lr=0.003"), Listener()
    assert trainer.fit(listener) == "max_steps"
    lines = [json.loads(line) for line in trainer.directory.metrics.read_text().splitlines()]
    assert lines == listener.metrics
    assert [line["step"] for line in lines] == list(range(4, 41, 4))
    losses = [line["train/loss"] for line in lines]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert {line["val/count"] for line in lines} == {40}
    assert all(line["time/train_seconds"] > 0 for line in lines)
    assert all(line["memory/peak_allocated_gib"] > 0 for line in lines)


def test_how_often_a_run_is_evaluated_does_not_change_its_weights(make_trainer):
    ends = []
    for period in (2, 12):
        trainer = make_trainer(f"trainer.check_steps={period}", name=f"every_{period}")
        trainer.fit(Listener())
        ends.append(weights(trainer))
    assert torch.equal(*ends)


def test_reading_ahead_changes_no_bit(make_trainer):
    ends = []
    for num_workers in (0, 3):
        trainer = make_trainer(f"trainer.num_workers={num_workers}", name=f"{num_workers}_workers")
        trainer.fit(Listener())
        ends.append(weights(trainer))
    assert torch.equal(*ends)


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_a_resumed_run_ends_with_the_same_bits(make_trainer, stop):
    """Also between two checks, where sums of training losses are under way."""
    whole, heard = make_trainer(name="whole"), Listener()
    whole.fit(heard)
    make_trainer(f"trainer.pause_at_step={stop}", name="halves").fit(Listener())
    resumed = make_trainer(name="halves")
    assert resumed.fit(Listener()) == "max_steps"
    assert torch.equal(weights(resumed), weights(whole))
    lines = [json.loads(line) for line in resumed.directory.metrics.read_text().splitlines()]
    keys = ("step", "train/loss", "val/loss", "val/accuracy", "optim/lr")
    assert [[m[key] for key in keys] for m in lines] == [
        [m[key] for key in keys] for m in heard.metrics
    ]


def test_what_was_logged_after_the_last_save_is_logged_again_not_twice(make_trainer):
    make_trainer("trainer.pause_at_step=4").fit(Listener())
    trainer = make_trainer()
    with trainer.directory.metrics.open("a") as file:
        file.write('{"step": 8, "val/loss": 1.0}\n{"step": 12, "val/l')  # killed in mid-write
    trainer.fit(Listener())
    lines = [json.loads(line) for line in trainer.directory.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert "train/loss" in lines[1]


def test_patience_stops_after_so_many_checks_without_a_better_loss(make_trainer, monkeypatch):
    trainer = make_trainer("trainer.max_steps=100", "trainer.patience=3")
    losses = iter([3.0, 2.0, 2.5, 2.1, 2.0])
    evaluate = trainer.evaluate

    def scripted(split):
        evaluation = evaluate(split)
        object.__setattr__(evaluation, "loss", next(losses))
        return evaluation

    monkeypatch.setattr(trainer, "evaluate", scripted)
    assert trainer.fit(Listener()) == "patience"
    assert (trainer.progress.best_step, trainer.progress.step) == (8, 20)


def test_the_guard_forbids_an_early_stop(make_trainer):
    for guard, last in ((True, 28), (False, 8)):
        trainer = make_trainer(
            "trainer.max_steps=100", "trainer.patience=1", "trainer.min_steps=28",
            "optimizer.lr=1e-9", f"trainer.early_stop_guard={guard}", name=str(guard),
        )  # fmt: skip
        trainer.progress.best_val_loss = -math.inf
        assert trainer.fit(Listener()) == "patience"
        assert trainer.progress.step == (last if guard else 4)


def test_best_weights_are_those_of_the_best_check(make_trainer):
    trainer = make_trainer("trainer.max_steps=16")
    seen = {}
    evaluate = trainer.evaluate
    trainer.evaluate = lambda split: seen.setdefault(trainer.progress.step, evaluate(split))
    trainer.fit(Listener())
    best = min(seen, key=lambda step: seen[step].loss)
    assert trainer.progress.best_step == best
    trainer.use_best_weights()
    again = evaluate("val")
    assert (again.loss, again.accuracy) == (seen[best].loss, seen[best].accuracy)
    saved = torch.load(trainer.directory.best)["model"]
    assert all(torch.equal(saved[k], w) for k, w in trainer.model.state_dict().items())


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_state(make_trainer):
    trainer = make_trainer("trainer.max_steps=40")
    batch = trainer.examples["train"].batch

    def poisoned(indices):
        if trainer.progress.step == 6:
            with torch.no_grad():
                trainer.model.head[0].weight.fill_(math.nan)
        return batch(indices)

    trainer.examples["train"].batch = poisoned
    with pytest.raises(NonFiniteLossError, match=r"loss is nan .* lower optimizer.lr"):
        trainer.fit(Listener())
    state = torch.load(trainer.directory.last)
    assert state["progress"]["step"] == 4
    assert all(w.isfinite().all() for w in state["model"].values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(make_trainer, precision):
    losses = []
    for p in ("fp32", precision):
        trainer, listener = make_trainer(f"trainer.precision={p}", name=p), Listener()
        trainer.fit(listener)
        losses.append(listener.metrics[-1]["val/loss"])
    assert_close(losses[1], losses[0], rtol=0.02, atol=0)


def test_the_schedule_rises_to_lr_and_falls_to_nothing(make_trainer):
    steps = ("trainer.max_steps=20", "trainer.warmup_steps=5", "trainer.check_steps=1")
    trainer, listener = make_trainer(*steps, "trainer.patience=20"), Listener()
    trainer.fit(listener)
    rates = [metrics["optim/lr"] for metrics in listener.metrics]
    assert rates[0] == pytest.approx(0.01 / 25)
    assert max(rates) == rates[4] == pytest.approx(0.01)
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 1e-5


def test_clipping_bounds_the_gradient(make_trainer):
    trainer = make_trainer("trainer.clip_grad_norm=0.001")
    trainer.train_step()
    norm = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).norm()
    assert norm <= 0.00101


def test_evaluation_counts_every_example_once(make_trainer):
    trainer = make_trainer("trainer.max_eval_examples=null", "trainer.eval_batch_size=16",
                           "attention=v_mean")  # fmt: skip
    evaluation = trainer.evaluate("val")
    examples = trainer.examples["val"]
    batch = examples.batch(np.arange(len(examples)))
    trainer.model.eval()
    logits = trainer.model(batch.tokens, batch.token_mask)
    assert evaluation.count == len(examples) == 70
    accuracy = (logits.argmax(-1) == batch.labels).double().mean().item()
    assert evaluation.accuracy == pytest.approx(accuracy)
    expected = torch.nn.functional.cross_entropy(logits, batch.labels).item()
    assert evaluation.loss == pytest.approx(expected, rel=1e-5)
    assert evaluation.constant_accuracy == np.bincount(examples.labels).max() / 70


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.batch_size=0", "trainer.batch_size=0 is not positive"),
        ("trainer.micro_batch_size=-2", "trainer.micro_batch_size=-2 is not positive"),
        ("trainer.warmup_steps=12", "trainer.warmup_steps=12 is not between 1 and"),
        ("trainer.warmup_steps=1", "trainer.warmup_steps=1 is not between 1 and"),
    ],
)
def test_impossible_settings_are_refused(make_trainer, override, message):
    with pytest.raises(Exception, match=message):
        make_trainer(override)
