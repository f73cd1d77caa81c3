"""The token store: a data set on disk, as plain arrays beside a manifest.

    <directory>/manifest.json
    <directory>/<split>_tokens.npy       uint8, all sequences of the split, one after the other
    <directory>/<split>_offsets.npy      int64, sequence i is tokens[offsets[i]:offsets[i + 1]]
    <directory>/<split>_labels.npy       uint8, one class per example

Where an example is a pair of documents, each document is stored once, for all splits:

    <directory>/documents_tokens.npy     uint8
    <directory>/documents_offsets.npy    int64
    <directory>/<split>_pairs.npy        int32 [n, 2], the documents of each example
    <directory>/<split>_labels.npy       uint8

Tokens are raw bytes or ids, uncut and without padding. Arrays are memory-mapped, so that processes
share them. A store appears under its name complete or not at all.
"""

import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from lra.tasks.durable import replacement, sha256, sync
from lra.tasks.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    SOURCE_KINDS,
    DataCorruptError,
    FileEntry,
    Manifest,
    SplitEntry,
    check_file,
    fingerprint,
    read_manifest,
)


@dataclass(frozen=True)
class Sequences:
    """Labeled token sequences, in memory or memory-mapped; the module tells the layout."""

    STEMS: ClassVar = ("{split}_tokens", "{split}_offsets", "{split}_labels")

    tokens: UInt8[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " bounds"]
    labels: UInt8[np.ndarray, " bounds-1"]

    def __post_init__(self) -> None:
        _check_array("tokens", self.tokens, np.uint8, ndim=1)
        _check_array("labels", self.labels, np.uint8, ndim=1)
        _check_offsets(self.offsets, len(self), len(self.tokens))

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, examples: Iterable[tuple[bytes, int]]) -> "Sequences":
        """Tokens and class of each example, gathered in memory."""
        tokens, offsets, labels = bytearray(), array("q", [0]), bytearray()
        for sequence, label in examples:
            tokens += sequence
            offsets.append(len(tokens))
            labels.append(label)
        return cls(
            np.frombuffer(tokens, np.uint8),
            np.array(offsets, dtype=np.int64),
            np.frombuffer(labels, np.uint8),
        )

    def lengths(self) -> Int64[np.ndarray, " n"]:
        """Tokens of each sequence."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Pairs:
    """Labeled pairs of documents, which all splits share; the module tells the layout."""

    STEMS: ClassVar = ("documents_tokens", "documents_offsets", "{split}_pairs", "{split}_labels")

    tokens: UInt8[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " bounds"]
    pairs: Int32[np.ndarray, "n 2"]
    labels: UInt8[np.ndarray, " n"]

    def __post_init__(self) -> None:
        _check_array("tokens", self.tokens, np.uint8, ndim=1)
        _check_array("labels", self.labels, np.uint8, ndim=1)
        _check_array("pairs", self.pairs, np.int32, ndim=2)
        num_documents = len(self.offsets) - 1
        _check_offsets(self.offsets, num_documents, len(self.tokens))
        if self.pairs.shape != (len(self), 2):
            raise ValueError(f"pairs are {list(self.pairs.shape)}, not {[len(self), 2]}")
        if len(self) and not 0 <= self.pairs.min() <= self.pairs.max() < num_documents:
            raise ValueError(f"a pair refers to a document that is not in 0..{num_documents - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> Int64[np.ndarray, " documents"]:
        """Tokens of each document, pair after pair."""
        return np.diff(self.offsets)[self.pairs.ravel()]


Layout = TypeVar("Layout", Sequences, Pairs)


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
        store = cls(directory, read_manifest(path, remedy), remedy)
        for name, entry in store.files.items():
            check_file(directory / name, entry, verify, remedy)
        return store

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest's `splits`: equal for equal content, whatever its source."""
        return self.manifest["fingerprint"]

    @property
    def files(self) -> dict[str, FileEntry]:
        """All files but the manifest, by name."""
        return {k: v for s in self.manifest["splits"].values() for k, v in s["files"].items()}

    def split(self, name: str) -> Sequences:
        """The sequences of a split, memory-mapped on each call."""
        return self._load(name, Sequences)

    def pairs(self, name: str) -> Pairs:
        """The pairs of a split, memory-mapped on each call."""
        return self._load(name, Pairs)

    def _load(self, name: str, layout: type[Layout]) -> Layout:
        splits = self.manifest["splits"]
        if name not in splits:
            raise ValueError(f"split={name!r} is not one of {sorted(splits)}")
        paths = [self.directory / f"{stem.format(split=name)}.npy" for stem in layout.STEMS]
        expected = (splits[name]["num_examples"], splits[name]["num_tokens"])
        try:
            # views of the maps: slicing an np.memmap is several times slower
            split = layout(*(np.asarray(np.load(path, mmap_mode="r")) for path in paths))
            if (found := (len(split), int(split.lengths().sum()))) != expected:
                raise ValueError(f"{found} examples and tokens, expected {expected}")
        except ValueError as error:
            message = f"split {name} of {self.directory}: {error}{self.remedy}"
            raise DataCorruptError(message) from error
        return split


