"""W&B hears everything, and can neither hold up a run nor end it."""

import json
import os
import struct
import time
import zlib

import pytest

from lra.record import RunIdentity
from lra.tracker import WandbTracker

METRICS = [{"step": step, "val/loss": 1 / step, "memory": None} for step in (4, 8, 12)]
RECORD = {"status": "completed", "result": {"test_accuracy_best": 0.25}}


def read_wandb(path):
    """What an offline file holds: 32 KiB blocks of checksummed pieces of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, piece = path.read_bytes(), 7, b""
    found = {"history": [], "config": {}, "summary": {}, "exit_code": None}
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        checksum, size, kind = struct.unpack_from("<IHB", content, position)
        data = content[position + 7 : position + 7 + size]
        assert zlib.crc32(bytes([kind]) + data) == checksum
        position += 7 + size
        piece = data if kind in (1, 2) else piece + data  # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            message = Record.FromString(piece)
            if message.WhichOneof("record_type") == "history":
                found["history"].append(items(message.history.item))
            found["config"] |= items(message.run.config.update)
            found["summary"] |= items(message.summary.update)
            if message.HasField("run"):
                found["run"] = message.run
            if message.HasField("exit"):
                found["exit_code"] = message.exit.exit_code
    return found


def items(entries):
    return {e.key or ".".join(e.nested_key): json.loads(e.value_json) for e in entries}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a tracker; `fake` is put in the place of the package wandb."""
    started = []

    def build(mode="offline", fake=None):
        if fake is not None:
            (tmp_path / "fake").mkdir()
            (tmp_path / "fake/wandb.py").write_text(fake)
            monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'fake'}:{os.environ['PYTHONPATH']}")
        tracker = WandbTracker(
            directory=tmp_path,
            config={"seed": 3, "optimizer": {"lr": 0.01}},
            identity=RunIdentity("a_study", "clean/x/y/seed_3", ("x", "y"), "run0"),
            project="lra",
            mode=mode,
            init_timeout_seconds=1.0,
        )
        started.append(tracker._mirror)
        return tracker

    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    yield build
    for mirror in started:
        mirror.kill()
        mirror.wait()


def assert_everything_is_there(directory, exit_code=0):
    [path] = directory.glob("wandb/offline-run-*/run-run0.wandb")
    found = read_wandb(path)
    assert found["run"].run_group == "a_study"
    assert found["run"].display_name == "clean/x/y/seed_3"
    assert (found["run"].job_type, list(found["run"].tags)) == ("train", ["x", "y"])
    assert found["config"]["seed"] == 3
    assert found["config"]["optimizer"] == {"lr": 0.01}
    assert [{key: row[key] for key in METRICS[0]} for row in found["history"]] == METRICS
    assert found["summary"]["record"]["result"] == RECORD["result"]
    assert found["exit_code"] == exit_code


def test_the_offline_file_holds_names_config_every_metric_and_the_end(start, tmp_path, monkeypatch):
    monkeypatch.setattr("lra.tracker.FINISH_SECONDS", 60)
    tracker = start()
    for metrics in METRICS:
        tracker.log(metrics)
    tracker.finish(RECORD | {"status": "failed"})
    assert_everything_is_there(tmp_path, exit_code=1)


def test_without_network_an_online_run_is_logged_offline(start, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("lra.tracker.FINISH_SECONDS", 60)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    begun = time.monotonic()
    tracker = start(mode="online")
    for metrics in METRICS:
        tracker.log(metrics)
    assert time.monotonic() - begun < 1
    tracker.finish(RECORD)
    assert "does not answer" in caplog.text
    assert_everything_is_there(tmp_path)


def test_a_hanging_wandb_is_left_behind(start, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("lra.tracker.FINISH_SECONDS", 0.3)
    tracker = start(fake="import time\ntime.sleep(1000)")
    begun = time.monotonic()
    for _ in range(1000):  # more than a pipe holds
        for metrics in METRICS:
            tracker.log(metrics)
    tracker.finish(RECORD)
    assert time.monotonic() - begun < 2
    assert "has stopped listening; metrics.jsonl has every figure" in caplog.text
    assert "W&B has not finished" in caplog.text


def test_an_error_in_wandb_is_told_and_changes_nothing(start, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("lra.tracker.FINISH_SECONDS", 60)
    tracker = start(fake="raise RuntimeError('the moon is wrong')")
    tracker._mirror.wait()
    for metrics in METRICS:
        tracker.log(metrics)
    tracker.finish(RECORD)
    assert "W&B has stopped listening" in caplog.text
    assert "RuntimeError: the moon is wrong" in caplog.text


def test_what_a_killed_run_had_said_is_kept_as_that_of_a_crash(start, tmp_path):
    tracker = start()
    for metrics in METRICS:
        tracker.log(metrics)
    tracker._mirror.stdin.close()  # as when the process dies
    tracker._mirror.wait()
    [path] = tmp_path.glob("wandb/offline-run-*/run-run0.wandb")
    found = read_wandb(path)
    assert len(found["history"]) == 3
    assert found["exit_code"] == 1
