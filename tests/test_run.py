"""What ends a run, what it leaves behind, and that it goes on from there."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from test_tracker import read_wandb
from test_trainer import SMALL

from lra import checkpoint
from lra.checkpoint import DamagedCheckpointError
from lra.files import DiskFullError
from lra.fitting import OutOfMemoryError
from lra.model import Classifier
from lra.record import RunDirectory
from lra.run import follow_allotted_threads, run
from lra.trainer import Trainer


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


def test_a_time_budget_pauses_at_a_step_and_the_same_bits_come_out(run_here, tmp_path, monkeypatch):
    run_here(name="whole")
    start, step = time.monotonic(), Trainer.train_step

    def slow_step(trainer):
        step(trainer)
        monkeypatch.setattr(
            "lra.trainer.time.monotonic", lambda: start + 20 * trainer.progress.step
        )

    monkeypatch.setattr(Trainer, "train_step", slow_step)
    record = run_here("trainer.time_budget_minutes=2.2")
    assert (record["status"], record["result"]["stopped_by"]) == ("paused", "time_budget")
    state = torch.load(tmp_path / "run/last.pt")
    assert state["progress"]["step"] == 7  # 2.2 minutes are 6.6 steps, and checks are every 4
    monkeypatch.undo()
    run_here()
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_budget_too_short_for_anything_still_comes_on_by_a_step(run_here):
    steps = [run_here("trainer.time_budget_minutes=1e-9")["cost"] for _ in range(2)]
    assert all(cost["train_seconds"] > 0 for cost in steps)


@pytest.mark.parametrize("doomed", ["last.pt", "metrics.jsonl"])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    run_here, tmp_path, monkeypatch, doomed
):
    """The last checkpoint survives; the record says why the run failed."""
    run_here(name="whole")
    run_here("trainer.pause_at_step=6")
    opened = Path.open

    def no_room(path):
        if path.name.startswith(doomed) and path.parent.name == "run":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail_to_sync(descriptor):
        no_room(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    def fail_to_append(path, mode="r", **options):
        if mode == "a":
            no_room(path)
        return opened(path, mode, **options)

    monkeypatch.setattr(os, "fsync", fail_to_sync)
    monkeypatch.setattr(Path, "open", fail_to_append)
    message = rf"no room to write .*/run/{doomed}: No space left on device, [\d,]+ bytes are free"
    with pytest.raises(DiskFullError, match=message):
        run_here()
    monkeypatch.undo()
    assert read(tmp_path / "run")["failure"]["type"] == "DiskFullError"
    assert checkpoint.load(tmp_path / "run/last.pt")["progress"]["step"] == 6
    assert not list((tmp_path / "run").glob("*.tmp*"))
    run_here()
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_torchs_own_words_for_a_full_disk_are_understood(tmp_path):
    with open("/dev/full", "wb", buffering=0) as full:
        path = tmp_path / "last.pt"
        with pytest.raises(DiskFullError, match=r"last.pt: No space left"):
            checkpoint.write_atomically(
                path, lambda file: torch.save({"weights": torch.zeros(10**6)}, full)
            )
    assert not list(tmp_path.iterdir())


def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(run_here, tmp_path):
    run_here(name="whole")
    run_here("trainer.pause_at_step=6")
    child = os.fork()
    if child == 0:
        os.fsync = lambda descriptor: os._exit(9)
        checkpoint.save({"weights": torch.zeros(1000)}, tmp_path / "run/last.pt")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert list((tmp_path / "run").glob("last.pt.tmp.*"))
    run_here()
    assert not list((tmp_path / "run").glob("*.tmp*"))
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_damaged_checkpoint_is_named_with_what_can_be_done(run_here, tmp_path, keep):
    run_here("trainer.pause_at_step=6")
    path = tmp_path / "run/last.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedCheckpointError, match=r"run/last.pt is damaged .*; put a copy back"):
        run_here()
    path.unlink()
    assert run_here()["status"] == "completed"


def test_data_that_go_away_under_way_do_no_harm_and_are_missed_at_the_next_start(
    run_here, at_step, data_dir, tmp_path
):
    copy = tmp_path / "data"
    shutil.copytree(data_dir, copy)
    at_step(6, lambda: shutil.rmtree(copy))
    record = run_here(f"data_dir={copy}", "trainer.pause_at_step=8")
    assert record["status"] == "paused"
    with pytest.raises(Exception, match=r"build it with: python scripts/prepare_data.py"):
        run_here(f"data_dir={copy}")
    assert read(tmp_path / "run")["status"] == "paused"


def test_a_clock_that_jumps_does_not_touch_the_times(run_here, monkeypatch):
    now = iter(range(10**9, 0, -(10**5)))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    record = run_here()
    assert 0 < record["cost"]["train_seconds"] < 60
    assert 0 <= record["cost"]["eval_seconds"] < 60


@pytest.fixture
def small_memory(monkeypatch):
    """A device on which `limit` examples fit."""

    def limit(examples, error):
        def forward(model, tokens, *rest):
            if len(tokens) > examples:
                torch.rand(7)  # an attempt uses up randomness
                raise error
            return whole(model, tokens, *rest)

        whole = Classifier.forward
        monkeypatch.setattr(Classifier, "forward", forward)

    return limit


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_what_does_not_fit_is_told_with_a_size_to_try(run_here, small_memory, tmp_path, error):
    small_memory(5, error)
    with pytest.raises(
        OutOfMemoryError, match=r"micro_batch_size=16; try .*micro_batch_size=8, or"
    ):
        run_here()
    assert read(tmp_path / "run")["failure"]["type"] == "OutOfMemoryError"


@pytest.mark.parametrize("error", ERRORS)
def test_auto_halves_until_it_fits_and_the_run_is_that_of_the_smaller_size(
    run_here, small_memory, tmp_path, error, caplog
):
    """Resumed, it goes on with what it has found; evaluation halves as well."""
    run_here("trainer.micro_batch_size=4", "trainer.eval_batch_size=4", name="small")
    small_memory(5, error)
    run_here("trainer.micro_batch_size=auto", "trainer.pause_at_step=6")
    assert "micro_batch_size=16: going on with 8" in caplog.text
    caplog.clear()
    record = run_here("trainer.micro_batch_size=auto")
    assert "going on with" not in caplog.text
    assert (record["cost"]["micro_batch_size"], record["cost"]["eval_batch_size"]) == (4, 4)
    assert_same_end(tmp_path / "run", tmp_path / "small")


def test_another_error_is_not_taken_for_lack_of_memory(run_here, small_memory):
    small_memory(5, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_here("trainer.micro_batch_size=auto")


def test_threads_are_those_that_slurm_allots(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    follow_allotted_threads()
    assert torch.get_num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    follow_allotted_threads()
    assert torch.get_num_threads() == 3


def test_wandb_holds_the_run(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr("lra.tracker.FINISH_SECONDS", 60)
    record = run_here("tracker=wandb")
    [path] = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    found = read_wandb(path)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ours = [{k: v for k, v in row.items() if not k.startswith("_")} for row in found["history"]]
    assert ours == [json.loads(line) for line in lines]
    assert (found["exit_code"], found["summary"]["record"]["status"]) == (0, "completed")
    assert found["run"].run_id == record["run_id"]
