"""Studies are planned as a sweep is, fill their gaps, stop in time, and travel."""

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from lra.record import RunDirectory, to_dict
from lra.report.records import ACCURACIES, read_metrics
from lra.study.archive import export_runs, import_runs
from lra.study.plan import plan, state_of
from lra.study.progress import Survey, expected_seconds
from lra.study.runner import jobs_to_run, slots


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Three runs of `demo_learning` in different states, and one that has not begun."""
    monkeypatch.chdir(tmp_path)
    jobs = plan("demo_learning", [])
    for job, status in zip(jobs, ("completed", "failed", "paused"), strict=False):
        write_run(job, status)
    return jobs


def write_run(job, status, run_id="a", step=10):
    job.directory.path.mkdir(parents=True, exist_ok=True)
    record = {
        "schema_version": 1,
        "status": status,
        "run_id": run_id,
        "study": "demo",
        "task": job.variant[0],
        "attention": job.variant[1],
        "seed": 0,
        "protocol": {},
        "overrides": {},
        "environment": {},
        "config": to_dict(job.config),
        "data": {"source_kind": "regenerated"},
        "result": dict.fromkeys(ACCURACIES, 0.5),
        "cost": {"train_seconds": 5.0, "eval_seconds": 2.0, "test_seconds": 1.0},
        "failure": {"type": "ValueError", "message": "lost"} if status == "failed" else None,
    }
    job.directory.write(record)
    job.directory.metrics.write_text(json.dumps({"step": step}) + "\n")
    job.directory.last.write_bytes(b"weights")


def test_a_study_is_what_its_experiment_sweeps_in_the_sweeps_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = plan("smoke", ["seed=0,1", "attention=v_mean,softmax", "task=text,image"])
    assert [job.label for job in jobs] == [
        f"clean/random_{task}/{attention}/seed_{seed}"
        for task in ("text", "image")
        for attention in ("v_mean", "softmax")
        for seed in (0, 1)
    ]
    assert len(plan("smoke", [])) == 5 * 16


def test_a_planned_run_has_the_configuration_and_directory_that_training_gives_it(
    tmp_path, monkeypatch, data_dir
):
    monkeypatch.chdir(tmp_path)
    overrides = [f"data_dir={data_dir}", "attention=v_mean", "tracker=none", "trainer.max_steps=51"]
    [job] = plan("demo_learning", overrides)
    subprocess.run([sys.executable, ROOT / "scripts/train.py", *job.overrides], check=True)
    assert state_of(job)[0] == "completed"
    assert jobs_to_run([job], retry_failed=True) == []
    [other] = plan("demo_learning", [*overrides, "optimizer.lr=1"])
    assert state_of(other)[0] == "other"


def test_a_run_from_before_there_was_a_switch_is_one_with_the_switch_off(study):
    completed = study[0]
    record = completed.directory.read()
    del record["config"]["trainer"]["cuda_graph"]
    completed.directory.write(record)
    assert state_of(completed)[0] == "completed"
    switched_on = plan("demo_learning", ["trainer.cuda_graph=true"])[0]
    assert state_of(switched_on)[0] == "other"


def test_runs_that_would_share_a_directory_are_refused():
    with pytest.raises(ValueError, match="share outputs/smoke/clean/random_text/v_mean/seed_0"):
        plan("smoke", ["task=text", "attention=v_mean", "optimizer.lr=1,2"])
    with pytest.raises(ValueError, match=r"no experiment 'tabel1'; there are .*smoke"):
        plan("tabel1", [])


def test_only_what_is_missing_is_run_and_what_failed_on_request(study):
    _, failed, paused, missing = study
    assert jobs_to_run(study, retry_failed=False) == [paused, missing]
    assert jobs_to_run(study, retry_failed=True) == [failed, paused, missing]


def test_the_status_counts_and_tells_the_time_left(study):
    survey = Survey.of(study)
    assert survey.counts() == {"completed": 1, "failed": 1, "paused": 1, "missing": 1}
    assert "1/1" in survey.to_markdown()
    assert "0/1, 1 failed" in survey.to_markdown()
    assert list(survey.failures()) == [f"{study[1].label}: ValueError: lost"]
    assert survey.seconds_left() == (0, 2)
    assert expected_seconds(survey.records) == {study[0].variant: 8.0}


def test_cores_and_gpus_are_shared_out():
    assert slots(None, num_gpus=0, num_cores=8) == [{"OMP_NUM_THREADS": "8"}]
    assert slots(2, num_gpus=0, num_cores=2) == [{"OMP_NUM_THREADS": "1"}] * 2
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(None, num_gpus=4, num_cores=16)] == [
        "0", "1", "2", "3",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="jobs=0"):
        slots(0, num_gpus=0, num_cores=2)


def test_a_study_travels_and_goes_on_elsewhere(study, tmp_path):
    archive, elsewhere = tmp_path / "study.tar.gz", tmp_path / "elsewhere"
    size = export_runs(Path("outputs"), [job.directory for job in study], archive)
    assert size == archive.stat().st_size
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    done, failed, paused = (str(job.directory.path.relative_to("outputs")) for job in study[:3])
    assert f"{done}/record.json" in names
    assert f"{done}/last.pt" not in names
    assert f"{paused}/last.pt" in names
    assert import_runs(str(archive), elsewhere)["new"] == sorted([done, failed, paused])
    assert import_runs(str(archive), elsewhere)["kept"] == sorted([done, failed, paused])
    write_run(study[2], "completed", step=20)
    export_runs(Path("outputs"), [job.directory for job in study], archive)
    assert import_runs(str(archive), elsewhere)["further"] == [paused]
    assert RunDirectory(elsewhere / paused).read()["status"] == "completed"
    write_run(study[2], "paused", step=10)
    export_runs(Path("outputs"), [job.directory for job in study], archive)
    assert import_runs(str(archive), elsewhere)["further"] == []
    assert RunDirectory(elsewhere / paused).read()["status"] == "completed"


def test_an_import_that_does_not_fit_changes_nothing(study, tmp_path):
    archive, elsewhere = tmp_path / "study.tar.gz", tmp_path / "elsewhere"
    export_runs(Path("outputs"), [study[0].directory], archive)
    import_runs(str(archive), elsewhere)
    write_run(study[0], "completed", run_id="b")
    write_run(study[2], "completed")
    export_runs(Path("outputs"), [study[0].directory, study[2].directory], archive)
    with pytest.raises(ValueError, match="holds run a, b is to come"):
        import_runs(str(archive), elsewhere)
    assert not (elsewhere / study[2].directory.path.relative_to("outputs")).exists()
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as an archive"):
        import_runs(str(archive), elsewhere)
    with pytest.raises(FileNotFoundError, match="has begun"):
        export_runs(Path("outputs"), [study[3].directory], archive)


def test_an_archive_cannot_write_outside(tmp_path):
    archive = tmp_path / "evil.tar"
    (tmp_path / "record.json").write_text("{}")
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "record.json", arcname="../../record.json")
    with pytest.raises(ValueError, match="cannot be read"):
        import_runs(str(archive), tmp_path / "root")


def study_script(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "scripts/study.py", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_study_runs_two_at_a_time_until_all_is_done(tmp_path, monkeypatch, data_dir):
    monkeypatch.chdir(tmp_path)
    chosen = [
        "--study", "demo_learning", f"data_dir={data_dir}", "tracker=none",
        "attention=v_mean,softmax_fused", "trainer.max_steps=51", "trainer.check_steps=51",
    ]  # fmt: skip
    first = study_script("run", "--jobs", "2", *chosen)
    assert first.returncode == 0, first.stderr
    assert "2 runs: 2 completed" in first.stdout
    records = {p: p.read_text() for p in Path("outputs").rglob("record.json")}
    again = study_script("run", *chosen)
    assert "2 runs, 0 to do" in again.stdout
    assert {p: p.read_text() for p in Path("outputs").rglob("record.json")} == records


def test_an_archive_stands_before_overrides_and_options_anywhere(study, tmp_path):
    chosen = ("--study", "demo_learning", "attention=v_mean,softmax")
    done = study_script("export", "runs.tar.gz", *chosen)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs.tar.gz").exists()
    done = study_script("export", *chosen, "runs.tar.gz")
    assert "the archive stands before overrides" in done.stderr
    assert "unrecognized arguments: --runs" in study_script("status", *chosen, "--runs").stderr


def test_without_time_nothing_is_begun(tmp_path, monkeypatch, data_dir):
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    done = study_script("run", "--minutes", "0.1", "--study", "demo_learning")
    assert done.returncode == 1
    assert "4 missing" in done.stdout
    assert time.monotonic() - start < 20


def test_a_run_that_cannot_start_is_named_with_its_complaint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = study_script("run", "--study", "demo_learning", "attention=v_mean", "data_dir=none")
    assert done.returncode == 1
    assert "v_mean/seed_0" in done.stdout
    assert "prepare_data.py" in done.stdout


def test_runs_come_back_from_what_wandb_kept_offline(tmp_path, monkeypatch, data_dir):
    monkeypatch.chdir(tmp_path)
    overrides = [f"data_dir={data_dir}", "attention=v_mean", "trainer.max_steps=51"]
    [job] = plan("demo_learning", [*overrides, "tracker.mode=offline"])
    subprocess.run([sys.executable, ROOT / "scripts/train.py", *job.overrides], check=True)
    done = import_runs(str(job.directory.path / "wandb"), tmp_path / "back")
    [name] = done["new"]
    back = RunDirectory(tmp_path / "back" / name)
    ours = job.directory.read()
    ours["result"].pop("test_correct")
    assert back.read() == ours
    assert read_metrics(back.path) == read_metrics(job.directory.path)
    with pytest.raises(ValueError, match="holds no run that has ended"):
        import_runs(str(tmp_path / "back"), tmp_path / "nothing")


def test_runs_come_back_from_a_wandb_project(study, tmp_path, monkeypatch):
    record = study[0].directory.read()
    checks = [{"step": 4, "val/loss": 2.0, "_runtime": 1}, {"_runtime": 2}]
    run = SimpleNamespace(summary={"record": record}, scan_history=lambda: iter(checks))
    running = SimpleNamespace(summary={}, scan_history=lambda: iter([]))
    api = SimpleNamespace(runs=lambda project, order: {"me/lra": [run, running]}[project])
    monkeypatch.setattr("wandb.Api", lambda: api)
    done = import_runs("wandb:me/lra", tmp_path / "back")
    back = RunDirectory(tmp_path / "back" / done["new"][0])
    assert back.read() == record
    assert read_metrics(back.path) == [{"step": 4, "val/loss": 2.0}]
