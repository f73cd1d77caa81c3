"""A study of cores measures what it says, fills its gaps, and never compares two sessions."""

import json

import pytest
import torch

from attention.base import AttentionDims
from attention.conformance.cost import multiply_adds
from attention.softmax import FusedSoftmaxAttention, SoftmaxAttention
from attention.v_mean import VMeanAttention
from lra.benchmark.budget import Budget
from lra.benchmark.cells import CellStore, read_cells
from lra.benchmark.cores import Candidate, CoreRun, Workload, exact_attention
from lra.benchmark.scaling import Row, Scaling
from lra.variants import load_attention

CPU = torch.device("cpu")
CONFIG = {"num_features": 8, "precision": "fp32"}
FUSED = Candidate("softmax_fused", lambda dims: FusedSoftmaxAttention(dims, dropout=0.0))
MEAN = Candidate("v_mean", VMeanAttention)
WRITTEN = Candidate("softmax", lambda dims: SoftmaxAttention(dims, dropout=0.0))
PLENTY = Budget(seconds=60.0, num_bytes=1e12)


def workload(num_tokens, **changes):
    given = {"batch_size": 2, "num_heads": 2, "head_dim": 8, "padding": 0.1, "precision": "fp32"}
    return Workload(num_tokens=num_tokens, device=CPU, **{**given, **changes})


@pytest.fixture
def study(tmp_path):
    """A study in a folder, opened as a new process would."""

    def opened(budget=PLENTY, rows=(FUSED, MEAN, WRITTEN), config=CONFIG):
        compared = [Row(c, ("softmax_fused",) if c != FUSED else ()) for c in rows]
        store = CellStore(tmp_path / "cores", config, CPU)
        return Scaling(store, compared, others=[FUSED], budget=budget, num_rounds=3, error_limit=64)

    return opened


def cells(study):
    return {(c["label"], c["num_tokens"]): c for c in read_cells(study.store.root).values()}


def test_cells_hold_samples_counts_and_errors(study):
    first = study()
    assert first.fill(workload(32)) == 3
    measures = cells(first)["softmax", 32]["measures"]
    assert len(measures["training_seconds"]) == len(measures["forward_seconds"]) == 3
    assert measures["error"] < 1e-6
    assert measures["multiply_adds"] == 2 * 32 * 32 * 8
    assert measures["training_peak_bytes"] > measures["saved_bytes"] > 2 * 2 * 32 * 32 * 4
    assert cells(first)["v_mean", 32]["measures"]["error"] > 0.1


def test_a_rerun_fills_gaps_and_nothing_else(study, tmp_path):
    study().fill(workload(32))
    before = cells(study())
    (tmp_path / "cores/n_000032/v_mean.json").unlink()
    again = study()
    assert again.fill(workload(32)) == 1
    after = cells(again)
    for label in ("softmax", "softmax_fused"):
        assert after[label, 32] == before[label, 32]
    # compared with SDPA as it ran beside it, not with the cell of the first session
    new = after["v_mean", 32]
    assert new["session"] != before["softmax_fused", 32]["session"]
    reference = new["references"]["softmax_fused"]["training_seconds"]
    assert reference != before["softmax_fused", 32]["measures"]["training_seconds"]
    assert study().fill(workload(32)) == 0


def test_what_would_exceed_a_budget_is_stopped_and_begun_under_a_larger_one(study):
    tight = study(Budget(seconds=60.0, num_bytes=100_000))
    for n in (32, 64, 128):
        tight.fill(workload(n))
    stopped = cells(tight)["softmax", 128]
    assert stopped["status"] == "stopped"
    assert "over memory_budget_gib" in stopped["reason"]
    assert stopped["measures"] is None
    assert cells(tight)["v_mean", 128]["status"] == "measured"
    assert cells(tight)["v_mean", 128]["references"] == {}
    # all three: softmax and SDPA were stopped, and V-Mean lacks its reference
    assert study().fill(workload(128)) == 3
    assert cells(study())["softmax", 128]["status"] == "measured"
    assert "softmax_fused" in cells(study())["v_mean", 128]["references"]


def test_a_first_length_is_reached_by_trials_so_that_none_is_begun_blindly(study):
    tight = study(Budget(seconds=0.3, num_bytes=30e6), rows=(WRITTEN,))
    tight.fill(workload(2**20))
    cell = cells(tight)["softmax", 2**20]
    assert cell["status"] == "stopped"
    assert cell["references"] == {}


def test_another_setting_is_refused_by_name(study):
    study().fill(workload(32))
    with pytest.raises(ValueError, match="num_features=8, not 16; choose another out=FOLDER"):
        study(config={**CONFIG, "num_features": 16})


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("{}", "schema_version=None"), ('{"schema_version": 1}', "lacks")],
)
def test_a_cell_that_cannot_be_trusted_is_refused_by_name(study, tmp_path, text, message):
    study().fill(workload(32))
    path = tmp_path / "cores/n_000032/v_mean.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_cells(tmp_path / "cores")
    assert str(path) in str(caught.value)


def test_cells_of_two_machines_are_no_table(study, tmp_path):
    study().fill(workload(32))
    path = tmp_path / "cores/n_000032/v_mean.json"
    cell = json.loads(path.read_text())
    cell["environment"]["num_threads"] += 1
    path.write_text(json.dumps(cell))
    with pytest.raises(ValueError, match="num_threads"):
        read_cells(tmp_path / "cores")


def test_the_share_of_padding_is_what_was_asked_for():
    mask = workload(1000, batch_size=5, padding=0.2).token_mask()
    assert mask.float().mean() == pytest.approx(0.8)
    assert mask[0].all()
    assert workload(1000, batch_size=1, padding=0.2).token_mask().float().mean() == 0.8


def test_exact_attention_is_softmax_attention_in_float64():
    run = CoreRun(FUSED, workload(600))
    exact = exact_attention(*run.inputs, run.token_mask)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.double() for x in run.inputs), attn_mask=run.token_mask[:, None, None, :]
    )
    torch.testing.assert_close(exact, expected)


@pytest.mark.parametrize(
    ("name", "per_head"),
    [
        ("softmax", 2 * 256 * 256 * 32),
        ("softmax_fused", 2 * 256 * 256 * 32),
        ("linformer", 4 * 256 * 64 * 32),
        ("performer", 4.25 * 256 * 64 * 32),
        ("linformer_jlt", 2 * 256 * 256 * 32 + 2 * 256 * 64 * 32),
    ],
)
def test_counted_multiply_adds_are_those_of_the_formula(name, per_head):
    core = load_attention(name, 64)(AttentionDims(2, 32, 256))
    q, k, v = torch.randn(3, 1, 2, 256, 32)
    mask = torch.ones(1, 256, dtype=torch.bool)
    assert multiply_adds(core, (q, k, v, mask)) == 2 * per_head
