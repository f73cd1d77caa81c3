"""Published archives: fetched, verified, and read member by member, packed or unpacked."""

import gzip
import hashlib
import logging
import queue
import re
import shutil
import tarfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from lra.tasks.durable import build_lock, sha256

PROBE_SECONDS = 3.0
STALL_SECONDS = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """A file as its authors publish it."""

    url: str
    num_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.name} ({self.num_bytes:,} bytes, sha256 {self.sha256})"


@dataclass(frozen=True)
class Publication:
    """Archives of the same data, the one to download first, and what is read from them.

    `members` matches names such as `folder/file` in full, where `folder` is one of `folders`.
    """

    archives: tuple[Archive, ...]
    folders: tuple[str, ...]
    members: re.Pattern[str]


def fetch(archive: Archive, directory: Path) -> Path:
    """The archive in `directory`: downloaded and verified, unless a file of its name is there.

    Raises `FileNotFoundError` in less than 5 seconds where the server cannot be reached; the
    message says what to place where. Raises `ValueError` where the server has another file.
    """
    path = directory / archive.name
    with build_lock(path):
        if not path.is_file():
            _download(archive, path)
    return path


def contents(path: Path, publication: Publication) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member, from an archive or from where it was unpacked to.

    `path` is the archive, one of its folders, or what holds one. Raises `ValueError` for an archive
    that is damaged or cut off, and for a directory without the folders.
    """
    if path.is_file():
        yield from _packed(path, publication.members)
    for name, file in [] if path.is_file() else _unpacked(path, publication):
        yield name, file.read_bytes()


def directory_sha256(path: Path, publication: Publication) -> str:
    """SHA-256 of names and contents of the members below a directory, in the order of names."""
    digest = hashlib.sha256()
    for name, file in _unpacked(path, publication):
        digest.update(f"{name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def _packed(path: Path, members: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    file = archive.extractfile(member) if members.fullmatch(member.name) else None
                    if file is not None:
                        yield member.name, file.read()
            # tarfile takes a cut at the border of a member for the end; gzip's checksum does not
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged or cut off, or no .tar.gz: {error}") from error


def _unpacked(path: Path, publication: Publication) -> list[tuple[str, Path]]:
    base = path.resolve().parent if path.resolve().name in publication.folders else path
    folders = [base / folder for folder in publication.folders if (base / folder).is_dir()]
    if not folders:
        raise ValueError(f"source={path} holds no folder {' or '.join(publication.folders)}")
    files = sorted(file for folder in folders for file in folder.rglob("*"))
    named = [(file.relative_to(base).as_posix(), file) for file in files]
    return [(name, file) for name, file in named if publication.members.fullmatch(name)]


def _download(archive: Archive, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        _probe(archive.url)
        log.info("downloading %s to %s", archive, path)
        with urlopen(archive.url, timeout=STALL_SECONDS) as response, part.open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
        if (found := sha256(part)) != archive.sha256:
            raise ValueError(f"{archive.url} gave {found_text(part, found)}, not {archive}")
        part.rename(path)
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f"{path} is not there, and downloading {archive.url} failed ({error}); place "
            f"{archive} there, or say where it is with prepare.source=PATH"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def found_text(path: Path, digest: str) -> str:
    """A file's size and SHA-256, for messages."""
    return f"{path.stat().st_size:,} bytes with sha256 {digest}"


def _probe(url: str) -> None:
    """Raise `OSError` after `PROBE_SECONDS` without an answer, also where name lookup hangs."""
    outcome: queue.SimpleQueue[OSError | HTTPException | None] = queue.SimpleQueue()
    threading.Thread(target=_knock, args=(url, outcome), daemon=True).start()
    try:
        error = outcome.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {PROBE_SECONDS:g} seconds") from None
    if error is not None:
        raise error


def _knock(url: str, outcome: "queue.SimpleQueue[OSError | HTTPException | None]") -> None:
    try:
        with urlopen(url, timeout=PROBE_SECONDS):
            outcome.put(None)
    except (OSError, HTTPException) as error:
        outcome.put(error)
