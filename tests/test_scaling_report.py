"""Exponents, crossovers and tables say what the cells say, and no ratio spans two sessions."""

import csv
import json
from pathlib import Path

import pytest

from lra.benchmark.cells import read_cells
from lra.report.growth import crossover, fitted_exponent
from lra.report.scaling import Grid, peer_table, tables
from lra.report.scaling_report import write_report

LENGTHS = (512, 1024, 2048, 4096)


def measures(seconds, megabytes=1.0, **changes):
    num_bytes = int(megabytes * 2**20)
    return {
        "forward_seconds": [seconds / 4] * 3,
        "training_seconds": [0.9 * seconds, seconds, 1.2 * seconds],
        "saved_bytes": num_bytes,
        "forward_peak_bytes": num_bytes,
        "training_peak_bytes": 2 * num_bytes,
        "multiply_adds": 1e6,
        "error": 0.25,
        **changes,
    }


def make_cell(label, num_tokens, found, references=None, reason=None):
    return {
        "schema_version": 1,
        "label": label,
        "num_tokens": num_tokens,
        "session": {"id": "5e55", "started": "2026-01-01T00:00:00+00:00"},
        "status": "stopped" if found is None else "measured",
        "reason": reason,
        "measures": found,
        "references": references or {},
        "config": {
            "batch_size": 2, "num_heads": 2, "head_dim": 32, "num_features": 256,
            "padding": 0.1, "precision": "fp32",
        },
        "environment": {"device": "CPU", "num_threads": 2, "torch": "2.13.0"},
        "git": {"commit": "c" * 40, "dirty": False},
    }  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """Writes cells; returns what is read back."""

    def write(*cells):
        for cell in cells:
            path = tmp_path / f"cores/n_{cell['num_tokens']:06d}/{cell['label']}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(cell))
        return read_cells(tmp_path / "cores")

    return write


@pytest.fixture
def study(written):
    """SDPA in n², mine in n, equal at 1,448 tokens; mine in memory always half of it."""
    cells = []
    for n in LENGTHS:
        exact = measures((n / 1024) ** 2, n / 1024)
        mine = measures(2**0.5 * n / 1024, n / 2048)
        cells += [
            make_cell("softmax_fused", n, exact),
            make_cell("mine", n, mine, {"softmax_fused": exact}),
        ]
    return written(*cells)


def shown(grid, caption):
    [table] = [table for table in tables(grid) if table.caption == caption]
    return {row[0]: dict(zip(table.headings[1:], row[1:], strict=True)) for row in table.rows}


def test_an_exponent_is_fitted_from_1024_tokens_up():
    figures = {n: 5.0 * n**1.25 for n in (1024, 2048, 4096)}
    assert fitted_exponent({256: 1e9, 512: 1e9, **figures}) == pytest.approx(1.25)
    assert fitted_exponent({512: 1.0, 1024: 1.0}) is None


def test_a_crossover_is_where_the_power_laws_meet():
    ratios = {n: (1500 / n) ** 1.5 for n in (256, 1024, 4096, 16384)}
    assert crossover(ratios).num_tokens == pytest.approx(1500)
    assert str(crossover(ratios)) == "1,500"


def test_a_crossover_that_does_not_last_is_none():
    assert crossover({256: 0.5, 512: 2.0, 1024: 0.5}).num_tokens == pytest.approx(512 * 2**0.5)
    assert str(crossover({256: 0.5, 512: 2.0, 1024: 1.0})) == "never up to 1,024"
    assert str(crossover({256: 0.9, 512: 0.5})) == "at 256 already"
    assert crossover({512: 1.0, 1024: 0.5}).num_tokens == 512
    assert crossover({}) is None


def test_tables_of_known_curves(study):
    grid = Grid(study)
    times = shown(grid, "forward and backward, ms")
    assert times["softmax_fused"]["1,024"] == "1,000 (950–1,100)"
    fast = shown(grid, "forward and backward: times as fast as SDPA")
    assert fast["mine"] == {"512": "0.35", "1,024": "0.71", "2,048": "1.41", "4,096": "2.83"}
    assert set(fast["softmax_fused"].values()) == {"—"}
    growth = shown(grid, "exponent of n, fitted from 1,024 tokens up")
    assert growth["softmax_fused"]["forward and backward"] == "2.00"
    assert growth["mine"]["forward and backward"] == "1.00"
    meeting = shown(grid, "from which n on a variant needs less than exact attention through SDPA")
    assert meeting["mine"]["forward and backward"] == "1,448"
    assert meeting["mine"]["peak memory of forward and backward"] == "at 512 already"


def test_a_ratio_needs_the_reference_in_the_same_session(written):
    exact, mine = measures(1.0), measures(2.0)
    grid = Grid(
        written(
            make_cell("softmax_fused", 1024, exact),
            make_cell("mine", 1024, mine),  # measured alone
            make_cell("other", 1024, mine, {"softmax_fused": measures(8.0)}),
        )
    )
    fast = shown(grid, "forward and backward: times as fast as SDPA")
    assert fast["mine"]["1,024"] == "—"
    assert fast["other"]["1,024"] == "4.00"  # not 0.5


def test_a_hole_is_a_dash_and_a_stop_says_why(written):
    grid = Grid(
        written(
            make_cell("softmax", 1024, measures(1.0, error=None)),
            make_cell("softmax", 2048, None, reason="would need about 9 GiB"),
            make_cell("mine", 2048, measures(1.0)),
        )
    )
    times = shown(grid, "forward and backward, ms")
    assert times["mine"]["1,024"] == "—"
    assert times["softmax"]["2,048"] == "stopped"
    assert shown(grid, "relative error against exact attention")["softmax"]["1,024"] == "—"
    [stop] = shown(grid, "stopped").items()
    assert stop == ("softmax", {"n": "2,048", "why": "would need about 9 GiB"})


def test_a_peer_is_what_ours_is_divided_by(written):
    peer = make_cell("reformer (package)", 1024, measures(4.0, 3.0), {"reformer": measures(1, 1.5)})
    [row] = peer_table(Grid(written(peer))).rows
    assert row == ["reformer (package)", "1,024", "0.25", "0.25", "0.50", "0.50", "0.50"]


def test_the_report_lies_beside_its_csv_with_pictures(study, tmp_path):
    markdown = write_report(tmp_path, study, {})
    assert "10% padding, fp32; CPU, 2 threads" in markdown
    with (tmp_path / "cores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study)
    assert rows[1]["training_seconds"] == "0.25"
    assert rows[0]["git_commit"] == "c" * 40
    assert json.loads(Path(rows[0]["file"]).read_text())["label"] == rows[0]["label"]
    assert "\\toprule" in (tmp_path / "cores.tex").read_text()
    assert (tmp_path / "cores.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "cores.pdf").read_bytes().startswith(b"%PDF")
