"""The approximation study measures what it says, and never measures twice."""

import csv
import glob
import importlib.util
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from safetensors.torch import save_file
from torch.testing import assert_close

from attention.base import AttentionDims
from attention.skeinformer import unbiased_column_weights
from attention.sketching import pick_tokens
from lra.approximation.cells import open_cell, read_cell
from lra.approximation.errors import (
    Projections,
    attend,
    exact_attention,
    row_sums,
    spectral_norm,
)
from lra.approximation.published import published_figure
from lra.approximation.sources import FileSource, GaussianSource
from lra.approximation.study import Study, StudySettings, approximates_softmax, variants
from lra.approximation.summary import mean, ratio_of_means, summarize
from lra.variants import load_attention

SMALL = {"num_heads": 2, "head_dim": 8, "score_scale": 1.0, "lengths": [48], "seed": 0}


def study(directory, **changes):
    plain = {
        "num_features": [8],
        "lengths": None,
        "temperature": [1.0],
        "num_trials": 6,
        "dtype": "float64",
        "seed": 0,
        "device": "cpu",
    }
    return Study(StudySettings(**(plain | changes)), directory)


def measured(directory, names, source=None, overrides=(), **changes):
    """The cells of one setting, by variant."""
    chosen_study = study(directory, **changes)
    chosen = variants(names, chosen_study.settings.num_features, overrides)
    source = source or GaussianSource(**SMALL)
    groups = chosen_study.groups("gaussian", source, chosen)
    for group in groups:
        chosen_study.measure(group, lambda: None)
    return {cell.identity["attention"]: cell for group in groups for _, cell in group.cells}


def random_projections(num_holes=5):
    given = GaussianSource(**SMALL).projections(0, 48)
    mask = torch.ones(1, 48, dtype=torch.bool)
    mask[0, torch.randperm(48)[:num_holes]] = False
    return Projections(given.q.double(), given.k.double(), given.v.double(), mask)


def test_exact_attention_and_its_norms_are_those_of_independent_code():
    given = random_projections()
    exact = exact_attention(given)
    keys = given.token_mask[:, None, None, :]
    weights = (given.q @ given.k.mT / 8**0.5).masked_fill(~keys, float("-inf")).softmax(-1)
    weights = weights * given.token_mask[:, None, :, None]
    expected = F.scaled_dot_product_attention(given.q, given.k, given.v, attn_mask=keys)
    expected = expected * given.token_mask[:, None, :, None]
    assert_close(exact.output, expected[0])
    assert_close(exact.column_squares, weights.square().sum(-2)[0])
    assert_close(exact.spectral, torch.linalg.matrix_norm(expected[0], ord=2))
    assert_close(exact.frobenius, torch.linalg.matrix_norm(expected[0]))
    v_mean = load_attention("v_mean", 8)(AttentionDims(2, 8, 48))
    assert_close(exact.v_mean_error, exact.output - attend(v_mean, given, 0))


def test_the_gram_matrix_gives_the_largest_singular_value_of_any_size():
    x = torch.randn(3, 40, 8, dtype=torch.float64) * torch.tensor([1e-14, 1.0, 1e6])[:, None, None]
    assert_close(spectral_norm(x), torch.linalg.matrix_norm(x, ord=2), rtol=1e-10, atol=0)


def test_row_sums_are_those_of_the_matrix_that_the_same_noise_gives():
    given = random_projections()
    core = load_attention("skeinformer_no_norm", 8, ["attention.reuse_pilot=false"])(
        AttentionDims(2, 8, 48)
    )
    torch.manual_seed(3)
    pilot_noise, column_noise = core.draw_noise(given.q)
    pilots = pick_tokens(given.token_mask, pilot_noise)
    _, log_weights = core.attend_pilots(given.q, given.k, given.v, given.token_mask, pilots)
    worth = unbiased_column_weights(log_weights, column_noise)
    keys = given.token_mask[:, None, None, :]
    weights = (given.q @ given.k.mT / 8**0.5).masked_fill(~keys, float("-inf")).softmax(-1)
    expected = (weights * worth[:, :, None]).sum(-1) * given.token_mask[:, None]
    assert_close(row_sums(core, given, 3), expected[0], rtol=1e-6, atol=0)


