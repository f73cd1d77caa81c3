"""The manifest of a token store: what it holds, where that came from, and its checksums."""

import hashlib
import json
from pathlib import Path
from typing import TypedDict

from lra.tasks.durable import sha256

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SOURCE_KINDS = ("official", "regenerated", "stand-in")


class DataCorruptError(ValueError):
    """A store does not hold what its manifest says."""


class FileEntry(TypedDict):
    """A file's size and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


class SplitEntry(TypedDict):
    """A split's size, lengths of its sequences in tokens, examples per class, files by name.

    A document counts as often as it occurs in a pair.
    """

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


def read_manifest(path: Path, remedy: str) -> Manifest:
    """The manifest, of this schema and undamaged; else the errors of `Store.open`."""
    try:
        manifest: Manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataCorruptError(f"{path} is not JSON: {error}{remedy}") from error
    if (version := manifest.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema_version={version}, not {SCHEMA_VERSION}{remedy}")
    expected, found = manifest.get("fingerprint"), fingerprint(manifest.get("splits"))
    if found != expected:
        raise DataCorruptError(f"{path}: splits have SHA-256 {found}, expected {expected}{remedy}")
    return manifest


def fingerprint(splits: object) -> str:
    """SHA-256 of the `splits` of a manifest."""
    canonical = json.dumps(splits, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_file(path: Path, expected: FileEntry, verify: bool, remedy: str) -> None:
    """Raise `DataCorruptError` unless size and, if `verify`, checksum are the expected ones."""
    if not path.is_file():
        raise DataCorruptError(f"{path} is missing{remedy}")
    if (size := path.stat().st_size) != expected["bytes"]:
        raise DataCorruptError(f"{path} has {size} bytes, expected {expected['bytes']}{remedy}")
    if verify and (found := sha256(path)) != expected["sha256"]:
        raise DataCorruptError(f"{path} has SHA-256 {found}, expected {expected['sha256']}{remedy}")
