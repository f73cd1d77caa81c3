"""Which runs a study consists of, and how far each of them is. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from lra.paths import CONF_DIR
from lra.record import Record, RunDirectory

State = Literal["completed", "running", "paused", "interrupted", "failed", "missing", "other"]
UNFINISHED: tuple[State, ...] = ("paused", "interrupted", "missing")


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    overrides: tuple[str, ...]
    """What `scripts/train.py` is given."""
    config: DictConfig
    directory: RunDirectory

    @property
    def label(self) -> str:
        """The run's directory below its study."""
        return str(self.config.name)

    @property
    def variant(self) -> tuple[str, str]:
        """What decides the time it takes: task and attention."""
        return str(self.config.label), str(self.config.choices.attention)


def plan(study: str, overrides: Sequence[str]) -> list[Job]:
    """The runs of `conf/experiment/<study>.yaml` in the order of its sweep.

    `overrides` narrow, widen or replace what is swept, as on the command line of a sweep.
    Raises `ValueError` for an unknown experiment, or where two runs would share a directory.
    """
    known = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))
    if study not in known:
        raise ValueError(f"there is no experiment {study!r}; there are {', '.join(known)}")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        jobs = [_job(study, chosen) for chosen in _expand(study, overrides)]
    paths = [job.directory.path for job in jobs]
    shared = sorted({str(path) for path in paths if paths.count(path) > 1})
    if shared:
        raise ValueError(
            f"two runs would share {shared[0]}: what is swept must stand in `name`, "
            f"which is {jobs[0].label}"
        )
    return jobs


def _expand(study: str, overrides: Sequence[str]) -> list[list[str]]:
    # The sweep's keys take their values from the command line where it names them.
    swept = compose("train", [f"experiment={study}"], return_hydra_config=True).hydra.sweeper.params
    given = [f"{key}={value}" for key, value in (swept or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*given, *overrides])
    [batch] = BasicSweeper.split_arguments(parsed, None)
    return [list(job) for job in batch]


def _job(study: str, overrides: Sequence[str]) -> Job:
    chosen = (f"experiment={study}", *overrides)
    config = compose("train", list(chosen), return_hydra_config=True)
    with open_dict(config):
        for group in config.choices:
            config.choices[group] = config.hydra.runtime.choices[group]
        directory = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        del config.hydra
    return Job(chosen, config, RunDirectory(directory))


def state_of(job: Job) -> tuple[State, Record | None]:
    """How far a run is, and its record; `other` if its directory holds another configuration."""
    if not job.directory.record.exists():
        return "missing", None
    record = job.directory.read()
    try:
        job.directory.check_owner(job.config)
    except ValueError:
        return "other", record
    if record["status"] == "running":
        return ("running" if job.directory.owner() is not None else "interrupted"), record
    state: State = record["status"]
    return state, record
