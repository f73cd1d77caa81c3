"""The records of a benchmark: a JSON file a cell, so that a rerun fills the gaps.

A cell holds its samples, and under `references` those of what it is compared with, taken in turns
with it: a ratio never spans two sessions. A folder belongs to one setting and one machine.
"""

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lra import provenance
from lra.files import write_text
from lra.record import flatten

SCHEMA_VERSION = 1
Cell = dict[str, Any]
CELL_KEYS = ("status", "reason", "config", "environment", "git", "session", "measures")
IDENTITY = ("config", "environment")
"""What all cells of a folder have in common."""


class CellStore:
    """The cells below a folder; raises `ValueError` if they are of another setting or machine."""

    def __init__(self, root: Path, config: Mapping[str, Any], device: torch.device) -> None:
        self.root = root
        self.common: Cell = {
            "schema_version": SCHEMA_VERSION,
            "config": dict(config),
            "environment": provenance.environment(device),
            "git": provenance.git_state(Path(__file__).parent),
        }
        for path, cell in _read_all(root).items():
            refuse_mixture(root, path, cell, self.common)

    def find(self, *key: str) -> Cell | None:
        """The cell of a key, if there is one."""
        path = self._path(*key)
        return read_cell(path) if path.exists() else None

    def write(self, cell: Mapping[str, Any], *key: str) -> None:
        """Add what all cells have in common, and replace the cell of the key."""
        path = self._path(*key)
        path.parent.mkdir(parents=True, exist_ok=True)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        whole = {**self.common, **cell, "finished": finished}
        write_text(path, json.dumps(whole, indent=1) + "\n")

    def _path(self, *key: str) -> Path:
        return self.root.joinpath(*key[:-1], f"{key[-1]}.json")


def new_session() -> dict[str, str]:
    """Names the measurements that are taken in turns."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"id": secrets.token_hex(6), "started": started}


def read_cells(root: Path) -> dict[Path, Cell]:
    """All cells below a folder, by file.

    Raises `FileNotFoundError` if there are none, and `ValueError` for a file that cannot be
    trusted, or for cells of more than one setting or machine.
    """
    cells = _read_all(root)
    if not cells:
        raise FileNotFoundError(f"there are no measurements below {root}")
    first = next(iter(cells.values()))
    for path, cell in cells.items():
        refuse_mixture(root, path, cell, first)
    return cells


def _read_all(root: Path) -> dict[Path, Cell]:
    return {path: read_cell(path) for path in sorted(root.glob("*/*.json"))}


def read_cell(path: Path) -> Cell:
    """One cell, checked for its schema."""
    try:
        cell: Cell = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; delete it, and measure again") from error
    version = cell.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version={version}, not {SCHEMA_VERSION}")
    missing = [key for key in CELL_KEYS if key not in cell]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; delete it, and measure again")
    return cell


def refuse_mixture(root: Path, path: Path, cell: Cell, other: Cell) -> None:
    """Raise `ValueError`, naming the first key that differs, if two cells do not compare."""
    for section in IDENTITY:
        theirs, ours = dict(flatten(cell[section])), dict(flatten(other[section]))
        for key in theirs | ours:
            if theirs.get(key) != ours.get(key):
                raise ValueError(
                    f"{path} was measured with {key}={theirs.get(key)}, not {ours.get(key)}; "
                    f"choose another out=FOLDER, or delete {root}"
                )
