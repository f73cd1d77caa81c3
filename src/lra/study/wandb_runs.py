"""Runs as Weights & Biases kept them, back in the form of files: of a project, or of offline runs.

W&B has a run's record and metrics. Which test examples it answered correctly stays with the run's
own files, so that tables from W&B say "not tested" where they would otherwise compare.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lra.files import write_text
from lra.record import Record, RunDirectory

PREFIX = "wandb:"
OF_WANDB = "_"
"""What begins so is W&B's own."""


def fetch_runs(source: str, to: Path) -> None:
    """Write the runs of `wandb:ENTITY/PROJECT`, or of offline runs below a folder, below `to`.

    Raises `ValueError` where there are none, or where W&B does not answer.
    """
    if source.startswith(PREFIX):
        runs = project_runs(source.removeprefix(PREFIX))
    else:
        runs = [offline_run(path) for path in sorted(Path(source).rglob("*.wandb"))]
    by_id: dict[str, tuple[Record, dict[int, dict[str, Any]]]] = {}
    for record, checks in runs:
        if record is None:
            continue
        _, known = by_id.get(record["run_id"], (record, {}))  # a resumed run comes in parts
        known |= {check["step"]: check for check in checks}
        by_id[record["run_id"]] = (record, known)
    if not by_id:
        raise ValueError(f"{source} holds no run that has ended")
    for record, known in by_id.values():
        directory = RunDirectory(to / record["study"] / record["config"]["name"])
        directory.path.mkdir(parents=True, exist_ok=True)
        record["result"].pop("test_correct", None)
        directory.write(record)
        lines = [json.dumps(known[step]) + "\n" for step in sorted(known)]
        write_text(directory.metrics, "".join(lines))


def project_runs(project: str) -> Iterable[tuple[Record | None, list[dict[str, Any]]]]:
    """Record and metrics of every run of a project, the oldest first; it needs the network."""
    import wandb

    try:
        for run in wandb.Api().runs(project, order="+created_at"):
            record = run.summary.get("record")
            checks = [own(row) for row in run.scan_history() if "step" in row]
            yield (None if record is None else as_plain(record)), checks
    except (wandb.Error, OSError, ValueError) as error:
        raise ValueError(f"{PREFIX}{project} cannot be read: {error}") from error


def offline_run(path: Path) -> tuple[Record | None, list[dict[str, Any]]]:
    """The same of an offline file, read by W&B's own `leet inspect`."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{path} cannot be read: {done.stderr.strip() or done.stdout.strip()}")
    record, checks = None, []
    for line in map(json.loads, done.stdout.splitlines()):
        if line["type"] == "history":
            checks.append(own(line["history"]["item"]))
        if line["type"] == "summary":
            record = line["summary"].get("update", {}).get("record", record)
    return record, checks


def own(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what W&B adds."""
    return {key: value for key, value in row.items() if not key.startswith(OF_WANDB)}


def as_plain(value: Any) -> Any:
    """Nested mappings of W&B's own kinds as dictionaries."""
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return {key: as_plain(value[key]) for key in value.keys()}  # noqa: SIM118
