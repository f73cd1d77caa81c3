"""Table 2 and Table 3: what a step is put together from, what fits, and what stands beside it."""

import json

import numpy as np
import pytest
from conftest import ROOT

from lra.benchmark.cells import read_cells
from lra.benchmark.largest_batch import Attempts, Limits, Search, Trial, batch_sizes
from lra.benchmark.steps import (
    compose_run,
    evaluation_seconds_per_step,
    open_task,
    seconds_per_step,
    validation_count,
)
from lra.report import table2, table3
from lra.report.table3 import published_formula

MEASURES = {
    "accumulate_seconds": [0.5, 1.0, 7.0],
    "update_seconds": [0.2, 0.25, 0.3],
    "evaluate_seconds": [0.4, 0.4, 0.5],
    "micro_batch_size": 4,
    "check_steps": 500,
    "validation_count": 2500,
}
UNLIMITED = Limits(budget_bytes=100, trial_bytes=1e12, trial_seconds=1e12)


def trials_of(peak_of, seen):
    """Attempts in which a step of b examples takes `peak_of(b)` bytes and b seconds."""

    def attempt(sizes):
        seen.extend(sizes)
        return [
            Trial(b, "measured", peak_of(b), float(b)) if peak_of(b) <= 150 else Trial(b, "died")
            for b in sizes
        ]

    return attempt


def test_a_step_is_its_micro_batches_and_one_update():
    assert seconds_per_step(MEASURES, 128) == 32 * 1.0 + 0.25
    assert evaluation_seconds_per_step(MEASURES) == pytest.approx(0.4 / 4 * 2500 / 500)
    assert evaluation_seconds_per_step({**MEASURES, "validation_count": None}) is None


@pytest.mark.parametrize(
    ("task", "overrides", "count"),
    [
        ("text", (), 2500),
        ("text", ("protocol=paper",), 25000),
        ("listops", (), 2000),
        ("retrieval", (), 18090),
        ("pathfinder", (), 20000),
        ("image", (), 5000),
        ("listops_short", (), None),
    ],
)
def test_evaluation_is_counted_up_to_the_official_split(task, overrides, count):
    assert validation_count(compose_run(task, "v_mean", overrides)) == count


def test_batch_sizes_make_up_the_batch_by_powers_of_two():
    assert batch_sizes(64) == [1, 2, 4, 8, 16, 32, 64]
    assert batch_sizes(12) == [3, 6, 12]


@pytest.mark.parametrize(
    ("peak_of", "largest"),
    [
        (lambda b: 5 + 3 * b, 16),
        (lambda b: b, 64),
        (lambda b: 2 * b + (50 if b > 8 else 0), 16),  # worse than foretold
        (lambda b: 10 * min(b, 8), 64),  # better than foretold
        (lambda b: 101, None),
        (lambda b: 1000, None),
    ],
)
def test_the_largest_batch_is_tried_and_so_is_the_next(peak_of, largest):
    seen: list[int] = []
    found = Search(batch_sizes(64), trials_of(peak_of, seen), UNLIMITED).find()
    assert found.batch_size == largest
    assert found.is_confirmed
    assert len(seen) == len(set(seen))
    if largest not in (None, 64):
        assert {largest, 2 * largest} <= set(seen)


@pytest.mark.parametrize(
    "limits", [Limits(100, 1e12, trial_seconds=10), Limits(100, trial_bytes=40, trial_seconds=1e12)]
)
def test_what_costs_too_much_to_try_is_foretold_and_says_so(limits):
    seen: list[int] = []
    found = Search(batch_sizes(64), trials_of(lambda b: 5 + 3 * b, seen), limits).find()
    assert found.batch_size == 16
    assert not found.is_confirmed
    assert max(seen) <= 8


def test_a_trial_is_measured_in_a_process_and_one_without_memory_dies(tmp_path):
    attempt = Attempts("listops_short", "softmax", ("data_dir=nowhere",), 64 * 2**20, tmp_path)
    small, double, dead = attempt([4, 8, 4096])
    assert small.peak_bytes < double.peak_bytes < 2.5 * small.peak_bytes
    assert dead == Trial(4096, "died")


def test_a_trial_that_fails_for_another_reason_is_no_verdict(tmp_path):
    with pytest.raises(RuntimeError, match=r"attention=softmax: .*dropout"):
        Attempts("listops_short", "softmax", ("attention.dropout=7",), 2**30, tmp_path)([1])


