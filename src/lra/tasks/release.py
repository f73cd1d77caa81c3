"""Data releases without a published checksum: their files, and preparing a task from them.

Files are found in a directory, a zip or a tar archive, at any depth. Data are official if they have
the official numbers of examples, else stand-ins, which are accepted under a name of their own.
"""

import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from lra.tasks.durable import scratch_directory, sha256
from lra.tasks.preparation import prepare_once
from lra.tasks.store import Pairs, Sequences, Store

COPY_BYTES = 1 << 20
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)
"""What reading an archive raises that is damaged, cut short, or none."""

Layouts = Mapping[str, Sequence[str]]
"""For each way in which data may lie, the ends of the paths of its files."""

Build = Callable[[str, dict[str, Path], Path], Mapping[str, Sequences | Pairs]]
"""The splits, given a layout, its files by path end, and a directory for intermediate files."""


def prepare_release(
    data_dir: Path,
    name: str,
    *,
    source: Path,
    stand_in: str | None,
    layouts: Layouts,
    official_counts: Mapping[str, int],
    build: Build,
    rule: Mapping[str, object] = MappingProxyType({}),
) -> Store:
    """The store `data_dir/name` of what is at `source`, built if it is not there undamaged.

    `rule`, how splits are made and whatever else data depend on, goes into the manifest. Raises
    `ValueError` for other numbers of examples than the official ones, unless `stand_in` names the
    data.
    """
    label = {"kind": "official"} if stand_in is None else {"kind": "stand-in", "name": stand_in}
    provenance = {**label, **rule, "files": checksums(source, layouts)}
    expected = official_counts if stand_in is None else None
    splits = partial(_read_splits, data_dir / name, source, layouts, expected, build)
    return prepare_once(data_dir, name, provenance, splits)


def _read_splits(
    directory: Path,
    source: Path,
    layouts: Layouts,
    expected: Mapping[str, int] | None,
    build: Build,
) -> Mapping[str, Sequences | Pairs]:
    with scratch_directory(directory) as scratch:
        splits = build(*find_files(source, layouts, scratch), scratch)
    counts = {split: len(examples) for split, examples in splits.items()}
    if expected is not None and counts != expected:
        raise ValueError(
            f"{source} has {counts} examples, the official data {expected}; "
            "name other data with prepare.stand_in=NAME"
        )
    return splits


def find_files(source: Path, layouts: Layouts, scratch: Path) -> tuple[str, dict[str, Path]]:
    """The name of the first layout that `source` holds in full, and its files by path end.

    What an archive holds is unpacked into `scratch`; of a tar archive no more is read than needed.
    Raises `FileNotFoundError` where files are missing, and `ValueError` for an archive that is
    damaged or cut short, and where a directory or zip archive has a file twice.
    """
    try:
        if source.is_dir():
            found = dict(_find_in_directory(source, layouts))
        elif zipfile.is_zipfile(source):
            found = dict(_unpack_zip(source, layouts, scratch))
        else:
            found = dict(_unpack_tar(source, layouts, scratch))
    except DAMAGE as error:
        raise ValueError(f"{source} is damaged, cut short, or no archive: {error}") from error
    name = _complete(layouts, found)
    if name is None:
        missing = " nor ".join(next(f for f in ends if f not in found) for ends in layouts.values())
        raise FileNotFoundError(f"{source} holds neither {missing}")
    return name, {end: found[end] for end in layouts[name]}


def holds(source: Path, layouts: Layouts, *, unless: re.Pattern[str]) -> bool:
    """Whether `source` has a file of `layouts`, and none whose path matches `unless`.

    An archive that is damaged is searched up to there; what does not exist has no files.
    """
    found = False
    try:
        for path in _paths(source):
            if unless.search(path):
                return False
            found = found or _matching(layouts, path) is not None
    except (*DAMAGE, FileNotFoundError):
        pass
    return found


def checksums(source: Path, layouts: Layouts) -> dict[str, str]:
    """SHA-256 of an archive, or of the files that are looked for in a directory, by name."""
    if not source.is_dir():
        return {source.name: sha256(source)}
    _, found = find_files(source, layouts, source)
    return {end: sha256(path) for end, path in found.items()}


def _complete(layouts: Layouts, found: Iterable[str]) -> str | None:
    return next((name for name, ends in layouts.items() if set(ends) <= set(found)), None)


def _matching(layouts: Layouts, path: str) -> str | None:
    every = (end for ends in layouts.values() for end in ends)
    return next((end for end in every if f"/{path}".endswith(f"/{end}")), None)


def _unique(source: Path, layouts: Layouts, paths: Iterable[str]) -> dict[str, str]:
    """The path of each end; `ValueError` where there are two."""
    candidates = defaultdict(list)
    for path in paths:
        if (end := _matching(layouts, path)) is not None:
            candidates[end].append(path)
    for end, found in sorted(candidates.items()):
        if len(found) > 1:
            raise ValueError(f"{source} has {end} more than once: {', '.join(sorted(found))}")
    return {end: path for end, [path] in candidates.items()}


def _find_in_directory(source: Path, layouts: Layouts) -> Iterator[tuple[str, Path]]:
    for end, path in _unique(source, layouts, _paths(source)).items():
        yield end, Path(path)


def _paths(source: Path) -> Iterator[str]:
    """Paths of all files, or names of an archive's members."""
    if source.is_dir():
        for directory, _, names in os.walk(source.resolve()):
            yield from (f"{directory}/{name}" for name in names)
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            yield from archive.namelist()
    else:
        with tarfile.open(source, "r|*") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]
                yield member.name


def _unpack_zip(source: Path, layouts: Layouts, scratch: Path) -> Iterator[tuple[str, Path]]:
    with zipfile.ZipFile(source) as archive:
        members = _unique(source, layouts, archive.namelist())
        name = _complete(layouts, members)
        for end in layouts[name] if name else ():
            path = _place(scratch, end)
            with archive.open(members[end]) as content, path.open("wb") as file:
                shutil.copyfileobj(content, file, COPY_BYTES)
            yield end, path


def _unpack_tar(source: Path, layouts: Layouts, scratch: Path) -> Iterator[tuple[str, Path]]:
    found: set[str] = set()
    with tarfile.open(source, "r|*") as archive:
        while _complete(layouts, found) is None and (member := archive.next()) is not None:
            # else the archive remembers every one of a release's million images
            archive.members.clear()  # type: ignore[attr-defined]
            end = _matching(layouts, member.name) if member.isfile() else None
            if end is None or end in found:
                continue
            path, content = _place(scratch, end), archive.extractfile(member)
            assert content is not None
            with path.open("wb") as file:
                shutil.copyfileobj(content, file, COPY_BYTES)
            found.add(end)
            yield end, path


def _place(scratch: Path, end: str) -> Path:
    path = scratch / end
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
