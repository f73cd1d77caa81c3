"""A sweep on a SLURM: `.ci/slurm` provides one. Never on a cluster that happens to be there."""

import os

import pytest
from sweeps import Launch, directory, statuses
from test_train_script import read_record

pytestmark = pytest.mark.skipif(
    "LRA_TEST_SLURM" not in os.environ, reason="no SLURM to test on: see .ci/slurm"
)

SMALL_NODE = (
    "launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=null",
    "hydra.launcher.timeout_min=5",
)


@pytest.fixture
def launch(data_dir, tmp_path):
    return Launch(data_dir, tmp_path)


def test_a_preempted_run_goes_on_and_a_killed_one_is_finished_by_the_same_command(launch, tmp_path):
    sweep = (*SMALL_NODE, "attention=killed,preempted,softmax,v_mean")
    output = launch(*sweep, expected=1)
    assert statuses(tmp_path) == {
        "killed": "running",
        "preempted": "completed",
        "softmax": "completed",
        "v_mean": "completed",
    }
    assert "killed/seed_0: stopped: UncompletedJobError" in output
    preempted = directory(tmp_path, "preempted")
    assert len(read_record(preempted)["resumes"]) == 1
    assert "the same command goes on from there" in (preempted / "train.log").read_text()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("last.pt")}
    output = launch(*sweep)
    assert "4 runs: 3 completed, 0 running elsewhere, 1 to do" in output
    assert set(statuses(tmp_path).values()) == {"completed"}
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
