"""What a task's data are prepared from, and whether that is official.

Data are official if they are a published archive, told by its SHA-256, or pass the task's check of
their content where they come unpacked or as a directory of TensorFlow Datasets. All other data are
stand-ins: they are accepted under a name of their own, which results on them carry.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from lra.tasks.durable import sha256
from lra.tasks.preparation import is_prepared, open_prepared, prepare_once
from lra.tasks.published import Publication, describe_file, directory_sha256, fetch_archive
from lra.tasks.store import Sequences, Store

Key = TypeVar("Key", str, int)
Via = Literal["direct", "tfds"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Data as they were found."""

    path: Path
    form: Literal["archive", "directory", "tfds"]
    sha256: str
    """Of an archive's content; of names and contents of a directory's files."""
    stand_in: str | None
    """The name of data that are not official."""
    via: Via
    """How an archive is read."""

    @property
    def needs_tfds(self) -> bool:
        """Whether it is read with TensorFlow Datasets."""
        return self.form == "tfds" or self.via == "tfds"


def prepare_from_source(
    data_dir: Path,
    name: str,
    *,
    source: str | None,
    stand_in: str | None,
    via: Via,
    publication: Publication,
    rule: Mapping[str, object],
    build: Callable[[Source], Mapping[str, Sequences]],
    progress: Callable[[int], object],
) -> Store:
    """The store `data_dir/name`, built if it is not there undamaged.

    `source` is an archive or a directory; None takes the official archive from
    `data_dir/downloads`, or downloads it; `progress` is told the bytes as they arrive. `rule`, how
    splits are made, goes into the manifest.
    """
    if via not in ("direct", "tfds"):
        raise ValueError(f"prepare.via={via} is not one of direct, tfds")
    if stand_in is not None and source is None:
        raise ValueError(f"stand_in={stand_in} needs prepare.source=PATH")
    label: dict[str, object] = {"kind": "official", **rule}
    if stand_in is not None:
        label |= {"kind": "stand-in", "name": stand_in}
    elif is_prepared(data_dir, name, label):  # official data are the same in whatever form
        log.info("already prepared: %s", data_dir / name)
        return open_prepared(data_dir, name, verify=False)
    if source is None:
        path = fetch_archive(publication.archives[0], data_dir / "downloads", progress)
    else:
        path = Path(source)
    found = examine(path, publication, stand_in, via)
    provenance = {**label, "form": found.form, "sha256": found.sha256}
    return prepare_once(data_dir, name, provenance, partial(build, found))


def examine(path: Path, publication: Publication, stand_in: str | None, via: Via) -> Source:
    """What is at `path`; `ValueError` for an archive with a wrong checksum, given its name."""
    if not path.exists():
        raise FileNotFoundError(f"source={path} does not exist")
    if (path / "dataset_info.json").is_file():
        return Source(path, "tfds", _files_sha256(path), stand_in, via)
    if path.is_dir():
        if via == "tfds":
            raise ValueError(f"prepare.via=tfds reads archives, and {path} is unpacked")
        return Source(path, "directory", directory_sha256(path, publication), stand_in, via)
    digest = sha256(path)
    official = {archive.sha256: archive for archive in publication.archives}
    if stand_in is not None and digest in official:
        raise ValueError(f"{path} is the official {official[digest]}, not stand_in={stand_in}")
    if stand_in is None and digest not in official:
        raise ValueError(
            f"{path} has {describe_file(path, digest)}, which is not the official "
            f"{' or '.join(map(str, publication.archives))}; fetch it again, or name other data "
            "with prepare.stand_in=NAME"
        )
    return Source(path, "archive", digest, stand_in, via)


def tfds_order(keys: Iterable[Key], split: str) -> list[Key]:
    """The order in which TensorFlow Datasets keeps the records of a split."""
    return sorted(keys, key=lambda key: hashlib.md5(f"{split}{key}".encode()).digest())


def unofficial(source: Source, found: object, expected: object) -> ValueError:
    """The error for data that are not what they have to be if they were official."""
    return ValueError(
        f"{source.path} has {found}, the official data {expected}; "
        "name other data with prepare.stand_in=NAME"
    )


def _files_sha256(directory: Path) -> str:
    lines = [f"{p.name} {sha256(p)}\n" for p in sorted(directory.iterdir()) if p.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
