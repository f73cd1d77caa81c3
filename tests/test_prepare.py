"""Preparing data: once, completely, and again where they are damaged; the script that does it."""

import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from test_retrieval import prepare_pairs, write_directory

from lra.tasks.base import pad
from lra.tasks.listops import ListOps
from lra.tasks.listops_generator import CLOSING_BRACKET, VOCAB, ListOpsRule
from lra.tasks.listops_preparation import prepare
from lra.tasks.preparation import open_prepared

SCRIPT = ROOT / "scripts/prepare_data.py"


def prepare_small(directory, seed=0):
    counts = []
    store = prepare(
        name="listops",
        data_dir=str(directory),
        rule=ListOpsRule(min_length=4, max_length=30, max_depth=3, max_args=4),
        num_examples={"train": 40, "val": 10, "test": 12},
        seed=seed,
        num_workers=1,
        progress=counts.append,
    )
    return store, sum(counts)


def open_task(directory, brackets="keep", verify=True):
    return ListOps(
        name="listops", data_dir=str(directory), verify=verify, max_seq_len=32, brackets=brackets
    )


def test_a_second_start_uses_what_is_there(tmp_path):
    first, generated = prepare_small(tmp_path)
    again, nothing = prepare_small(tmp_path)
    assert (generated, nothing) == (62, 0)
    assert first.fingerprint == again.fingerprint


def test_other_data_are_never_replaced_unasked(tmp_path):
    prepare_small(tmp_path)
    with pytest.raises(ValueError, match="prepared with seed=0, not 1; choose another data_dir"):
        prepare_small(tmp_path, seed=1)


def test_damaged_data_are_refused_by_training_and_built_again_by_preparing(tmp_path):
    store, _ = prepare_small(tmp_path)
    path = tmp_path / "listops/train_tokens.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train_tokens.npy has SHA-256 .*prepare_data.py task"):
        open_task(tmp_path)
    open_task(tmp_path, verify=False)  # sizes alone are right
    again, generated = prepare_small(tmp_path)
    assert generated == 62
    assert again.fingerprint == store.fingerprint
    open_task(tmp_path)


def test_batches_hold_the_expressions_and_mask_what_is_not(tmp_path):
    prepare_small(tmp_path)
    examples = open_task(tmp_path).examples("train")
    sequences = examples.sequences
    batch = examples.batch(np.array([5, 0, 39]))
    for row, index in enumerate((5, 0, 39)):
        start, end = sequences.offsets[index : index + 2]
        expected = sequences.tokens[start:end].tolist()
        assert batch.tokens[row, 0, batch.token_mask[row, 0]].tolist() == expected
        assert batch.labels[row] == sequences.labels[index]
        assert VOCAB[expected[-1]] == "]"
    assert batch.tokens.shape == (3, 1, 32)


def test_dropped_brackets_are_the_papers_ambiguous_trees(tmp_path):
    prepare_small(tmp_path)
    kept, dropped = (
        open_task(tmp_path, b).examples("val").batch(np.arange(10)) for b in ("keep", "drop")
    )
    for row in range(10):
        tokens = kept.tokens[row][kept.token_mask[row]]
        expected = tokens[tokens != CLOSING_BRACKET].tolist()
        assert dropped.tokens[row][dropped.token_mask[row]].tolist() == expected


def test_sequences_beyond_the_limit_are_cut():
    tokens, mask = pad([np.arange(1, 6, dtype=np.uint8), np.array([7], np.uint8)], 3)
    assert tokens.tolist() == [[[1, 2, 3]], [[7, 0, 0]]]
    assert mask.tolist() == [[[True] * 3], [[True, False, False]]]


@pytest.fixture
def script(monkeypatch, capsys):
    """Runs the script, in this process, and returns its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as exited:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return exited.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=listop"], "Available options in 'task'"),
        (["task=listops", "data_dri=x"], "data_dri"),
        (
            ["task=listops_short", "prepare.rule.min_length=99"],
            "ValueError: max_length=64 is below",
        ),
        (["task=text", "prepare.source=nowhere"], "nowhere"),
        ([], "task=NAME"),
        (["--verify"], "task=NAME"),
        (["--status", "task=listops"], "task=NAME"),
        (["task=text", "task=image"], "task=NAME"),
    ],
)
def test_the_script_says_what_is_wrong(tmp_path, monkeypatch, script, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, errors = script(*arguments)
    assert code in (1, 2)
    assert message in errors


SMALL = [f"prepare.num_examples.{split}=20" for split in ("train", "val", "test")]


def test_one_task_that_fails_does_not_stop_the_others(tmp_path, script):
    tasks = "task=listops_short,nonsense,retrieval,listops"
    rule = ["prepare.rule.min_length=4", "prepare.rule.max_length=30"]
    code, output, errors = script(tasks, f"data_dir={tmp_path}", *SMALL, *rule)
    assert code == 1
    assert "Traceback" not in errors
    for task, message in (("nonsense", "Could not find"), ("retrieval", "num_examples.train")):
        assert re.search(f"task={task}: .*{message}", errors)
    assert output.count("train      20 examples") == 2
    assert {path.name for path in tmp_path.iterdir()} >= {"listops", "listops_short"}


def test_all_is_the_five_tasks_of_the_arena(script):
    code, _, errors = script("task=all", "data_dri=x")
    assert code == 1
    assert re.findall("^task=([a-z]+): ", errors, re.MULTILINE) == [
        "listops", "text", "retrieval", "image", "pathfinder",
    ]  # fmt: skip


def test_the_status_tells_sources_sizes_and_damage(tmp_path, script):
    assert script("--status", f"data_dir={tmp_path}/nowhere")[0] == 0
    store, _ = prepare_small(tmp_path)
    raw = write_directory(tmp_path / "downloads")
    prepare_pairs(tmp_path, raw, stand_in="noise")
    code, output, _ = script("--status", f"data_dir={tmp_path}")
    size = sum(path.stat().st_size for path in (tmp_path / "listops").iterdir())
    expected = ["listops", f"{size / 2**20:.1f}", "regenerated", "train", "40", "/", "val", "10"]
    [listops], [retrieval] = (
        [line.split() for line in output.splitlines() if line.startswith(name)]
        for name in ("listops", "retrieval")
    )
    assert listops == [*expected, "/", "test", "12", store.fingerprint[:12]]
    assert retrieval[2:6] == ["stand-in", "noise", "train", "40"]
    assert "downloads" not in output

    path = tmp_path / "listops/val_tokens.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert script("--status", f"data_dir={tmp_path}")[0] == 0  # sizes alone are right
    code, output, errors = script("--status", "--verify", f"data_dir={tmp_path}")
    assert (code, output.count("DAMAGED")) == (1, 1)
    assert "val_tokens.npy has SHA-256" in errors
    (tmp_path / "retrieval/manifest.json").unlink()
    code, output, errors = script("--status", f"data_dir={tmp_path}")
    assert (code, output.count("DAMAGED")) == (1, 1)
    assert "retrieval/manifest.json" in errors


def test_a_task_that_takes_more_than_its_name_is_told_in_full(tmp_path):
    overrides = "task=pathfinder resolution=128"
    with pytest.raises(FileNotFoundError, match=f"prepare_data.py {overrides} data_dir={tmp_path}"):
        open_prepared(tmp_path, "pathx", verify=True, overrides=overrides)


def test_preparing_listops_loads_no_torch():
    """It would double the memory that generating takes."""
    command = "import sys, lra.tasks.listops_preparation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)
