"""The token store: a data set on disk, as plain arrays beside a manifest.

    <directory>/manifest.json
    <directory>/<split>_tokens.npy    uint8, all sequences of the split, one after the other
    <directory>/<split>_offsets.npy   int64, sequence i is tokens[offsets[i]:offsets[i + 1]]
    <directory>/<split>_labels.npy    uint8, one class per sequence

Tokens are raw bytes or ids, uncut and without padding. Arrays are memory-mapped, so that processes
share them. A store appears under its name complete or not at all.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from jaxtyping import Int64, UInt8

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
PARTS = ("tokens", "offsets", "labels")
SOURCE_KINDS = ("official", "regenerated", "stand-in")


class DataCorruptError(ValueError):
    """A store does not hold what its manifest says."""


class FileEntry(TypedDict):
    """A file's size and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


class SplitEntry(TypedDict):
    """A split's size, lengths in tokens, examples per class, and files by name."""

    num_examples: int
    num_tokens: int
    min_length: int
    mean_length: float
    max_length: int
    class_counts: list[int]
    files: dict[str, FileEntry]


class Manifest(TypedDict):
    """`source` has a `kind` of `SOURCE_KINDS`, and whatever else it takes to obtain it again."""

    schema_version: int
    task: str
    source: dict[str, object]
    splits: dict[str, SplitEntry]
    fingerprint: str


@dataclass(frozen=True)
class Sequences:
    """Labeled token sequences, in memory or memory-mapped; the module tells the layout."""

    tokens: UInt8[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " bounds"]
    labels: UInt8[np.ndarray, " bounds-1"]

    def __post_init__(self) -> None:
        for name, dtype in (("tokens", np.uint8), ("offsets", np.int64), ("labels", np.uint8)):
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != 1:
                raise ValueError(f"{name} are {array.dtype}{list(array.shape)}, not {dtype} [n]")
        bounds = (len(self.offsets), int(self.offsets[0]), int(self.offsets[-1]))
        expected = (len(self) + 1, 0, len(self.tokens))
        if bounds != expected:
            raise ValueError(f"number, first and last of offsets are {bounds}, not {expected}")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Store:
    """A store on disk, open for reading."""

    directory: Path
    manifest: Manifest
    remedy: str

    @classmethod
    def open(cls, directory: Path, *, verify: bool, rebuild_command: str) -> "Store":
        """Check that all files are there in full and, if `verify`, their checksums.

        Raises `FileNotFoundError` where no store is, `DataCorruptError` for one that is damaged and
        `ValueError` for another schema. Messages end with `rebuild_command`.
        """
        path, remedy = directory / MANIFEST, f"; build it with: {rebuild_command}"
        if not path.is_file():
            raise FileNotFoundError(f"there is no data set at {path}{remedy}")
        manifest = _read_manifest(path, remedy)
        for split in manifest["splits"].values():
            for name, entry in split["files"].items():
                _check_file(directory / name, entry, verify, remedy)
        return cls(directory, manifest, remedy)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest's `splits`: equal for equal content, whatever its source."""
        return self.manifest["fingerprint"]

    def split(self, name: str) -> Sequences:
        """The sequences of a split, memory-mapped on each call."""
        splits = self.manifest["splits"]
        if name not in splits:
            raise ValueError(f"split={name!r} is not one of {sorted(splits)}")
        names = (f"{name}_{part}.npy" for part in PARTS)
        expected = (splits[name]["num_examples"], splits[name]["num_tokens"])
        try:
            sequences = Sequences(*(np.load(self.directory / n, mmap_mode="r") for n in names))
            if (found := (len(sequences), len(sequences.tokens))) != expected:
                raise ValueError(f"{found} examples and tokens, expected {expected}")
        except ValueError as error:
            message = f"split {name} of {self.directory}: {error}{self.remedy}"
            raise DataCorruptError(message) from error
        return sequences


def write_store(
    directory: Path, *, task: str, source: Mapping[str, object], splits: Mapping[str, Sequences]
) -> None:
    """Write a store, in place of the one that may be there already.

    Files are on disk before the directory gets its name; readers of a replaced store keep what
    they have mapped. Hold `build_lock`: what another builder has begun is taken for abandoned.
    """
    if source.get("kind") not in SOURCE_KINDS:
        raise ValueError(f"source kind={source.get('kind')!r} is not one of {SOURCE_KINDS}")
    if directory.exists() and not (directory / MANIFEST).exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} holds no {MANIFEST}, so is not a store; remove it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory)
    staging, replaced = _new_sibling(directory), _new_sibling(directory)
    staging.mkdir()
    try:
        entries = {name: _write_split(staging, name, split) for name, split in splits.items()}
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            task=task,
            source=dict(source),
            splits=entries,
            fingerprint=_fingerprint(entries),
        )
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        _sync(staging / MANIFEST)
        _sync(staging)
        if directory.exists():
            directory.rename(replaced)
        staging.rename(directory)
        _sync(directory.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def build_lock(directory: Path) -> Iterator[None]:
    """Exclude other builders of the same store; look inside whether it is there by now."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f".{directory.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_split(directory: Path, name: str, sequences: Sequences) -> SplitEntry:
    lengths = np.diff(sequences.offsets)
    if len(lengths) == 0 or lengths.min() < 0:
        raise ValueError(f"split {name} has no sequences, or offsets that decrease")
    files = {}
    for part in PARTS:
        path = directory / f"{name}_{part}.npy"
        np.save(path, getattr(sequences, part))
        _sync(path)
        files[path.name] = FileEntry(bytes=path.stat().st_size, sha256=_sha256(path))
    return SplitEntry(
        num_examples=len(sequences),
        num_tokens=len(sequences.tokens),
        min_length=int(lengths.min()),
        mean_length=len(sequences.tokens) / len(sequences),
        max_length=int(lengths.max()),
        class_counts=np.bincount(sequences.labels).tolist(),
        files=files,
    )


def _read_manifest(path: Path, remedy: str) -> Manifest:
    try:
        manifest: Manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataCorruptError(f"{path} is not JSON: {error}{remedy}") from error
    if (version := manifest.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version={version}, not {SCHEMA_VERSION}{remedy}")
    expected, found = manifest.get("fingerprint"), _fingerprint(manifest.get("splits"))
    if found != expected:
        raise DataCorruptError(f"{path}: splits have SHA-256 {found}, expected {expected}{remedy}")
    return manifest


def _check_file(path: Path, expected: FileEntry, verify: bool, remedy: str) -> None:
    if not path.is_file():
        raise DataCorruptError(f"{path} is missing{remedy}")
    if (size := path.stat().st_size) != expected["bytes"]:
        raise DataCorruptError(f"{path} has {size} bytes, expected {expected['bytes']}{remedy}")
    if verify and (found := _sha256(path)) != expected["sha256"]:
        raise DataCorruptError(f"{path} has SHA-256 {found}, expected {expected['sha256']}{remedy}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(splits: object) -> str:
    canonical = json.dumps(splits, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _sync(path: Path) -> None:
    """Make a file's content, or the names in a directory, survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_sibling(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.tmp-{uuid.uuid4().hex}")


def _remove_abandoned(directory: Path) -> None:
    """Remove what builders that were killed left beside a store."""
    for path in directory.parent.glob(f".{glob.escape(directory.name)}.tmp-*"):
        shutil.rmtree(path)
