"""Sweeps: what is launched, what a failure costs, what the same command does next."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from sweeps import Launch, directory, statuses
from test_train_script import read_record

from lra.gpus import one_of, visible_gpus
from lra.own_process import JobDiedError, run_in_own_process
from lra.record import RunDirectory
from lra.sweep import Job, Progress, duration, in_turns, why_unfinished


@pytest.fixture
def launch(data_dir, tmp_path):
    return Launch(data_dir, tmp_path)


@pytest.mark.parametrize("launcher", ["joblib", "local"])
def test_a_raising_and_a_killed_run_stop_no_other_and_the_same_command_finishes_them(
    launch, tmp_path, launcher
):
    sweep = (f"launcher={launcher}", "attention=raises,killed,softmax,v_mean")
    output = launch(*sweep, expected=1, CUDA_VISIBLE_DEVICES="7,9")
    assert statuses(tmp_path) == {
        "raises": "failed",
        "killed": "running",
        "softmax": "completed",
        "v_mean": "completed",
    }
    assert "2 of 4 runs are unfinished" in output
    assert "raises/seed_0: failed: RuntimeError: this variant goes wrong" in output
    assert re.search(r"killed/seed_0: stopped: .*killed by SIGKILL", output)
    logs = "".join(path.read_text() for path in tmp_path.rglob("train.log"))
    assert set(re.findall(r"GPU (\d+)", logs)) == {"7", "9"}
    finished = {name: read_record(directory(tmp_path, name)) for name in ("softmax", "v_mean")}
    output = launch(*sweep, CUDA_VISIBLE_DEVICES="7,9")
    assert "4 runs: 2 completed, 0 running elsewhere, 2 to do" in output
    assert set(statuses(tmp_path).values()) == {"completed"}
    assert finished == {name: read_record(directory(tmp_path, name)) for name in finished}


def test_batches_after_a_failed_one_run_and_a_process_for_each_run_is_a_choice(launch, tmp_path):
    sweep = ("attention=raises,v_mean,softmax", "hydra.sweeper.max_batch_size=1")
    output = launch(*sweep, "hydra.sweeper.isolate=false", expected=1)
    assert statuses(tmp_path) == {"raises": "failed", "softmax": "completed", "v_mean": "completed"}
    assert "1 of 3 runs are unfinished" in output
    # the traceback of what went wrong in this process is in the run's own log
    log = (directory(tmp_path, "raises") / "train.log").read_text()
    assert 'raise RuntimeError("this variant goes wrong")' in log


def test_a_run_that_another_process_is_at_is_waited_for_not_run_twice(launch, tmp_path):
    run = RunDirectory(directory(tmp_path, "softmax"))
    output = []
    with run.lock:
        sweep = threading.Thread(
            target=lambda: output.append(launch("attention=softmax", expected=1))
        )
        sweep.start()
        while not (tmp_path / "outputs/adhoc/multirun.yaml").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        assert sweep.is_alive()
    sweep.join()
    assert "1 runs: 0 completed, 1 running elsewhere, 0 to do" in output[0]
    assert "1 of 1 runs are unfinished" in output[0]
    assert not run.record.exists()


def test_what_cannot_be_swept_is_refused_before_anything_starts(launch, tmp_path):
    output = launch("attention=softmax,v_mean", "optimizer.lr=0.1,0.2", expected=1)
    assert re.search(r"share outputs/.*/seed_0: one has optimizer.lr=0.1, the other", output)
    assert "name='...${optimizer.lr}'" in output
    assert "are the same run" in launch("seed=0,0", expected=1)
    assert not list(tmp_path.rglob("record.json"))


def job(path, record=None, **config):
    run = RunDirectory(path)
    if record is not None:
        path.mkdir(exist_ok=True)
        run.write(record)
    return Job((), run, config)


def test_jobs_that_differ_in_where_they_pause_take_turns(tmp_path):
    jobs = [
        job(tmp_path / name, trainer={"pause_at_step": step}, seed=seed)
        for step in (8, 16, None)
        for seed, name in enumerate("ab")
    ]
    assert in_turns(jobs) == [jobs[:2], jobs[2:4], jobs[4:]]
    jobs.append(job(tmp_path / "a", trainer={"pause_at_step": 16}, seed=1))
    with pytest.raises(ValueError, match="one has seed=0, the other seed=1"):
        in_turns(jobs)


def test_an_unfinished_run_is_named_with_its_reason(tmp_path):
    failure = {"type": "NonFiniteLossError", "message": "the training loss is nan"}
    expected = {
        "completed": None,
        "failed": "failed: NonFiniteLossError: the training loss is nan",
        "paused": "paused: the same command goes on",
        "running": "stopped: killed by SIGKILL",
    }
    for status, reason in expected.items():
        unfinished = job(tmp_path / status, {"status": status, "failure": failure})
        assert why_unfinished(unfinished, "killed by SIGKILL") == reason
    assert why_unfinished(job(tmp_path / "none"), "no data") == "never started: no data"


def test_progress_tells_how_many_and_how_long(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("lra.sweep.POLL_SECONDS", 0.01)
    clock = [0.0]
    monkeypatch.setattr("lra.sweep.time.monotonic", lambda: clock[0])
    jobs = [
        job(tmp_path / f"{i}", {"status": "completed" if i == 0 else "failed"}) for i in range(5)
    ]
    progress = Progress([job.directory for job in jobs])
    monkeypatch.setattr(progress, "_log", progress._log.getChild("test"))
    progress._log.propagate = False
    progress._log.addHandler(caplog.handler)
    with progress:
        clock[0] = 600.0
        jobs[1].directory.write({"status": "failed"})  # again
        jobs[2].directory.write({"status": "completed"})
        time.sleep(0.1)
    assert caplog.messages[-1] == "2 of 5 runs completed, 1 failed, about 10 min left"
    assert [duration(s) for s in (5, 119, 121, 3 * 3600, 200_000)] == [
        "5 s", "119 s", "2 min", "3 h", "2 days",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("raise SystemExit(3)", "ended with status 3"),
    ],
)
def test_a_process_that_does_not_end_well_is_a_failed_job(ending, message):
    with pytest.raises(JobDiedError, match=message):
        run_in_own_process([sys.executable, "-c", ending], [])


def test_what_stops_a_job_reaches_its_process_first(tmp_path):
    saved, heard = tmp_path / "saved", []
    program = f"""
import pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), pathlib.Path("{saved}").touch(), exit()))
pathlib.Path("{saved}.ready").touch()
time.sleep(60)
"""

    def preempt():
        while not saved.with_suffix(".ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR2)

    previous = signal.signal(signal.SIGUSR2, lambda *_: heard.append(saved.exists()))
    try:
        threading.Thread(target=preempt).start()
        run_in_own_process([sys.executable, "-c", program], [])
    finally:
        signal.signal(signal.SIGUSR2, previous)
    assert heard == [True]


def test_a_gpu_belongs_to_one_job_until_that_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("lra.gpus.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("lra.gpus.WAIT_SECONDS", 0.01)
    gpus = visible_gpus("3, GPU-5")
    with one_of([]) as nothing, one_of(gpus) as first:
        assert nothing is None
        with one_of(gpus) as second:
            assert (first.name, second.name) == ("3", "GPU-5")
            child = subprocess.Popen(["sleep", "0.3"], pass_fds=[second.lock.fileno()])
        with one_of(gpus) as third:  # only when the child has ended, too
            assert third.name == "GPU-5"
            assert child.poll() is not None or child.wait() == 0
        assert child.returncode == 0


def test_a_process_sees_its_gpu_alone_and_keeps_it_when_this_one_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("lra.gpus.tempfile.gettempdir", lambda: str(tmp_path))
    program = f"""
import os, pathlib
assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
held = [path.resolve() for path in pathlib.Path("/proc/self/fd").iterdir()]
assert any(path.is_relative_to("{tmp_path}") for path in held)
"""
    run_in_own_process([sys.executable, "-c", program], ["3"])


def test_which_gpus_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr("lra.gpus.DRIVER", tmp_path)
    assert visible_gpus("auto") == []
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
    assert visible_gpus("auto") == ["0", "1"]
    assert visible_gpus([4, "MIG-1"]) == ["4", "MIG-1"]
    assert visible_gpus("") == visible_gpus("-1") == []
