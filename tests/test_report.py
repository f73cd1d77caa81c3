"""Tables and pictures say what the records say, and refuse what they cannot trust."""

import copy
import csv
import json

import pytest

from lra.report.comparison import group, to_markdown, write_csv
from lra.report.figures import draw_comparison
from lra.report.records import read_records


def make_record(attention="skeinformer", seed=0, task="listops", **changes):
    record = {
        "schema_version": 1,
        "status": "completed",
        "study": "s",
        "task": task,
        "attention": attention,
        "seed": seed,
        "protocol": {"name": "clean", "overrides": {}},
        "overrides": {},
        "command": "python scripts/train.py",
        "config": {
            "choices": {"task": task},
            "num_features": 256,
            "trainer": {"batch_size": 4, "max_steps": 24},
        },
        "git": {"commit": "c" * 40, "dirty": False},
        "environment": {"device": "CPU", "num_threads": 2, "precision": "fp32", "torch": "2.13.0"},
        "data": {"source_kind": "regenerated", "sha256": "d" * 64, "val_is_test": False},
        "num_parameters": 12345,
        "result": {
            "headline": "best",
            "best_val_accuracy": 0.25,
            "val_count": 100,
            "test_accuracy_best": 0.5,
            "test_accuracy_last": 0.125,
            "test_count": 200,
            "test_constant_accuracy": 0.17,
        },
        "cost": {
            "seconds_per_step_median": 0.5,
            "seconds_per_step_quartiles": [0.4, 0.6],
            "train_seconds": 10.0,
            "test_seconds": 2.0,
            "peak_allocated_bytes": 2**30,
        },
        "failure": None,
    }
    return record | changes


@pytest.fixture
def study(tmp_path):
    """Writes records; returns the folder."""

    def write(*records):
        for number, record in enumerate(records):
            directory = tmp_path / "study" / str(number)
            directory.mkdir(parents=True)
            (directory / "record.json").write_text(json.dumps(record))
            checks = [{"time/train_seconds": t, "val/accuracy": t / 100} for t in (1, 2, 3)]
            (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, checks)))
        return tmp_path / "study"

    return write


def tables(folder):
    records = read_records(folder)
    return [to_markdown(s, variants, records) for s, variants in group(records).items()]


def cells(table, variant):
    [line] = [row for row in table.splitlines() if row.startswith(f"| {variant} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_shows_each_figure_in_its_unit(study):
    [table] = tables(study(make_record()))
    assert cells(table, "skeinformer") == [
        "skeinformer", "1", "25.00", "100", "50.00", "12.50", "200", "17.00",
        "0.5000 (0.4000–0.6000)", "10.0", "2.0", "1,024", "12,345",
    ]  # fmt: skip
    assert "regenerated data (sha256 dddddddddddd), protocol clean, batch 4" in table


def test_seeds_become_mean_and_standard_deviation(study):
    second = make_record(seed=1)
    second["result"] = second["result"] | {"test_accuracy_best": 0.54}
    [table] = tables(study(make_record(), second))
    assert cells(table, "skeinformer")[1:5] == ["2", "25.00", "100", "52.00 ± 2.83"]


def test_a_missing_figure_is_a_dash_and_a_failure_its_name(study):
    failure = {"type": "OutOfMemoryError", "message": "…"}
    failed = make_record("softmax", status="failed", failure=failure, result={}, cost={})
    paused = make_record("v_mean", status="paused", result={}, cost={})
    holed = make_record()
    holed["cost"] = holed["cost"] | {"peak_allocated_bytes": None}
    [table] = tables(study(failed, paused, holed))
    assert cells(table, "softmax")[1:] == ["OutOfMemoryError", *["—"] * 11]
    assert cells(table, "v_mean")[1:] == ["paused", *["—"] * 11]
    assert cells(table, "skeinformer")[-2] == "—"


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("environment", {"device": "GPU"}),
        ("environment", {"precision": "bf16"}),
        ("data", {"sha256": "e" * 64}),
        ("data", {"source_kind": "official"}),
        ("protocol", {"overrides": {"protocol.pooling": "padded_mean"}}),
        ("overrides", {"trainer.bucket": True}),
        ("overrides", {"model.packed": True}),
        ("overrides", {"trainer.micro_batch_size": 2}),
        ("config", {"trainer": {"batch_size": 8, "max_steps": 24}}),
    ],
)
def test_what_cannot_be_compared_stands_in_tables_apart(study, section, change):
    other = make_record("softmax")
    other[section] = copy.deepcopy(other[section]) | change
    first, second = tables(study(make_record(), other))
    assert first.splitlines()[0] != second.splitlines()[0]


def test_a_stand_in_stands_under_its_own_name(study):
    record = make_record()
    record["data"] |= {"source_kind": "stand-in", "source_name": "Fashion-MNIST 32x32"}
    [table] = tables(study(record))
    assert table.startswith("**Fashion-MNIST 32x32, stand-in data")
    assert "listops" not in table


def test_the_csv_names_run_commit_and_command(study, tmp_path):
    folder = study(make_record(), make_record("softmax", status="running", cost={}, result={}))
    write_csv(tmp_path / "out.csv", read_records(folder))
    with (tmp_path / "out.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["test_accuracy_best"] == "0.5"
    assert first["run_directory"] == str(folder / "0")
    assert first["git_commit"] == "c" * 40
    assert second["test_accuracy_best"] == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "schema_version=None"),
        (json.dumps(make_record(schema_version=99)), "schema_version=99"),
        (json.dumps(make_record(data={})), "lacks data.source_kind"),
        (json.dumps(make_record(result={})), "is completed, but has result.best_val_accuracy=None"),
        (json.dumps(make_record(status="failed")), "is failed, but says not how"),
        (json.dumps(make_record(status="done")), "status=done, not one of running, paused, compl"),
        (json.dumps(make_record()), "hold the same run; delete one of them"),
    ],
)
def test_a_record_that_cannot_be_trusted_is_refused_by_name(study, text, message):
    folder = study(make_record(), make_record(seed=1))
    (folder / "1/record.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_records(folder)
    assert str(folder / "1/record.json") in str(caught.value)


def test_an_empty_study_is_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no runs below"):
        read_records(tmp_path)


def test_the_picture_is_drawn_also_where_a_run_has_failed(study, tmp_path):
    failed = make_record("softmax", status="failed", failure={"type": "X"}, result={}, cost={})
    records = read_records(study(make_record(), failed, make_record("v_mean")))
    draw_comparison(tmp_path / "out", group(records), records)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
