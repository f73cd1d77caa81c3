"""Cells: the trials of one variant at one setting, in a file that can be added to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lra.files import write_text
from lra.record import flatten

SCHEMA_VERSION = 1

MEASURES = (
    "spectral",
    "frobenius",
    "row_sum",
    "exact_spectral",
    "exact_frobenius",
    "v_mean_spectral",
)
"""What a trial measures: ||BV - R||₂ and ||BV - R||_F of the variant, the root mean square of its
row sums minus 1, ||BV||₂ and ||BV||_F, and ||BV - R||₂ of V-Mean. Besides, where theory has
one, the expected square of an error: `predicted_spectral_square`, `predicted_frobenius_square`."""


@dataclass
class Cell:
    """Trials in the order of sequences, a number a head; `identity` decides what they are."""

    path: Path
    identity: dict[str, Any]
    details: dict[str, Any]
    """What does not change a trial: multiply-adds, code, machine."""
    trials: dict[str, list[float]] = field(default_factory=dict)
    num_sequences: int = 0

    @property
    def num_trials(self) -> int:
        """How many trials there are."""
        return len(self.trials.get("spectral", []))

    def add(self, measured: Mapping[str, list[float]]) -> None:
        """Add the heads of the next sequence."""
        for name, values in measured.items():
            self.trials.setdefault(name, []).extend(values)
        self.num_sequences += 1

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "schema_version": SCHEMA_VERSION,
            "identity": self.identity,
            "details": self.details,
            "num_sequences": self.num_sequences,
            "trials": self.trials,
        }
        write_text(self.path, json.dumps(content) + "\n")


def open_cell(path: Path, identity: dict[str, Any], details: dict[str, Any]) -> Cell:
    """The cell as far as it has come, or an empty one.

    Raises ValueError if the file is damaged, or if it holds trials of something else.
    """
    if not path.exists():
        return Cell(path, identity, details)
    cell = read_cell(path)
    theirs, ours = dict(flatten(cell.identity)), dict(flatten(json_values(identity)))
    for key in ours | theirs:
        if theirs.get(key) != ours.get(key):
            variant = path.name.replace(f"-d_{identity['num_features']}.", "-d_*.")
            raise ValueError(
                f"{path} holds trials with {key}={theirs.get(key)}, but these have "
                f"{key}={ours.get(key)}; choose another study=NAME, or delete the variant's: "
                f"rm {path.parents[2]}/*/*/{variant}"
            )
    return cell


def read_cell(path: Path) -> Cell:
    """Read a cell; raises ValueError if it is damaged."""
    try:
        content = json.loads(path.read_text())
        trials, num_sequences = content["trials"], content["num_sequences"]
        num_heads = content["identity"]["num_heads"]
        lengths = {name: len(values) for name, values in trials.items()}
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {content['schema_version']}")
        if num_sequences and not set(MEASURES) <= set(lengths):
            raise ValueError(f"no trials of {sorted(set(MEASURES) - set(lengths))}")
        if any(length != num_sequences * num_heads for length in lengths.values()):
            raise ValueError(f"{num_sequences} sequences of {num_heads} heads, but {lengths}")
        return Cell(path, content["identity"], content["details"], trials, num_sequences)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete it, and the same "
            f"command measures it again"
        ) from error


def json_values(value: dict[str, Any]) -> dict[str, Any]:
    """The value as it comes back from a file."""
    decoded: dict[str, Any] = json.loads(json.dumps(value))
    return decoded