EXACT_LIMITS = {
    "softmax": [],
    "softmax_fused": [],
    "bigbird": [],
    "informer": [],
    "informer_masked": [],
    "skeinformer": [],
    "skeinformer_uniform": [],
    "skeinformer_simple_norm": [],
    "skeinformer_no_norm_released": [],
    "skeinformer_no_reuse": [],
    "nystromformer": ["attention.num_iterations=40"],
}


@pytest.mark.parametrize(("name", "overrides"), EXACT_LIMITS.items())
def test_a_variant_with_as_many_features_as_tokens_is_exact(tmp_path, name, overrides):
    [cell] = measured(tmp_path, [name], overrides=overrides, num_features=[48]).values()
    assert summarize(cell).relative.mean < 1e-10
    assert summarize(cell).row_sum.mean < 1e-10


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("linformer_jlt", []),
        ("skeinformer_no_norm", []),
        ("skeinformer_no_norm", ["attention.column_sampling=uniform"]),
        ("skeinformer_no_norm", ["attention.reuse_pilot=false"]),
    ],
)
def test_estimators_have_the_error_of_their_closed_form(tmp_path, name, overrides):
    source = GaussianSource(**(SMALL | {"score_scale": 0.5, "num_heads": 100, "lengths": [6]}))
    [cell] = measured(
        tmp_path, [name], source, overrides, num_trials=3000, num_features=[4]
    ).values()
    row = summarize(cell)
    assert abs(row.closed_form_z) < 3
    assert row.measured_to_theory.standard_error < 0.03


def test_linformer_as_initialized_is_noise_of_the_predicted_level(tmp_path):
    source = GaussianSource(**(SMALL | {"score_scale": 0.3, "lengths": [512], "num_heads": 25}))
    [cell] = measured(tmp_path, ["linformer"], source, num_trials=100).values()
    assert summarize(cell).measured_to_theory.mean == pytest.approx(1, abs=0.05)


def test_temperature_multiplies_the_scores(tmp_path):
    cold = measured(tmp_path, ["skeinformer"], temperature=[3.0])["skeinformer"]
    source = GaussianSource(**(SMALL | {"score_scale": 3.0}))
    scaled = measured(tmp_path / "scaled", ["skeinformer"], source)["skeinformer"]
    assert cold.trials["spectral"] == pytest.approx(scaled.trials["spectral"], rel=1e-4)


def test_an_interrupted_study_goes_on_to_the_same_numbers(tmp_path):
    names = ["skeinformer", "linformer"]
    whole = measured(tmp_path / "whole", names)
    begun = study(tmp_path / "parts")
    [group] = begun.groups("gaussian", GaussianSource(**SMALL), variants(names, [8], []))
    with pytest.raises(KeyboardInterrupt):
        begun.measure(group, iter_then_interrupt(2))
    assert {read_cell(cell.path).num_sequences for _, cell in group.cells} == {2}
    again = measured(tmp_path / "parts", names)
    assert {name: cell.trials for name, cell in again.items()} == {
        name: cell.trials for name, cell in whole.items()
    }
    stamp = again["skeinformer"].path.stat().st_mtime_ns
    [group] = begun.groups("gaussian", GaussianSource(**SMALL), variants(names, [8], []))
    assert group.num_missing == 0
    assert again["skeinformer"].path.stat().st_mtime_ns == stamp


def test_a_variant_that_joins_later_leaves_the_others_trials_alone(tmp_path):
    [alone] = measured(tmp_path, ["skeinformer"]).values()
    joined = measured(tmp_path, ["skeinformer", "linformer"])
    assert joined["skeinformer"].trials == alone.trials
    assert joined["linformer"].num_trials == 6


def iter_then_interrupt(count):
    """A callback that is interrupted the given time it is called."""
    calls = []

    def advance():
        calls.append(None)
        if len(calls) == count:
            raise KeyboardInterrupt

    return advance


def test_a_damaged_cell_is_refused_and_named(tmp_path):
    cell = measured(tmp_path, ["v_mean"])["v_mean"]
    content = json.loads(cell.path.read_text())
    damaged = [
        cell.path.read_text()[:-40],
        json.dumps(content | {"num_sequences": 2}),
        json.dumps(content | {"schema_version": 0}),
        json.dumps({key: value for key, value in content.items() if key != "identity"}),
        json.dumps(content | {"trials": {"spectral": content["trials"]["spectral"]}}),
    ]
    for text in damaged:
        cell.path.write_text(text)
        with pytest.raises(ValueError, match=r"v_mean.json is damaged .*delete it"):
            open_cell(cell.path, cell.identity, cell.details)


