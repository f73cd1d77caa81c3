"""Reading the records of runs."""

import json
from pathlib import Path
from typing import Any

from lra.record import SCHEMA_VERSION, Record, RunDirectory

RECORD_KEYS = (
    "status", "task", "attention", "seed", "protocol", "overrides", "config", "data", "environment",
)  # fmt: skip


def read_records(root: Path) -> dict[Path, Record]:
    """The record of every run below `root`, by run directory.

    Raises `FileNotFoundError` if there is none, and `ValueError` for a record that cannot be
    trusted: nothing is passed over in silence.
    """
    paths = sorted(root.rglob("record.json"))
    if not paths:
        raise FileNotFoundError(f"there are no runs below {root}")
    return {path.parent: read_record(path.parent) for path in paths}


def read_record(directory: Path) -> Record:
    """One record, checked for its schema and for saying where its data came from."""
    path = RunDirectory(directory).record
    try:
        record = RunDirectory(directory).read()
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; delete it, or restore it") from error
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version={version}, not {SCHEMA_VERSION}")
    missing = [key for key in RECORD_KEYS if key not in record]
    if missing or "source_kind" not in record["data"]:
        raise ValueError(f"{path} lacks {', '.join(missing) or 'data.source_kind'}")
    return record


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The checks of a run, in order."""
    path = RunDirectory(directory).metrics
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