def write_store(
    directory: Path,
    *,
    task: str,
    source: Mapping[str, object],
    splits: Mapping[str, Sequences | Pairs],
) -> None:
    """Write a store, in place of the one that may be there already.

    Hold `build_lock`: what another builder has begun is taken for abandoned.
    """
    if source.get("kind") not in SOURCE_KINDS:
        raise ValueError(f"source kind={source.get('kind')!r} is not one of {SOURCE_KINDS}")
    if directory.exists() and not (directory / MANIFEST).exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} holds no {MANIFEST}, so is not a store; remove it")
    with replacement(directory) as staging:
        written: dict[str, tuple[np.ndarray, FileEntry]] = {}
        entries = {k: _write_split(staging, k, split, written) for k, split in splits.items()}
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            task=task,
            source=dict(source),
            splits=entries,
            fingerprint=fingerprint(entries),
        )
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        sync(staging / MANIFEST)


def _write_split(
    directory: Path,
    name: str,
    split: Sequences | Pairs,
    written: dict[str, tuple[np.ndarray, FileEntry]],
) -> SplitEntry:
    """Write the arrays that no split before has written."""
    lengths = split.lengths()
    if len(split) == 0 or np.diff(split.offsets).min() < 0:
        raise ValueError(f"split {name} has no examples, or offsets that decrease")
    files = {}
    for field, stem in zip(fields(split), split.STEMS, strict=True):
        file, array = f"{stem.format(split=name)}.npy", getattr(split, field.name)
        if file not in written:
            written[file] = (array, _write_array(directory / file, array))
        if written[file][0] is not array:
            raise ValueError(f"split {name} has {file} of its own, not that of other splits")
        files[file] = written[file][1]
    return SplitEntry(
        num_examples=len(split),
        num_tokens=int(lengths.sum()),
        min_length=int(lengths.min()),
        mean_length=float(lengths.mean()),
        max_length=int(lengths.max()),
        class_counts=np.bincount(split.labels).tolist(),
        files=files,
    )


def _write_array(path: Path, array: np.ndarray) -> FileEntry:
    np.save(path, array)
    sync(path)
    return FileEntry(bytes=path.stat().st_size, sha256=sha256(path))


def _check_array(name: str, array: np.ndarray, dtype: type, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        found = f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"{name} are {found}, not {dtype.__name__} with {ndim} axes")


def _check_offsets(offsets: np.ndarray, num_sequences: int, num_tokens: int) -> None:
    _check_array("offsets", offsets, np.int64, ndim=1)
    bounds = (len(offsets), int(offsets[0]), int(offsets[-1]))
    expected = (num_sequences + 1, 0, num_tokens)
    if bounds != expected:
        raise ValueError(f"number, first and last of offsets are {bounds}, not {expected}")
