"""Several processes train as one does, and one speaks for them."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hydra.utils import instantiate
from test_run import final_weights, read
from test_trainer import SMALL

from lra.distributed import OneProcess
from lra.lock import Lock
from lra.model import Classifier
from lra.order import DataOrder, Reader
from lra.ranks import Rank, own_rank
from lra.record import RunDirectory
from lra.run import run
from lra.trainer import Trainer

EXACT = (
    "attention=softmax_no_dropout",
    "model.dropout=0.0",
    "trainer.batch_size=15",  # shares of 7 and 8
    "trainer.micro_batch_size=4",
    "trainer.max_eval_examples=41",
    "trainer.eval_batch_size=9",
    "trainer.max_steps=16",
    "trainer.patience=50",
    "optimizer.lr=0.003",
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def train(compose_run, data_dir, tmp_path):
    """Trains in one process, or in two that are forked off this one."""

    def train_here(overrides, name):
        fixed = (*SMALL, f"data_dir={data_dir}", "tracker=none", "device=cpu")
        config = compose_run(*fixed, *overrides)
        config.name = name
        return run(config, config, RunDirectory(tmp_path / name), "python scripts/train.py")

    def in_process(overrides, name, rank, port):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        status = 1
        try:
            train_here(overrides, name)
            status = 0
        except BaseException:
            (tmp_path / f"{name}_error_{rank}").write_text(traceback.format_exc())
        finally:
            os._exit(status)

    def start(*overrides, name, world_size=2):
        if world_size == 1:
            train_here(overrides, name)
            return [0]
        children, port = [], free_port()
        for rank in range(world_size):
            child = os.fork()
            if child == 0:
                in_process(overrides, name, rank, port)
            children.append(child)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    return start


def curve(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/count")
    return [[line[key] for key in keys] for line in lines]


def assert_same_curve(directory, other, atol):
    ours, theirs = (torch.tensor(curve(d), dtype=torch.float64) for d in (directory, other))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_two_processes_learn_what_one_does(train, tmp_path):
    for world_size in (1, 2):
        assert set(train(*EXACT, name=f"{world_size}", world_size=world_size)) == {0}
    one, two = tmp_path / "1", tmp_path / "2"
    assert_same_curve(two, one, atol=1e-6)
    assert abs(curve(one)[0][3] - curve(one)[-1][3]) > 0.01  # nor did they stand still
    keys = ("test_loss_last", "test_accuracy_last", "test_count", "best_val_loss", "final_step")
    for key in keys:
        assert read(two)["result"][key] == pytest.approx(read(one)["result"][key], abs=1e-6)
    assert read(two)["environment"]["world_size"] == 2
    assert read(two)["environment"]["device"].startswith("2 × ")


def test_resumed_processes_have_their_own_randomness_back(train, tmp_path):
    noisy = ("attention=skeinformer", "model.dropout=0.3")
    train(*noisy, name="whole")
    train(*noisy, "trainer.pause_at_step=6", name="halves")
    states = torch.load(tmp_path / "halves/last.pt")["random"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    train(*noisy, name="halves")
    ours, theirs = (final_weights(tmp_path / name) for name in ("halves", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert curve(tmp_path / "halves") == curve(tmp_path / "whole")


def test_another_number_of_processes_is_refused(train, tmp_path):
    train("trainer.pause_at_step=2", name="run")
    with pytest.raises(
        ValueError, match=r"begun by 2 process\(es\), now there are 1: each has its"
    ):
        train(name="run", world_size=1)
    assert read(tmp_path / "run")["status"] == "paused"


def test_a_signal_to_one_process_stops_both_at_the_same_step(train, tmp_path, monkeypatch):
    step = Trainer.train_step

    def disturbed(trainer):
        step(trainer)
        if trainer.progress.step == 6 and not trainer.processes.is_first:
            signal.raise_signal(signal.SIGUSR2)

    # what a cluster's handler does in all but the first task
    before = signal.signal(signal.SIGUSR2, lambda *call: None)
    monkeypatch.setattr(Trainer, "train_step", disturbed)
    train("trainer.pause_at_step=7", name="run")
    signal.signal(signal.SIGUSR2, before)
    assert torch.load(tmp_path / "run/last.pt")["progress"]["step"] == 7


def test_one_process_may_take_smaller_micro_batches(train, tmp_path, monkeypatch):
    automatic = (*EXACT, "trainer.micro_batch_size=auto")
    train(*automatic, name="roomy")
    forward = Classifier.forward

    def cramped(model, tokens, *rest):
        if os.environ.get("RANK") == "1" and len(tokens) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return forward(model, tokens, *rest)

    monkeypatch.setattr(Classifier, "forward", cramped)
    assert train(*automatic, name="cramped") == [0, 0]
    assert_same_curve(tmp_path / "cramped", tmp_path / "roomy", atol=1e-6)
    assert torch.load(tmp_path / "cramped/last.pt")["batch_sizes"] == [(7, 9), (2, 2)]


def test_a_diverged_process_ends_all_of_them(train, tmp_path, monkeypatch):
    forward = Classifier.forward

    def poisoned(model, tokens, *rest):
        return forward(model, tokens, *rest) * (math.nan if os.environ["RANK"] == "1" else 1)

    monkeypatch.setattr(Classifier, "forward", poisoned)
    assert train(name="run") == [1, 1]
    for rank in (0, 1):
        assert "NonFiniteLossError" in (tmp_path / f"run_error_{rank}").read_text()
    assert read(tmp_path / "run")["failure"]["type"] == "NonFiniteLossError"


@pytest.mark.parametrize(("count", "size"), [(16, 2), (15, 4), (3, 4)])
def test_shares_are_disjoint_in_order_and_cover_the_batch(count, size):
    shares = [OneProcess(Rank(rank, rank, size)).share(count) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_together_the_processes_read_the_batch_of_one(compose_run, data_dir):
    examples = instantiate(compose_run(*SMALL, f"data_dir={data_dir}").task).examples("train")
    order = DataOrder(seed=0, num_examples=len(examples), batch_size=15)
    whole = Reader(examples, order, num_workers=0).batch(3)
    parts = []
    for rank in range(2):
        share = OneProcess(Rank(rank, rank, 2)).share(15)
        parts.append(Reader(examples, order, num_workers=0, share=share).batch(3))
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


SLURM_BATCH_SCRIPT = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, Rank(0, 0, 1)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, Rank(3, 1, 4)),
        (SLURM_BATCH_SCRIPT, Rank(0, 0, 1)),
        (SLURM_BATCH_SCRIPT | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, Rank(2, 0, 4)),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Rank(0, 0, 1)),
    ],
)
def test_the_launcher_says_which_process_this_is(monkeypatch, environment, rank):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert own_rank() == rank


def process_of_rank(rank, parent):
    for entry in Path("/proc").iterdir():
        try:
            is_child = f"PPid:\t{parent}\n" in (entry / "status").read_text()
            if is_child and f"RANK={rank}\0".encode() in (entry / "environ").read_bytes():
                return int(entry.name)
        except (OSError, ValueError):
            continue
    return None


def test_torchrun_starts_again_when_a_process_is_killed_and_ends_with_the_same_loss(
    train, data_dir, tmp_path
):
    overrides = (*SMALL, *EXACT, f"data_dir={data_dir}", "tracker=none", "device=cpu")
    directory = tmp_path / "outputs/adhoc/clean/listops_short/softmax_no_dropout/seed_0"
    torchrun = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
            "--standalone", "--max-restarts=1",
            "--monitor-interval=0.1",
            str(ROOT / "scripts/train.py"), *overrides, "trainer.checkpoint_minutes=0.0",
        ],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    while not (directory / "last.pt").exists():
        assert torchrun.poll() is None, torchrun.communicate()[0]
        time.sleep(0.01)
    assert Lock(directory / "lock").owner().pid == process_of_rank(0, torchrun.pid)
    os.kill(process_of_rank(1, torchrun.pid), signal.SIGKILL)
    output, _ = torchrun.communicate(timeout=120)
    assert torchrun.returncode == 0, output
    assert len(read(directory)["resumes"]) == 1
    assert output.count("resuming at step") == 1  # one process speaks
    train(*EXACT, name="one", world_size=1)
    assert_same_curve(directory, tmp_path / "one", atol=1e-6)
    assert read(directory)["result"]["test_loss_last"] == pytest.approx(
        read(tmp_path / "one")["result"]["test_loss_last"], abs=1e-6
    )
