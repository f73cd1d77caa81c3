"""A picture draws its CSV, and its CSV is what the runs have written."""

import csv
import json
import subprocess
import sys

import pytest
from conftest import ATTENTIONS, ROOT
from test_accuracy_table import study  # noqa: F401

from lra.report.learning import draw_learning
from lra.report.records import read_records
from lra.report.sensitivity import draw_sensitivity
from lra.report.style import style_of
from lra.report.tradeoff import draw_tradeoff


def rows(stem):
    with stem.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


def are_drawn(files):
    heads = {".pdf": b"%PDF", ".png": b"\x89PNG"}
    drawn = {path.suffix: path.read_bytes()[:4] for path in files if path.suffix != ".csv"}
    return drawn == heads and [path.suffix for path in files] == [".csv", ".pdf", ".png"]


def add_curve(directory, losses, train_seconds=10.0, eval_seconds=2.0):
    checks = [
        {
            "step": step,
            "val/loss": loss,
            "val/accuracy": 0.5,
            "time/train_seconds": train_seconds * step,
            "time/eval_seconds": eval_seconds * step,
        }
        for step, loss in enumerate(losses, start=1)
    ]
    directory.metrics.write_text("".join(json.dumps(check) + "\n" for check in checks))


def test_figure_2_is_loss_over_the_time_of_training_and_validation(study, tmp_path):  # noqa: F811
    add_curve(study.add("skeinformer", 0, "listops"), [2.3, 1.7])
    add_curve(study.add("skeinformer", 1, "listops"), [2.2])
    study.add("softmax", 0, "listops", status="running")
    [table] = study.tables()
    files = draw_learning(table, tmp_path / "out", ["skeinformer", "softmax"])
    assert are_drawn(files)
    found = rows(tmp_path / "out")
    ours = [row for row in found if row["source"] == "run"]
    assert [(r["seed"], r["step"], r["seconds"], r["val_loss"]) for r in ours] == [
        ("0", "1", "12.0", "2.3"), ("0", "2", "24.0", "1.7"), ("1", "1", "12.0", "2.2"),
    ]  # fmt: skip
    assert ours[0]["run_directory"] == str(study.folder / "listops/skeinformer/seed_0")
    theirs = {row["variant"]: row for row in found if row["source"] != "run"}
    assert (theirs["skeinformer"]["seconds"], theirs["skeinformer"]["val_loss"]) == (
        "5500",
        "1.593",
    )
    assert set(theirs) == {"skeinformer", "softmax"}


def test_no_published_curve_stands_beside_a_stand_in(study, tmp_path):  # noqa: F811
    data = {"source_kind": "stand-in", "source_name": "halves"}
    add_curve(study.add("skeinformer", 0, "listops", data=data), [2.3])
    [table] = study.tables()
    draw_learning(table, tmp_path / "out", ["skeinformer"])
    assert {row["source"] for row in rows(tmp_path / "out")} == {"run"}


def test_without_a_check_there_is_no_curve(study, tmp_path):  # noqa: F811
    study.add()
    [table] = study.tables()
    with pytest.raises(ValueError, match="no run of skeinformer has been checked yet"):
        draw_learning(table, tmp_path / "out", ["skeinformer"])


def test_the_tradeoff_is_of_completed_runs_with_their_time_and_memory(study, tmp_path):  # noqa: F811
    study.three_seeds("skeinformer", [0.60, 0.62, 0.64])
    study.add("skeinformer", 3, status="paused", cost={"seconds_per_step_median": 9.0})
    study.add("v_mean", accuracy=0.5, cost={"peak_allocated_bytes": 2**29})
    study.add("softmax", status="failed", failure={"type": "OutOfMemoryError"}, cost={})
    study.add("bigbird", cost={"peak_allocated_bytes": None})
    [table] = study.tables()
    variants = ["softmax", "v_mean", "bigbird", "skeinformer"]
    assert are_drawn(draw_tradeoff(table, tmp_path / "out", variants))
    v_mean, skeinformer = rows(tmp_path / "out")
    assert float(skeinformer["accuracy"]) == pytest.approx(0.62)
    assert float(skeinformer["sd"]) == pytest.approx(0.02)
    assert (skeinformer["seconds_per_step"], skeinformer["num_seeds"]) == ("0.5", "3")
    assert (v_mean["peak_allocated_bytes"], v_mean["sd"]) == (str(2**29), "")
    with pytest.raises(ValueError, match="no run of softmax is completed"):
        draw_tradeoff(table, tmp_path / "out", ["softmax"])