def test_trials_of_something_else_are_refused_with_the_key_that_differs(tmp_path):
    measured(tmp_path, ["skeinformer"])
    with pytest.raises(ValueError, match=r"seed=0, but these have seed=1; choose another study"):
        measured(tmp_path, ["skeinformer"], seed=1)
    with pytest.raises(ValueError, match=r"attention_config.reuse_pilot=True"):
        measured(tmp_path, ["skeinformer"], overrides=["attention.reuse_pilot=false"])
    with pytest.raises(ValueError, match=r"choose another study=NAME, .* rm (.*)$") as refused:
        measured(tmp_path, ["skeinformer"], dtype="float32")
    [pattern] = re.findall("rm (.*)$", str(refused.value))
    assert len(glob.glob(pattern)) == 1  # which is the remedy
    with pytest.raises(ValueError, match=r"description.score_scale=1.0"):
        measured(tmp_path, ["skeinformer"], GaussianSource(**(SMALL | {"score_scale": 2.0})))


def test_standard_errors_are_those_of_paired_trials():
    torch.manual_seed(0)
    error, v_mean = torch.rand(2, 400, 200, dtype=torch.float64).add(1)
    error = error + 2 * v_mean
    estimates = [ratio_of_means(e.numpy(), v.numpy()) for e, v in zip(error, v_mean, strict=True)]
    assert estimates[0].standard_error == pytest.approx(
        np.std([e.mean for e in estimates]), rel=0.2
    )
    assert mean(error[0].numpy()).standard_error == pytest.approx(float(error[0].std()) / 200**0.5)


def test_gaussian_scores_have_the_asked_scale():
    given = GaussianSource(**(SMALL | {"score_scale": 2.5})).projections(0, 400)
    assert float((given.q @ given.k.mT / 8**0.5).std()) == pytest.approx(2.5, rel=0.05)
    shorter = GaussianSource(**SMALL).projections(0, 48), GaussianSource(**SMALL).projections(1, 48)
    assert not torch.equal(shorter[0].k, shorter[1].k)


def test_both_kinds_of_file_give_the_same_projections(tmp_path):
    arrays = {name: torch.randn(3, 20, 4) for name in "qkv"}
    save_file(arrays, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **{name: x.numpy() for name, x in arrays.items()})
    for suffix in ("npz", "safetensors"):
        source = FileSource(path=str(tmp_path / f"a.{suffix}"))
        assert (source.num_sequences(20), source.num_heads) == (3, 1)
        assert_close(source.projections(2, 15).v[0, 0], arrays["v"][2, :15])
        assert source.description["sha256"]
    with pytest.raises(ValueError, match="has 20 tokens, not 21"):
        source.num_sequences(21)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"q": (3, 20, 4), "k": (3, 20, 4)}, "has no array v"),
        ({"q": (3, 20, 4), "k": (3, 19, 4), "v": (3, 20, 4)}, "one shape"),
        ({"q": (20, 4), "k": (20, 4), "v": (20, 4)}, "dimensions t n p or b h n p"),
        ({"q": (3, 20, 4), "k": (3, 20, 4), "v": (3, 20, 4), "mask": (3, 19)}, "mask"),
    ],
)
def test_a_file_that_is_no_source_says_why(tmp_path, arrays, message):
    save_file(
        {name: torch.ones(shape) for name, shape in arrays.items()}, tmp_path / "bad.safetensors"
    )
    with pytest.raises(ValueError, match=message):
        FileSource(path=str(tmp_path / "bad.safetensors"))


