"""Preparing ListOps: once, completely, and again where it is damaged."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from lra.tasks.base import pad
from lra.tasks.listops import ListOps, prepare
from lra.tasks.listops_generator import CLOSING_BRACKET, VOCAB, ListOpsRule


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=listop"], "Available options in 'task'"),
        (["task=listops", "data_dri=x"], "data_dri"),
        (["task=listops_short", "prepare.rule.min_length=99"], "max_length=64 is below"),
        ([], "task=listops"),
    ],
)
def test_the_script_says_what_is_wrong(tmp_path, arguments, message):
    command = [sys.executable, str(ROOT / "scripts/prepare_data.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