def add_setting(study, lr, batch_size, seed=0, **changes):  # noqa: F811
    config = {"trainer": {"batch_size": batch_size}, "optimizer": {"lr": lr}}
    directory = study.add(seed=seed, config=config, overrides={"optimizer.lr": lr}, **changes)
    record = directory.read()
    record["cost"]["eval_seconds"] = 5.0
    directory.write(record)
    return directory.path.rename(directory.path.with_name(f"{batch_size}_{lr}_{seed}"))


def test_figure_3_is_accuracy_and_time_by_learning_rate_and_batch(study, tmp_path):  # noqa: F811
    for seed in (0, 1):
        add_setting(study, 1e-4, 64, seed, accuracy=0.6 + 0.02 * seed)
        add_setting(study, 1e-5, 128, seed)
    records = read_records(study.folder)
    assert are_drawn(draw_sensitivity(records, tmp_path / "out"))
    found = rows(tmp_path / "out")
    ours = {(r["batch_size"], r["lr"], r["seed"]): r for r in found if r["source"] == "run"}
    assert len(ours) == 4
    assert float(ours["64", "0.0001", "1"]["accuracy"]) == pytest.approx(62)
    assert ours["64", "0.0001", "1"]["seconds"] == "15.0"
    theirs = [r for r in found if r["source"] == "NAACL 2022, Figure 3"]
    assert len(theirs) == 6
    assert {(r["lr"], r["accuracy"]) for r in theirs} > {("0.0001", "62.6"), ("1e-05", "65.9")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": {"device": "GPU"}}, "one picture, one variant under one setting"),
        ({"data": {"sha256": "e" * 64}}, "differ in sha256"),
    ],
)
def test_figure_3_refuses_runs_that_differ_in_more(study, tmp_path, change, message):  # noqa: F811
    add_setting(study, 1e-4, 64)
    add_setting(study, 1e-5, 64, **change)
    with pytest.raises(ValueError, match=message):
        draw_sensitivity(read_records(study.folder), tmp_path / "out")


def test_no_two_variants_look_the_same_even_without_color():
    styles = {name: style_of(name, ATTENTIONS) for name in ATTENTIONS}
    assert len({(style.marker, style.line) for style in styles.values()}) == len(ATTENTIONS)


@pytest.mark.parametrize("script", ["make_table.py 1", "make_figure.py tradeoff"])
def test_the_scripts_write_what_they_say(study, script):  # noqa: F811
    study.add()
    done = execute(script, study.folder)
    assert done.returncode == 0, done.stderr
    written = sorted((study.folder.parent / "outputs/report").iterdir())
    assert len(written) == 3
    for path in written:
        assert path.stem == f"study_{script[5:].replace('.py ', '_')}"
        assert path.name in done.stdout


def test_a_damaged_record_is_refused_in_one_line(study):  # noqa: F811
    study.add().record.write_text("{")
    done = execute("make_table.py 1", study.folder)
    assert done.returncode == 1
    assert "is not JSON" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def execute(script, folder):
    name, choice = script.split()
    command = [sys.executable, str(ROOT / "scripts" / name), choice, "--study", folder.name]
    where = ["--records", str(folder.parent)]
    return subprocess.run([*command, *where], cwd=folder.parent, capture_output=True, text=True)