@pytest.mark.parametrize(
    ("task", "mean", "tolerance"),
    [
        ("text", 0.317 * 4096, 40),  # 68 % of the positions are padding
        ("listops", 1037, 40),
        ("retrieval", 4000, 0),
        ("image", 1024, 0),
        ("pathfinder", 1024, 0),
    ],
)
def test_random_data_have_the_shape_and_the_lengths_of_the_task(task, mean, tolerance, tmp_path):
    data = open_task(compose_run(task, "v_mean", ("data_dir=nowhere",)), tmp_path)
    assert data.source_name.startswith("random ")
    examples = data.examples("train")
    batch = examples.batch(np.arange(len(examples)))
    assert batch.tokens.shape == (1024, 2 if task == "retrieval" else 1, data.max_seq_len)
    assert batch.tokens.max() < data.vocab_size
    assert batch.token_mask.sum(-1).double().mean() == pytest.approx(mean, abs=tolerance)


def time_cell(label, accumulate, references, status="measured"):
    return {
        "schema_version": 1, "task": "text", "label": label, "padded": None,
        "source_kind": "stand-in", "source_name": "random text",
        "batch_size": 128, "status": status, "reason": None,
        "measures": None if status == "stopped" else measured(accumulate),
        "references": {name: measured(seconds) for name, seconds in references.items()},
        "config": {"overrides": []}, "git": {"commit": "c" * 40}, "session": {"id": "5e55"},
        "environment": {"device": "CPU", "num_threads": 2, "torch": "2.13.0"},
    }  # fmt: skip


def measured(accumulate):
    return {**MEASURES, "accumulate_seconds": [accumulate], "update_seconds": [0.0]}


def memory_cell(label, batch_size, is_confirmed):
    found = {"batch_size": batch_size, "is_confirmed": is_confirmed, "trials": []}
    return {**time_cell(label, 1.0, {}), "measures": found}


def test_table_2_compares_ratios_to_standard_within_a_session(tmp_path):
    for quantity, cells in {
        "time": [
            time_cell("softmax", 3.0, {}),
            time_cell("skeinformer", 1.0, {"softmax": 4.0, "v_mean": 0.5}),
            time_cell("reformer", 1.0, {}),
            time_cell("bigbird", 0.0, {}, status="stopped"),
        ],
        "memory": [memory_cell("softmax", 16, True), memory_cell("skeinformer", 128, False)],
    }.items():
        for cell in cells:
            path = tmp_path / quantity / "text" / f"{cell['label']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(cell))
    times, memories = read_cells(tmp_path / "time"), read_cells(tmp_path / "memory")
    shown = table2.table("text", times, memories)
    rows = {row[0]: row[1:] for row in shown.rows}
    assert list(rows) == ["softmax", "bigbird", "reformer", "skeinformer"]
    evaluation = 0.4 / 4 * 2500 / 500
    whole = (32 + evaluation) * 1000 / 60
    assert rows["skeinformer"] == [
        "533", "0.25", f"{whole:.0f}", f"{(32 + evaluation) / (128 + evaluation):.3g}",
        "9.6", f"{9.6 / 50.63:.3g}", "2", "—", "≈ 128", "64",
    ]  # fmt: skip
    assert rows["softmax"][:2] == ["1,600", "1"]
    assert rows["softmax"][-2:] == ["16", "16"]
    assert rows["reformer"][1] == "—"  # no Standard in its session
    assert rows["bigbird"][:4] == ["stopped", "—", "—", "—"]
    assert "random text data" in shown.caption
    table2.write_csv(tmp_path / "table2.csv", times, memories)
    assert str(tmp_path / "time/text/reformer.json") in (tmp_path / "table2.csv").read_text()


def test_table_3_shows_counts_in_units_of_ndp_beside_both_formulas(tmp_path):
    count = 4 * 2048 * 256 * 32
    cell = {
        **time_cell("performer", 1.0, {}), "num_tokens": 2048, "config": {"num_features": 256},
        "measures": {"multiply_adds": count, "saved_bytes": 3 * 2**20},
    }  # fmt: skip
    path = tmp_path / "n_2048/performer.json"
    path.parent.mkdir()
    path.write_text(json.dumps(cell))
    [row] = table3.table(read_cells(tmp_path)).rows
    assert row[:9] == ["performer", "3ndp", "4ndp", "4.00", "4.00", "—", "4.00", "3.00", "22.20"]
    assert published_formula("softmax") == "2n²p"
    assert published_formula("mine") is None


def test_makefile_targets_run_the_scripts_of_the_tables():
    makefile = (ROOT / "Makefile").read_text()
    assert "scripts/bench_step.py" in makefile
    assert "scripts/table3.py" in makefile