def test_a_file_with_holes_in_its_numbers_or_of_another_kind_is_refused(tmp_path):
    arrays = {name: torch.full((1, 4, 2), float("nan")) for name in "qkv"}
    save_file(arrays, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match="not a finite array"):
        FileSource(path=str(tmp_path / "nan.safetensors"))
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"neither an \.npz nor a \.safetensors"):
        FileSource(path=str(tmp_path / "a.txt"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        FileSource(path=str(tmp_path / "absent.npz"))


def test_reformer_is_no_approximation_of_softmax_attention():
    assert not approximates_softmax("reformer")
    assert approximates_softmax("v_mean")


def test_the_published_figure_has_the_published_ratios():
    panels = {(p["weights"], p["num_tokens"]): p["spectral"] for p in published_figure()["panels"]}
    panel = panels["initialized", 1024]
    ratios = [s / v for s, v in zip(panel["skeinformer"], panel["v_mean"], strict=True)]
    assert ratios == pytest.approx([0.977, 0.955, 0.907, 0.819, 0.659], abs=0.004)


@pytest.fixture
def approximate(monkeypatch, tmp_path, capsys):
    """The script as a function of the words of its command line; returns what it printed."""
    spec = importlib.util.spec_from_file_location("approximate", ROOT / "scripts/approximate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)

    def call(*words):
        assert script.main(words) == 0
        return capsys.readouterr().out

    return call


def test_the_script_measures_writes_and_says_what_it_shows(approximate, tmp_path):
    words = (
        "attention=skeinformer,skeinformer_uniform,v_mean,linformer,reformer", "source=gaussian",
        "source.head_dim=8", "lengths=[40]", "temperature=[1,4]", "num_features=[8,40]",
        "num_trials=12", "study=tiny", "source.num_heads=4",
    )  # fmt: skip
    printed = approximate(*words)
    assert "with importance sampling the error is this share" in printed
    assert "as initialized, untrained: linformer" in printed
    folder = tmp_path / "outputs/approximation/tiny"
    with (folder / "tiny.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (3 * 2 + 1)
    assert {row["num_trials"] for row in rows} == {"12"}
    [v_mean] = [r for r in rows if r["attention"] == "v_mean" and r["temperature"] == "1.0"]
    assert float(v_mean["ratio_to_v_mean"]) == pytest.approx(1, abs=1e-5)
    assert v_mean["num_features"] == v_mean["effective_features"] == ""
    exact = [r for r in rows if r["attention"] == "skeinformer" and r["num_features"] == "40"]
    assert all(float(row["relative"]) < 1e-6 for row in exact)
    for name in ("tiny", "tiny-cost", "tiny-temperature"):
        assert (folder / f"{name}.png").stat().st_size > 10_000
        assert (folder / f"{name}.pdf").exists()
    cells = {path: path.stat().st_mtime_ns for path in folder.rglob("cells/**/*.json")}
    assert approximate(*words) == printed
    assert {path: path.stat().st_mtime_ns for path in cells} == cells


def test_a_single_variant_without_features_is_drawn_over_what_it_costs(approximate, tmp_path):
    words = ("source=gaussian", "lengths=[40]", "num_trials=12")
    printed = approximate("attention=softmax", *words)
    assert "the error of softmax, " in printed
    assert "lowest" not in printed
    drawn = {path.name for path in (tmp_path / "outputs/approximation/adhoc").glob("*.png")}
    assert drawn == {"adhoc-cost.png"}


def test_what_cannot_be_is_refused_before_anything_is_measured(approximate, tmp_path):
    lonely = {name: np.random.default_rng(0).normal(size=(1, 16, 4)) for name in ("q", "k", "v")}
    np.savez(tmp_path / "lonely.npz", **lonely)
    for words, message in (
        (
            ["source=nonsense", "attention=v_mean"],
            "no source 'nonsense'; there are checkpoint, file",
        ),
        (["attention=nonsense"], "no attention variant 'nonsense'"),
        (["num_trials=1"], "num_trials=1"),
        (["temperature=[0]"], "temperature"),
        (["source=file", "attention=v_mean"], "needs file=PATH"),
        (["source=checkpoint", "attention=v_mean"], "needs checkpoint=PATH"),
        (["attention=reformer", "source=gaussian"], "no variant is left"),
        (["source=file", "file=lonely.npz", "attention=v_mean"], "a single head of a single seq"),
    ):
        with pytest.raises(ValueError, match=message):
            approximate(*words)
    with pytest.raises(FileNotFoundError, match="matches nothing"):
        approximate("source=checkpoint", "attention=v_mean", "checkpoint=nowhere/*.pt")
