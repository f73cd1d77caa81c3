"""Which test examples a run answered correctly: what a paired comparison of runs needs."""

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from lra.record import Record, RunDirectory, write_bytes

Correct = Bool[np.ndarray, " n"]
FILE_NAME = "test_correct.npz"


def write_correct(directory: RunDirectory, answers: Mapping[str, Correct]) -> dict[str, Any]:
    """Store a bit per test example, in the split's order, for each kind of weights.

    Returns what `record["result"]["test_correct"]` says of the file.
    """
    packed = {name: np.packbits(correct) for name, correct in answers.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **packed)
    content = buffer.getvalue()
    write_bytes(directory.path / FILE_NAME, content)
    return {"file": FILE_NAME, "sha256": hashlib.sha256(content).hexdigest()}


def read_correct(directory: RunDirectory, record: Record) -> dict[str, Correct] | None:
    """Which test examples each kind of weights answered correctly; None if that was not stored.

    Raises `ValueError` where the file is not the one that the record speaks of, or where it does
    not add up to the record's accuracies.
    """
    result = record["result"]
    entry = result.get("test_correct")
    if entry is None:
        return None
    path = directory.path / entry["file"]
    if not path.exists():
        raise ValueError(f"{path} is missing, and {directory.record} speaks of it; restore it")
    content = path.read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    if checksum != entry["sha256"]:
        raise ValueError(
            f"{path} has sha256 {checksum}, but {directory.record} says {entry['sha256']}; "
            f"restore the file, or delete the run"
        )
    with np.load(io.BytesIO(content)) as packed:
        answers = {
            name: np.unpackbits(packed[name], count=result["test_count"]).astype(bool)
            for name in packed.files
        }
    for name, correct in answers.items():
        accuracy = result[f"test_accuracy_{name}"]
        if abs(correct.mean() - accuracy) > 0.5 / len(correct):
            raise ValueError(
                f"{path} holds {correct.sum()} right answers of {len(correct)} with the {name} "
                f"weights, but {directory.record} says an accuracy of {accuracy}; delete the run"
            )
    return answers
