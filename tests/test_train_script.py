"""The command line: whole runs in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from lra.correctness import read_correct
from lra.record import RunDirectory

SMALL = (
    "task=listops_short",
    "num_features=8",
    "trainer.batch_size=16",
    "trainer.max_steps=12",
    "trainer.warmup_steps=3",
    "trainer.check_steps=4",
    "trainer.max_eval_examples=40",
    "model.embed_dim=16",
    "model.hidden_dim=16",
)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(data_dir):
    def build(*overrides, tracker="none", flags=()):
        fixed = (*SMALL, f"data_dir={data_dir}", f"tracker={tracker}")
        return [sys.executable, str(ROOT / "scripts/train.py"), *flags, *fixed, *overrides]

    return build


def execute(command, cwd, expected=0):
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_directory(cwd, study, attention="skeinformer", seed=0) -> Path:
    return cwd / "outputs" / study / "clean" / "listops_short" / attention / f"seed_{seed}"


def read_record(directory):
    return json.loads((directory / "record.json").read_text())


def last_step(directory):
    try:
        return torch.load(directory / "last.pt")["progress"]["step"]
    except FileNotFoundError:
        return 0


def test_a_run_leaves_a_traceable_record_and_is_not_run_twice(command, tmp_path):
    execute(command("seed=3"), tmp_path)
    directory = run_directory(tmp_path, "adhoc", seed=3)
    record = read_record(directory)
    assert record["status"] == "completed"
    assert (record["task"], record["attention"], record["seed"]) == (
        "listops_short",
        "skeinformer",
        3,
    )
    assert record["overrides"]["trainer.max_steps"] == 12
    assert "scheduler.max_steps" not in record["overrides"]  # it follows the trainer's
    assert record["protocol"] == {"name": "clean", "overrides": {}}
    assert record["data"]["source_kind"] == "regenerated"
    assert len(record["data"]["sha256"]) == 64
    assert record["command"].startswith("python scripts/train.py task=listops_short")
    assert len(record["git"]["commit"]) == 40
    assert record["result"]["test_count"] == 40
    assert record["result"]["final_step"] == 12
    assert record["cost"]["num_timed_steps"] == 2
    assert record["cost"]["peak_allocated_bytes"] > 4 * record["num_parameters"]
    files = {path.name for path in directory.iterdir()}
    logs = {"metrics.jsonl", "train.log"}
    assert files == {"config.yaml", "record.json", "test_correct.npz", "best.pt", "last.pt", *logs}
    correct = read_correct(RunDirectory(directory), record)
    assert correct["best"].mean() == record["result"]["test_accuracy_best"]
    assert (directory / "test_correct.npz").stat().st_size < 1000
    before = (directory / "record.json").stat().st_mtime_ns
    assert "already done" in execute(command("seed=3"), tmp_path)
    assert (directory / "record.json").stat().st_mtime_ns == before
    message = execute(command("seed=3", "trainer.max_steps=13"), tmp_path, expected=1)
    assert "holds a run with trainer.max_steps=12, but this one has trainer.max_steps=13" in message
    # keys that do not change a result may differ
    assert "already done" in execute(command("seed=3", "trainer.checkpoint_minutes=3.0"), tmp_path)


def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(command, tmp_path):
    often = ("trainer.checkpoint_minutes=0.0", "trainer.max_steps=60", "trainer.check_steps=20")
    execute(command(*often, "study=whole"), tmp_path)
    directory = run_directory(tmp_path, "killed")
    for kill_after in (3, 24):
        process = subprocess.Popen(command(*often, "study=killed"), cwd=tmp_path, env=ENVIRONMENT)
        while last_step(directory) < kill_after and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert read_record(directory)["status"] == "running"
    output = execute(command(*often, "study=killed"), tmp_path)
    assert "resuming at step" in output
    whole, killed = (run_directory(tmp_path, study) for study in ("whole", "killed"))
    for name in ("last.pt", "best.pt"):
        ours, theirs = (torch.load(d / name)["model"] for d in (killed, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert read_record(killed)["result"] == read_record(whole)["result"]
    assert len(read_record(killed)["resumes"]) == 2
    assert not list(killed.glob("*.tmp*"))


def test_ctrl_c_saves_and_leaves_a_run_that_goes_on(command, tmp_path):
    long = (
        "trainer.max_steps=100000",
        "trainer.check_steps=50000",
        "trainer.checkpoint_minutes=0.0",
    )
    directory = run_directory(tmp_path, "adhoc")
    process = subprocess.Popen(
        command(*long), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    while last_step(directory) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "the same command goes on from there" in output
    assert read_record(directory)["status"] == "paused"
    step = last_step(directory)
    execute(command(*long, f"trainer.pause_at_step={step + 2}"), tmp_path)
    assert last_step(directory) == step + 2


def test_a_diverging_run_is_recorded_and_the_sweep_goes_on(command, tmp_path):
    sweep = command("optimizer.lr=1e30,1e-3", "name=lr_${optimizer.lr}", flags=["-m"])
    output = execute(sweep, tmp_path, expected=1)
    failed, done = (read_record(tmp_path / "outputs/adhoc" / n) for n in ("lr_1e+30", "lr_0.001"))
    assert failed["status"] == "failed"
    assert failed["failure"]["type"] == "NonFiniteLossError"
    assert "lower optimizer.lr" in failed["failure"]["message"]
    assert done["status"] == "completed"
    assert "NonFiniteLossError" in output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attention=skeinfromer", "Available options in 'attention'"),
        ("task=lisstops", "Available options in 'task'"),
        ("trainer.max_step=3", "Key 'max_step' is not in struct"),
        ("num_features=0", "num_samples=0 is not a positive integer"),
        ("trainer.precision=fp8", "trainer.precision=fp8 is not one of fp32, bf16, fp16"),
        ("data_dir=nowhere", "python scripts/prepare_data.py task=listops_short data_dir=nowhere"),
        ("device=cuda", "use device=cpu"),
    ],
)
def test_bad_input_gets_a_clear_error_before_any_work(command, tmp_path, override, message):
    assert message in execute(command(override), tmp_path, expected=1)
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_an_output_that_cannot_be_written_is_one_line(command, tmp_path, flags):
    (tmp_path / "outputs").touch()
    message = execute(command(flags=flags), tmp_path, expected=1)
    assert message.startswith("cannot write to outputs/adhoc")
    assert "Traceback" not in message


def test_core_trains_without_trackers_readers_or_plots_installed(command, tmp_path):
    blocked = ("wandb", "matplotlib", "tensorflow_datasets", "tabulate")
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n"
    )
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command(), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_record(run_directory(tmp_path, "adhoc"))["status"] == "completed"


def test_help_is_quick(tmp_path):
    """It loads no torch: well under the three seconds that a person waits gladly."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts/train.py"), "--help"]
    output = execute(command, tmp_path)
    assert "attention:" in output
    assert not any(line.split("|")[-1].strip() == "torch" for line in output.splitlines())


def test_wandb_offline_holds_config_names_and_metrics(command, tmp_path):
    execute(command(tracker="wandb"), tmp_path)
    [path] = run_directory(tmp_path, "adhoc").glob("wandb/offline-run-*/run-*.wandb")
    inspect = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
    entries = [json.loads(line) for line in execute([*inspect, str(path)], tmp_path).splitlines()]
    text = json.dumps(entries)
    assert [e["type"] for e in entries].count("history") == 3
    name = "clean/listops_short/skeinformer/seed_0"
    keys = ("val/accuracy", "time/train_seconds", "memory/peak_allocated_gib", "optim/lr")
    for expected in (name, "adhoc", "test_accuracy_best", *keys):
        assert expected in text
