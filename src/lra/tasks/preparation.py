"""Preparing a task's data: once, completely, and never over other data."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lra.tasks.durable import build_lock
from lra.tasks.manifest import MANIFEST
from lra.tasks.store import Pairs, Sequences, Store, write_store

REBUILD_COMMAND = "python scripts/prepare_data.py, with the overrides that it was prepared with"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """What stands below a data directory."""

    name: str
    num_bytes: int
    """On disk."""
    store: Store | None
    problem: str | None
    """Why there is no store that can be used."""


def prepare_once(
    data_dir: Path,
    name: str,
    source: Mapping[str, object],
    build: Callable[[], Mapping[str, Sequences | Pairs]],
) -> Store:
    """The store `data_dir/name` of this source, built if it is not there undamaged.

    `source` is what the data depend on, and goes into the manifest. Only one process builds at a
    time. Raises `ValueError` where data of another source have that place.
    """
    directory = data_dir / name
    with build_lock(directory):
        if is_prepared(data_dir, name, source):
            log.info("already prepared: %s", directory)
        else:
            provenance = {**source, "numpy_version": np.__version__}
            write_store(directory, task=name, source=provenance, splits=build())
    return open_prepared(data_dir, name, verify=False)


def is_prepared(data_dir: Path, name: str, source: Mapping[str, object]) -> bool:
    """Whether the store is there, undamaged, and from this source."""
    try:
        present = open_prepared(data_dir, name, verify=True).manifest["source"]
    except FileNotFoundError:
        return False
    except ValueError as error:  # damaged, or written by another version
        log.warning("building again: %s", error)
        return False
    for key, wanted in source.items():
        if present.get(key) != wanted:
            raise ValueError(
                f"{data_dir / name} was prepared with {key}={present.get(key)}, not {wanted}; "
                f"choose another data_dir=FOLDER, or delete that directory"
            )
    return True


def open_prepared(
    data_dir: Path, name: str, *, verify: bool, overrides: str | None = None
) -> Store:
    """The store of a task; its errors name the command that builds it.

    `overrides` are those that choose the task, if that takes more than `task=<name>`.
    """
    chosen = f"task={name}" if overrides is None else overrides
    command = f"python scripts/prepare_data.py {chosen} data_dir={data_dir}"
    return Store.open(data_dir / name, verify=verify, rebuild_command=command)


def survey(data_dir: Path, *, verify: bool) -> Iterator[PreparedData]:
    """All prepared data below a directory, damaged ones too, by name; `verify` reads them whole."""
    for directory in sorted(path for path in data_dir.glob("[!.]*") if path.is_dir()):
        files = [path for path in directory.iterdir() if path.is_file()]
        if not any(path.name == MANIFEST or path.name.endswith("_labels.npy") for path in files):
            continue
        store, problem = None, None
        try:
            store = Store.open(directory, verify=verify, rebuild_command=REBUILD_COMMAND)
        except (ValueError, FileNotFoundError) as error:
            problem = str(error)
        size = sum(path.stat().st_size for path in files)
        yield PreparedData(directory.name, size, store, problem)
