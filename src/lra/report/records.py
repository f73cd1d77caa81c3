"""Reading the records of runs."""

import json
from pathlib import Path
from typing import Any, get_args

from lra.record import SCHEMA_VERSION, Record, RunDirectory, Status, flatten, is_neutral

RECORD_KEYS = (
    "status", "task", "attention", "seed", "protocol", "overrides", "config", "data", "environment",
)  # fmt: skip

ACCURACIES = ("best_val_accuracy", "test_accuracy_best", "test_accuracy_last")


def read_records(root: Path) -> dict[Path, Record]:
    """The record of every run below `root`, by run directory.

    Raises `FileNotFoundError` if there is none, and `ValueError` for a record that cannot be
    trusted and for one run that is there twice: nothing is passed over in silence.
    """
    paths = sorted(root.rglob("record.json"))
    if not paths:
        raise FileNotFoundError(
            f"there are no runs below {root}; a study is run by: "
            f"python scripts/train.py -m experiment=NAME"
        )
    records = {path.parent: read_record(path.parent) for path in paths}
    seen: dict[str, Path] = {}
    for path, record in records.items():
        key, file = _identity(record), RunDirectory(path).record
        if key in seen:
            raise ValueError(f"{seen[key]} and {file} hold the same run; delete one of them")
        seen[key] = file
    return records


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
    _check_outcome(path, record)
    return record


def _check_outcome(path: Path, record: Record) -> None:
    """Raise `ValueError` where a record does not hold what its status promises."""
    status = record["status"]
    if status not in get_args(Status):
        raise ValueError(f"{path} has status={status}, not one of {', '.join(get_args(Status))}")
    if status == "failed" and not (record["failure"] or {}).get("type"):
        raise ValueError(f"{path} is failed, but says not how; delete the run")
    if status != "completed":
        return
    for key in ACCURACIES:
        value = record["result"].get(key)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{path} is completed, but has result.{key}={value}; delete the run")


def _identity(record: Record) -> str:
    """What makes a run: its configuration, wherever it is filed, and the machine."""
    config = {key: value for key, value in flatten(record["config"]) if not is_neutral(key)}
    config = {key: value for key, value in config.items() if key not in ("study", "name")}
    parts = [config, record["attention"], record["seed"], record["environment"]["device"]]
    return json.dumps([record["task"], *parts], sort_keys=True)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The checks of a run, in order."""
    path = RunDirectory(directory).metrics
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
