"""What a run leaves behind, and who owns its directory. Imports neither torch nor a tracker."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from lra.files import write_text
from lra.lock import Lock, Owner

SCHEMA_VERSION = 1

Config = dict[str, Any]
Record = dict[str, Any]
Status = Literal["running", "paused", "completed", "failed"]

NEUTRAL_KEYS = (
    "data_dir",
    "verify_data",
    "task.data_dir",
    "task.verify",
    "prepare",
    "tracker",
    "trainer.checkpoint_minutes",
    "trainer.num_workers",
    "trainer.pause_at_step",
    "trainer.time_budget_minutes",
)
"""Keys that do not change what a run computes: a run may go on with other values of them."""


@dataclass(frozen=True)
class RunIdentity:
    """How a run is filed."""

    study: str
    name: str
    """The run's directory below its study."""
    tags: tuple[str, ...]
    run_id: str
    """Stays the same when the run is resumed."""


class RunDirectory:
    """A directory belongs to one configuration: its run can be resumed, never mixed.

    Whoever runs in it holds `lock`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "record.json"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.lock = Lock(path / "lock")

    def owner(self) -> Owner | None:
        """The process that runs here now, if any."""
        return self.lock.owner()

    def check_owner(self, config: DictConfig) -> Status | None:
        """The status of the run that is here, None if there is none.

        Raises `ValueError`, naming the first key that differs, if it has another configuration.
        """
        if not self.record.exists():
            return None
        owner, new = dict(flatten(self.read()["config"])), dict(flatten(to_dict(config)))
        # a switch that is off is as good as one that did not exist yet
        different = [key for key in new | owner if (owner.get(key) or 0) != (new.get(key) or 0)]
        different = [key for key in different if not is_neutral(key)]
        if different:
            # A key that follows another one by interpolation would not help the reader
            raw = unresolved(config)
            key = min(different, key=lambda key: "${" in str(raw.get(key)))
            theirs, ours = owner.get(key), new.get(key)
            raise ValueError(
                f"{self.path} holds a run with {key}={theirs}, but this one has {key}={ours}; "
                f"choose another study=NAME, or delete that directory"
            )
        status: Status = self.read()["status"]
        return status

    def begin(self, record: Record) -> None:
        """Take the directory: from now on it belongs to the record's configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        for stale in self.path.glob("*.tmp*"):
            stale.unlink(missing_ok=True)
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(record["config"]))
        self.write(record)

    def read(self) -> Record:
        """The record."""
        record: Record = json.loads(self.record.read_text())
        return record

    def write(self, record: Record) -> None:
        """Replace the record."""
        write_text(self.record, json.dumps(record, indent=1) + "\n")


def is_neutral(key: str) -> bool:
    """Whether a dotted key lies in `NEUTRAL_KEYS`."""
    return any(key == neutral or key.startswith(f"{neutral}.") for neutral in NEUTRAL_KEYS)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested configuration."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_dict(config: DictConfig) -> Config:
    """Plain resolved values; raises on a key that is still ???."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def unresolved(config: DictConfig) -> dict[str, Any]:
    """Dotted keys and values, interpolations as they are written."""
    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    return dict(flatten({str(key): value for key, value in container.items()}))
