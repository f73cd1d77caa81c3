"""What ends a run, what it leaves behind, and that it goes on from there."""

import json
import signal

import pytest
import torch
from test_trainer import SMALL

from lra.record import RunDirectory
from lra.run import run


@pytest.fixture
def run_here(compose_run, data_dir, tmp_path):
    """Runs in this process; a run of the same name goes on."""

    def start(*overrides, name="run"):
        config = compose_run(*SMALL, f"data_dir={data_dir}", "tracker=none", *overrides)
        config.name = name
        directory = RunDirectory(tmp_path / name)
        return run(config, config, directory, "python scripts/train.py")

    return start


@pytest.fixture
def at_step(monkeypatch):
    """Does something in the middle of a training step, once."""

    def plan(step, action):
        from lra.trainer import Trainer

        accumulate = Trainer.accumulate_gradient

        def disturbed(trainer, batch):
            accumulate(trainer, batch)
            if trainer.progress.step == step - 1:
                monkeypatch.setattr(Trainer, "accumulate_gradient", accumulate)
                action()

        monkeypatch.setattr(Trainer, "accumulate_gradient", disturbed)

    return plan


def read(directory):
    return json.loads((directory / "record.json").read_text())


def final_weights(directory):
    return torch.load(directory / "last.pt")["model"]


def assert_same_end(directory, whole):
    ours, theirs = final_weights(directory), final_weights(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert read(directory)["result"] == read(whole)["result"]


class RequeuedError(Exception):
    """What a cluster's handler may raise."""


def test_the_launcher_of_a_cluster_finds_the_step_saved_and_may_raise(run_here, at_step, tmp_path):
    def requeue(signum, frame):
        assert torch.load(tmp_path / "run/last.pt")["progress"]["step"] == 6
        raise RequeuedError

    run_here(name="whole")
    at_step(6, lambda: signal.raise_signal(signal.SIGUSR2))
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(RequeuedError):
            run_here()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert read(tmp_path / "run")["status"] == "paused"
    assert read(tmp_path / "run")["failure"] is None
    run_here()
    assert_same_end(tmp_path / "run", tmp_path / "whole")
