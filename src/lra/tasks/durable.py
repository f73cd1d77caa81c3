"""Directories that appear under their name complete or not at all, whoever is killed when."""

import fcntl
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def build_lock(directory: Path) -> Iterator[None]:
    """Exclude other builders of the same directory; look inside whether it is there by now."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f".{directory.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replacement(directory: Path) -> Iterator[Path]:
    """A directory to fill; at the end it takes the place of `directory`, on an error it vanishes.

    Sync the files in it. Readers of a replaced directory keep what they have mapped. Hold
    `build_lock`: what another builder has begun is taken for abandoned.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory)
    staging, replaced = _new_sibling(directory), _new_sibling(directory)
    staging.mkdir()
    try:
        yield staging
        sync(staging)
        if directory.exists():
            directory.rename(replaced)
        staging.rename(directory)
        sync(directory.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def scratch_directory(directory: Path) -> Iterator[Path]:
    """A directory beside `directory` for what its builder needs meanwhile. Hold `build_lock`."""
    _remove_abandoned(directory)
    scratch = _new_sibling(directory)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a directory, survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _new_sibling(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.tmp-{uuid.uuid4().hex}")


def _remove_abandoned(directory: Path) -> None:
    """Remove what builders that were killed left beside a directory."""
    for path in directory.parent.glob(f".{glob.escape(directory.name)}.tmp-*"):
        shutil.rmtree(path)
