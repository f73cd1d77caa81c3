"""The benchmarks from their command lines to their tables."""

import json
import runpy

import pytest
from conftest import ROOT

from attention.base import AttentionDims
from attention.softmax import FusedSoftmaxAttention
from lra.benchmark.peers import Peer


def script(name):
    return runpy.run_path(str(ROOT / "scripts" / name))["main"]


def test_cores_from_the_command_line_to_the_table_and_again(tmp_path, capsys):
    main = script("bench_attention.py")
    command = [
        "attention=skeinformer,v_mean", "lengths=64,128", "num_features=8",
        "settings=skeinformer:num_pilots=4:num_samples=16,softmax:dropout=0",
        "rounds=3", f"out={tmp_path}",
    ]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "| skeinformer_num_pilots=4_num_samples=16 " in shown
    assert (tmp_path / "cores.md").read_text() in shown
    cells = sorted(tmp_path.glob("cores/*/*.json"))
    assert [path.parent.name for path in cells] == ["n_000064"] * 3 + ["n_000128"] * 3
    cell = json.loads(cells[0].read_text())
    assert set(cell["references"]) == {"softmax", "softmax_fused", "v_mean"}
    written = [path.stat().st_mtime_ns for path in cells]
    assert main(command) == 0
    assert [path.stat().st_mtime_ns for path in cells] == written
    assert main([*command, "padding=0.2"]) == 1
    assert "padding=0.1, not 0.2" in capsys.readouterr().err


def test_peers_stand_beside_ours(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "lra.benchmark.core_study.PEERS", (Peer("softmax_fused", "theirs", build_exact),)
    )
    main = script("bench_attention.py")
    monkeypatch.setitem(main.__globals__, "PEER_LENGTHS", (64,))
    command = ["attention=v_mean", "lengths=32,64", "rounds=3", "peers=true", f"out={tmp_path}"]
    assert main(command) == 0
    [cell] = [json.loads(path.read_text()) for path in tmp_path.glob("peers/*/*.json")]
    assert (cell["num_tokens"], cell["config"]["padding"]) == (64, 0.0)
    assert set(cell["references"]) == {"softmax_fused"}
    row = capsys.readouterr().out.partition("| softmax_fused (theirs) |")[2].splitlines()[0]
    figures = [cell.strip() for cell in row.split("|")]
    assert figures[0] == "64"
    assert figures[3:6] == ["1.00"] * 3  # memory of the same core


def build_exact(dims: AttentionDims, num_features: int) -> FusedSoftmaxAttention:
    return FusedSoftmaxAttention(dims, dropout=0.0)


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("bench_attention.py", "lenghts=64", "no option lenghts=64"),
        ("bench_attention.py", "rounds=many", "rounds: Value 'many'"),
        ("bench_attention.py", "precision=fp8", "precision=fp8 is not one of"),
        ("bench_attention.py", "attention=nobody", "no attention variant 'nobody'"),
        ("bench_attention.py", "settings=nobody:num_pilots=4", "no attention variant 'nobody'"),
        ("bench_step.py", "quantities=money", "quantities=money is not one of"),
        ("bench_step.py", "trainer.batchsize=2", "trainer.batchsize"),
        ("table3.py", "what=1", "no option what=1"),
    ],
)
def test_what_cannot_be_meant_is_an_error_for_people(name, argument, message, tmp_path, capsys):
    assert script(name)([f"out={tmp_path}", argument]) == 1
    assert message in capsys.readouterr().err


def test_steps_from_the_command_line_to_table_2_and_again(tmp_path, capsys):
    main = script("bench_step.py")
    command = [
        "task=listops_short", "attention=v_mean", "micro_batch_size=2", "rounds=2",
        "memory_budget_gib=0.005", "trainer.batch_size=16", f"out={tmp_path}",
        f"data_dir={tmp_path}",
    ]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "Table 2, listops_short" in shown
    assert "random listops_short data" in shown
    cells = sorted(tmp_path.glob("*/listops_short/v_mean.json"))
    assert [path.parts[-3] for path in cells] == ["memory", "time"]
    memory, time = (json.loads(path.read_text()) for path in cells)
    largest = memory["measures"]["batch_size"]
    peaks = {trial["batch_size"]: trial["peak_bytes"] for trial in memory["measures"]["trials"]}
    assert peaks[largest] <= 0.005 * 2**30 < (peaks[2 * largest] or 1e9)
    assert set(time["references"]) == {"softmax", "softmax_fused"}
    written = [path.stat().st_mtime_ns for path in cells]
    assert main(command) == 0
    assert [path.stat().st_mtime_ns for path in cells] == written
